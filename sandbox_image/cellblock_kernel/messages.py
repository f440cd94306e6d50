"""Keep every message below the host's size limit, whatever a cell displays."""

import contextlib
import json
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from jupyter_client.jsonutil import json_default
from jupyter_client.session import DELIM, Session, json_packer

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

UPDATE = "update_display_data"
DISPLAYS = frozenset({"display_data", UPDATE, "clear_output"})
OUTPUTS = DISPLAYS | {"stream", "execute_result", "error"}
MOST_HELD = 32  # displays between two cells; more are left out
MAX_FRAMES = 64  # the host accepts no message with more frames
# The host drops a message above 16 KiB whose JSON weighs more: an item 1, a list or object 5.
MOST_ITEMS = 30_000
SMALL = 16 * 1024
MOST_LINES = 1000  # of a traceback that is shortened; the host keeps no more


# Bound before the first cell, which may replace json.dumps.
_encode = json.JSONEncoder(default=json_default, ensure_ascii=False, allow_nan=False).encode
_encode_ascii = json.encoder.encode_basestring_ascii
_decode = json.JSONDecoder().decode


def pack_json(value: Any) -> bytes:
    """Return a value as JSON. What is no valid JSON is left to jupyter_client, which cleans it first."""
    try:
        return _encode(value).encode("utf-8", "surrogateescape")
    except (TypeError, ValueError):
        packed: bytes = json_packer(value)
        return packed


def pack_text(name: str, text: str) -> bytes:
    """Return the content of a stream message as JSON. For ASCII, half the time of ``pack_json``."""
    if text.isascii():
        return f'{{"name": {_encode_ascii(str(name))}, "text": {_encode_ascii(text)}}}'.encode()
    return pack_json({"name": name, "text": text})


def unpack_json(data: str | bytes) -> Any:
    """Return the value of a JSON text."""
    return _decode(data if isinstance(data, str) else data.decode("utf-8", "replace"))


def as_bytes(frames: Sequence[Any]) -> list[bytes]:
    """Return a message's frames as bytes, without its buffers if the host would not accept them."""
    plain = [frame if type(frame) is bytes else memoryview(frame).tobytes("A") for frame in frames]
    if len(plain) > MAX_FRAMES or sum(map(len, plain)) > BoundedSession.bound:
        return plain[: plain.index(DELIM) + 6]
    return plain


def pack(frames: Sequence[bytes]) -> bytes:
    """Join a message's frames into one: their number, the length of each in bytes, and their contents."""
    return b"".join([struct.pack(f">H{len(frames)}I", len(frames), *map(len, frames)), *frames])


def weight(value: Any) -> int:
    """Return what the structure of a JSON value weighs."""
    if isinstance(value, dict):
        return 5 + len(value) + sum(map(weight, value.values()))
    if isinstance(value, (list, tuple)):
        return 5 + len(value) + sum(map(weight, value))
    return 0


def is_heavy(frames: Sequence[bytes], content: Any) -> bool:
    """Return whether a message has more items than the host accepts. Looks first at the marks in its JSON."""
    if sum(map(len, frames)) <= SMALL:
        return False
    marks = sum(frame.count(b",") + 5 * (frame.count(b"[") + frame.count(b"{")) for frame in frames)
    return marks > MOST_ITEMS and weight(content) > MOST_ITEMS - SMALL // 8


def shorten(value: Any, limit: int) -> Any:
    """Return ``value`` with every text in it cut to ``limit`` characters and a note in place of the rest."""
    if isinstance(value, str) and len(value) > limit:
        half = limit // 2
        return f"{value[:half]}\n[... {len(value) - 2 * half} characters left out ...]\n{value[-half:]}"
    if isinstance(value, dict):
        return {key: shorten(item, limit) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return shorten_list([shorten(item, limit) for item in value], limit)
    return value


def is_large(value: Any, limit: int) -> bool:
    """Return whether a value has more than ``limit`` characters as JSON, or too many items."""
    return weight(value) > MOST_ITEMS // 4 or len(json.dumps(value, default=str)) > limit


def shorten_list(items: list[Any], limit: int) -> list[Any]:
    """Return a list of texts, such as a traceback, without its middle if its halves exceed ``limit`` characters each.

    Returns any other list as it is. Of more than 1,000 texts, the first and last 500 stay.
    """
    if not all(isinstance(item, str) for item in items):
        return items
    if len(items) > MOST_LINES:
        half = MOST_LINES // 2
        items = [*items[:half], f"[... {len(items) - MOST_LINES} lines left out ...]", *items[-half:]]
    if sum(map(len, items)) <= 2 * limit:
        return items
    last = len(items)
    first = next(at for at, size in enumerate(accumulate(map(len, items))) if size > limit)
    for size in accumulate(map(len, reversed(items))):
        if size > limit:
            break
        last -= 1
    return [*items[:first], f"[... {last - first} lines left out ...]", *items[last:]]


def without_large(content: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return a message's content without its lists and objects that ``is_large`` names."""
    kept = {}
    for key, value in content.items():
        large = not isinstance(value, str) and is_large(value, limit)
        kept[key] = type(value)() if large else value
    if content.get("data") and not kept["data"]:
        text = content["data"].get("text/plain", "") if isinstance(content["data"], dict) else ""
        kept["data"] = {"text/plain": f"{shorten(str(text), limit)}\n[a display of too many items left out]"}
    return kept


def without_surrogates(value: Any) -> Any:
    """Return ``value`` with every lone surrogate in it replaced by "?"."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_surrogates(item) for item in value]
    return value


def display_id(content: Any) -> Any:
    """Return the id of a display; None where it has none."""
    transient = content.get("transient") if isinstance(content, dict) else None
    return transient.get("display_id") if isinstance(transient, dict) else None


def shorten_bundle(data: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return a MIME bundle without its large items. Its plain text names what is left out.

    Args:
        limit: characters of an item's JSON.
    """
    other = {mime: item for mime, item in data.items() if mime != "text/plain"}
    large = {mime: len(json.dumps(item, default=str)) for mime, item in other.items() if is_large(item, limit)}
    notes = "".join(f"\n[{mime} of {size} bytes left out]" for mime, size in large.items())
    kept = {mime: item for mime, item in data.items() if mime not in large}
    return {**kept, "text/plain": shorten(str(kept.get("text/plain", "")), limit) + notes}


class BoundedSession(Session):
    """A Session that shortens messages above the host's limit, because the host kills the kernel that sends one.

    A shortened message has the number of bytes left out in its content, as "left_out".
    """

    held: list[tuple[Any, ...]] | None = None  # set between two cells: displays that wait for the next one
    left_out = 0  # displays between two cells that do not wait, because too many do
    current: Any = None  # the parent of every output: the request that runs, whichever thread or task it is from
    bound = 2**23  # bytes; replaced by the value in connection.json

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.digest_history_size = 0  # keeps no signatures: only the host sends, and one message may be read twice
        self.pack, self.unpack = pack_json, unpack_json

    def msg(self, msg_type: str, content: Any = None, parent: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a message. An output belongs to the cell that runs, also one of an earlier cell's thread."""
        if msg_type in OUTPUTS and self.current is not None:
            parent = self.current
        return super().msg(msg_type, content, parent, *args, **kwargs)

    def send(self, stream: Any, msg_or_type: Any, content: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Send a message. Between two cells, a display waits for the next one."""
        kind = msg_or_type if isinstance(msg_or_type, str) else msg_or_type.get("msg_type")
        if self.held is None or kind not in DISPLAYS:
            return super().send(stream, msg_or_type, content, *args, **kwargs)
        shown = content if isinstance(msg_or_type, str) else msg_or_type["content"]
        self._hold_back(stream, kind, shown)
        return None

    def _hold_back(self, stream: Any, kind: str, content: Any) -> None:
        """Let a display wait. An update takes the place of the one before it of the same display."""
        assert self.held is not None
        last = max((at for at, held in enumerate(self.held) if display_id(held[2]) == display_id(content)), default=-1)
        if kind == UPDATE and last >= 0 and self.held[last][1] == UPDATE:
            self.held[last] = stream, kind, content
        elif len(self.held) < MOST_HELD:
            self.held.append((stream, kind, content))
        else:
            self.left_out += 1

    def hold(self) -> None:
        """Let displays wait from now on. Those that wait already go on waiting."""
        if self.held is None:
            self.held = []

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send displays meanwhile. Those that wait for the next cell go on waiting."""
        held, self.held = self.held, None
        try:
            yield
        finally:
            self.held = held

    def release(self) -> int:
        """Send the displays that have waited. Return how many were left out."""
        held, self.held = self.held or [], None
        for stream, kind, content in held:
            self.send(stream, kind, content, None, ident=kind.encode())
        left_out, self.left_out = self.left_out, 0
        return left_out

    def serialize(self, msg: dict[str, Any], ident: Any = None) -> list[bytes]:
        try:
            frames = super().serialize(msg, ident)
        except UnicodeEncodeError:
            msg = {**msg, "content": without_surrogates(msg["content"])}
            frames = super().serialize(msg, ident)
        size = sum(map(len, frames))
        heavy = msg.get("msg_type") != "stream" and is_heavy(frames, msg["content"])
        if size <= self.bound and not heavy:
            return frames
        content = msg["content"]
        if isinstance(content.get("data"), dict):
            content = {**content, "data": shorten_bundle(content["data"], self.bound // 16)}
        content = shorten(content, self.bound // 16)
        left = self._size({**msg, "content": content}, ident)
        if left > self.bound or (heavy and weight(content) > MOST_ITEMS // 2):
            content = without_large(content, self.bound // 16)
            left = self._size({**msg, "content": content}, ident)
        left_out = size - left
        return super().serialize({**msg, "content": {**content, "left_out": left_out}}, ident)

    def _size(self, msg: dict[str, Any], ident: Any) -> int:
        return sum(map(len, super().serialize(msg, ident)))
