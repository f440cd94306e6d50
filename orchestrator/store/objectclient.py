"""The client of an object store: S3, Google Cloud Storage or Azure. Every call ends; one that fails raises OSError.

Imports obstore, which is an extra. ``BlobPlace`` imports this module once an object store is asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
from obstore.store import ObjectStore, from_url

from orchestrator.errors import StoreError

_CONNECT = "5s"
_ANSWER = "20s"  # for one request, with its body: a piece of 8 MiB
_RETRIES = 4  # requests after the first one that failed
_LONGEST = timedelta(seconds=20)  # after which a request is not repeated
_BACKOFF = 2.0  # seconds in which nothing is asked of a store that has just failed: its callers would wait in a row
_PIECE = 8 * 1024 * 1024  # bytes that are sent at once, as a part of the object
_PARTS = 2  # that are sent at the same time
_AT_ONCE = 1000  # objects that are deleted with one call
_URL = re.compile(r"(\w+://[^\s/?]+)[^\s]*")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_CLOCK = ".clock"


class ObjectClient:
    """One object store.

    Args:
        store: of obstore, with the prefix of all keys.
        shown: the store's name for messages; it has no secrets.
    """

    def __init__(self, store: ObjectStore, shown: str) -> None:
        self._store = store
        self._shown = shown
        self._failed_at = float("-inf")
        self._ahead: float | None = None  # seconds by which the store's clock is ahead of CLOCK_BOOTTIME
        self._asking = threading.Lock()

    @classmethod
    def of_url(cls, url: str) -> ObjectClient:
        """Return the client of a store. Its credentials are in the environment, under the names that obstore reads.

        Raises:
            StoreError: the URL or the environment cannot be used.
        """
        try:
            store = from_url(
                url,
                client_options={"connect_timeout": _CONNECT, "timeout": _ANSWER, "allow_http": _may_use_http()},
                retry_config={
                    "max_retries": _RETRIES,
                    "retry_timeout": _LONGEST,
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=2),
                        "base": 2,
                    },
                },
            )
        except (BaseError, ValueError) as error:
            raise _failure(url, error) from None
        return cls(store, url)

    def write(self, key: str) -> ObjectFile:
        """Begin to write an object."""
        return ObjectFile(self, obstore.open_writer(self._store, key, buffer_size=_PIECE, max_concurrency=_PARTS))

    def put_if_absent(self, key: str, content: bytes) -> bytes:
        """Write a small object unless there is one, and return the content of the one that is there."""
        with self.explained():
            with contextlib.suppress(AlreadyExistsError):
                obstore.put(self._store, key, content, mode="create")
            return bytes(obstore.get(self._store, key).bytes())

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return a part of an object, which has at least one byte in this range."""
        with self.explained(may_miss=True):
            return bytes(obstore.get_range(self._store, key, start=offset, length=length))

    def copy(self, key: str, to: str) -> None:
        """Copy an object inside the store."""
        with self.explained(may_miss=True):
            obstore.copy(self._store, key, to)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects. Those that are not there are no error."""
        with self.explained():
            for start in range(0, len(keys), _AT_ONCE):
                some = list(keys[start : start + _AT_ONCE])
                try:
                    obstore.delete(self._store, some)
                except FileNotFoundError:  # some stores stop at one that another host was faster to delete
                    for key in some:
                        with contextlib.suppress(FileNotFoundError):
                            obstore.delete(self._store, key)

    def directly_in(self, folder: str) -> list[obstore.ObjectMeta]:
        """Return the objects of a folder, without those of the folders in it."""
        with self.explained():
            return list(obstore.list_with_delimiter(self._store, folder)["objects"])

    def under(self, folder: str) -> Iterator[obstore.ObjectMeta]:
        """Yield the objects of a folder and of all folders in it."""
        with self.explained():
            for some in obstore.list(self._store, folder):
                yield from some

    def now(self) -> float:
        """Return the store's time, in seconds since the epoch.

        The store is asked once. From then on a clock of this host counts, which nobody sets and which counts sleep.
        """
        with self._asking:
            if self._ahead is None:
                key = f"{_CLOCK}/{uuid.uuid4().hex}"
                with self.explained():
                    obstore.put(self._store, key, b"")
                    told = obstore.head(self._store, key)["last_modified"].timestamp()
                    obstore.delete(self._store, key)
                self._ahead = told - time.clock_gettime(time.CLOCK_BOOTTIME)
            return self._ahead + time.clock_gettime(time.CLOCK_BOOTTIME)

    @contextlib.contextmanager
    def explained(self, *, may_miss: bool = False) -> Iterator[None]:
        """Raise a StoreError in place of the client's error, without what may be secret in its text.

        A store that has just failed is not asked: while it is away, each of its callers would wait for as long.

        Args:
            may_miss: whether FileNotFoundError means that an object is not there, and not the whole store.
        """
        if time.monotonic() - self._failed_at < _BACKOFF:
            raise StoreError(f"the object store {self._shown} has just failed; it is tried again in {_BACKOFF:g} s.")
        try:
            yield
        except FileNotFoundError as error:
            if may_miss:
                raise FileNotFoundError(2, "the object store has no such object any more") from None
            raise _failure(self._shown, error) from None
        except BaseError as error:
            if isinstance(error, GenericError):
                self._failed_at = time.monotonic()
            raise _failure(self._shown, error) from None


class ObjectFile:
    """An object that is being written. It appears with ``finish``."""

    def __init__(self, client: ObjectClient, file: obstore.WritableFile) -> None:
        self._client = client
        self._file = file

    def write(self, piece: bytes) -> None:
        """Append a piece. Waits until few enough pieces are on their way."""
        with self._client.explained():
            self._file.write(piece)

    def finish(self) -> None:
        """Let the object appear."""
        with self._client.explained():
            self._file.close()

    def abandon(self) -> None:
        """Delete what was sent. If the store does not answer, its own rule for unfinished uploads does."""
        with contextlib.suppress(BaseError, OSError):
            self._file.__exit__(StoreError, None, None)


def _may_use_http() -> bool:
    """Return what obstore's own variable says. With any option of ours it does not read the variable."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")


def _failure(shown: str, error: Exception) -> StoreError:
    """Return the error to raise: the first line of the client's without its URLs' paths, and the store's own code."""
    text = str(error).strip()
    said = _URL.sub(r"\1/…", re.split("[\n<]", text, maxsplit=1)[0]).rstrip(" :.")
    code = _CODE.search(text)
    return StoreError(
        f"the object store {shown} cannot be used: {said}{f' ({code[1]})' if code else ''}.",
        remedy="Check CELLBLOCK_BLOBS, and the variables of its credentials, its region and its endpoint "
        "(docs/tasks/shared-store.md lists them).",
    )
