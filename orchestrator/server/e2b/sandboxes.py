"""Sandboxes: a session as one of E2B's sandboxes: what marks it, whether it runs, and finding it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from orchestrator.errors import InvalidInputError, SessionEndedError, UnknownSessionError
from orchestrator.principal import Principal
from orchestrator.server.directory import Directory, Served
from orchestrator.server.e2b.e2berrors import gone
from orchestrator.store.history import HandleRecord, History, SessionRecord

_MARK = "cellblock.e2b"  # the label that a session of this wire has beside its client's


@dataclass(frozen=True, slots=True)
class Mark:
    """What E2B's wire keeps with a session, in one label of it.

    Attributes:
        template: as the client named it; "" for a session that another door made.
        resumes: whether a request to a paused sandbox wakes it.
        source: of a snapshot: the sandbox that it was taken of.
        name: of a snapshot.
    """

    template: str = ""
    resumes: bool = False
    source: str = ""
    name: str = ""

    @classmethod
    def of(cls, handle: HandleRecord) -> Self:
        """Return the mark of a session. Another door's client may have written any text there: that is no mark."""
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            form = json.loads(handle.labels.get(_MARK, "{}"))
            kinds = {"resumes": bool}
            if all(isinstance(value, kinds.get(name, str)) for name, value in form.items()):
                return cls(**form)
        return cls()

    @property
    def is_snapshot(self) -> bool:
        return bool(self.source)

    def on(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return the labels of a session with this mark and a client's metadata.

        Raises:
            InvalidInputError: the metadata has the name of the mark.
        """
        if _MARK in metadata:
            raise InvalidInputError(f"metadata may not have the name {_MARK!r}.")
        form = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name)}
        return {**metadata, _MARK: json.dumps(form)}


def metadata_of(handle: HandleRecord) -> dict[str, str]:
    """Return a client's metadata of a session."""
    return {name: value for name, value in handle.labels.items() if name != _MARK}


def is_paused(handle: HandleRecord, record: SessionRecord) -> bool:
    """Return whether a sandbox is paused. One that sleeps because it was idle, and would wake, is not.

    A running sandbox of E2B's always expires, so that one that sleeps and does not expire was paused.
    """
    return record.state == "asleep" and (handle.expires_at is None and bool(handle.labels.get(_MARK)))


async def record_of(directory: Directory, principal: Principal, sandbox_id: str) -> tuple[HandleRecord, SessionRecord]:
    """Return what the store has of a sandbox of the caller's group that has not ended.

    Raises:
        UnknownSessionError: there is none.
    """
    try:
        handle, record = await directory.record(principal, sandbox_id)
    except UnknownSessionError:
        raise gone(sandbox_id) from None
    if record.state == "ended" or Mark.of(handle).is_snapshot:
        raise gone(sandbox_id)
    return handle, record


async def served_of(directory: Directory, principal: Principal, sandbox_id: str, *, snapshot: bool = False) -> Served:
    """Return a sandbox of the caller's group that has not ended, or a snapshot.

    Raises:
        UnknownSessionError: there is none.
    """
    try:
        served = await directory.find(principal, sandbox_id)
    except (UnknownSessionError, SessionEndedError):
        raise gone(sandbox_id) from None
    if Mark.of(served.handle).is_snapshot is not snapshot:
        raise gone(sandbox_id)
    return served


async def running(directory: Directory, principal: Principal, sandbox_id: str, default_ttl: float) -> Served:
    """Return a sandbox that runs, for the data plane. One that resumes by itself is resumed.

    Raises:
        UnknownSessionError: there is none, or it is paused.
    """
    handle, record = await record_of(directory, principal, sandbox_id)
    mark = Mark.of(handle)
    paused = is_paused(handle, record)
    if paused and not mark.resumes:
        raise gone(sandbox_id)
    served = await served_of(directory, principal, sandbox_id)
    if paused:
        await directory.set_expiry(served, default_ttl, handle.on_expiry)
    return served


async def mark_again(directory: Directory, served: Served, mark: Mark) -> None:
    """Give a session another mark.

    Raises:
        StoreError: it cannot be written.
    """
    labels = mark.on(metadata_of(served.handle))
    served.handle = replace(served.handle, labels=labels)
    await directory.history.run(History.add_handle, served.handle)


def member(body: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """Return a member of a request's body, or the default if it is missing or null.

    Raises:
        InvalidInputError: it is of another type.
    """
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidInputError(f"{name!r} is of the wrong type.")
    return value


def texts(body: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return a member that maps text to text.

    Raises:
        InvalidInputError: it does not.
    """
    value = member(body, name, dict, {})
    if not all(isinstance(text, str) for item in value.items() for text in item):
        raise InvalidInputError(f"{name!r} maps text to text.")
    return dict(value)
