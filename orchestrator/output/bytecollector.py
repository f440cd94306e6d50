"""Collects what a command writes, and truncates what exceeds a limit. Pure.

While everything fits, all of it is kept. After that each stream keeps its beginning, up to a third of the limit in all,
and its end: the oldest bytes of the stream with the longer end make room for new ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.output.amounts import amount
from orchestrator.output.outputs import StreamName
from orchestrator.output.result import Truncation

_BLOCK = 64 * 1024  # bytes up to which small pieces of the end are joined
_NAMES: tuple[StreamName, ...] = ("stdout", "stderr")


@dataclass(slots=True)
class _Block:
    """Pieces of an end, joined: a million pieces of a byte each would take 50 MB."""

    data: bytearray
    messages: int = 1


class _Stream:
    """The bytes of one stream: its beginning, and its end."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.tail: deque[_Block] = deque()
        self.tail_size = 0
        self.seen = 0
        self.streamed = 0  # bytes that the consumer has got
        self.dropped_messages = 0

    def append(self, data: bytes) -> None:
        """Add to the end."""
        if self.tail and len(self.tail[-1].data) < _BLOCK:
            self.tail[-1].data += data
            self.tail[-1].messages += 1
        else:
            self.tail.append(_Block(bytearray(data)))
        self.tail_size += len(data)

    def shorten(self, most: int) -> None:
        """Move all but the first ``most`` bytes of the beginning to the end."""
        rest = bytes(self.head[most:])
        del self.head[most:]
        for start in range(0, len(rest), _BLOCK):
            self.tail.append(_Block(bytearray(rest[start : start + _BLOCK])))
        self.tail_size += len(rest)

    def leave_out(self, size: int) -> None:
        """Leave out the oldest bytes of the end."""
        size = min(size, self.tail_size)
        self.tail_size -= size
        while size > 0:
            block = self.tail[0]
            if len(block.data) > size:
                del block.data[:size]
                return
            size -= len(block.data)
            self.dropped_messages += block.messages
            self.tail.popleft()

    @property
    def left_out(self) -> int:
        return self.seen - len(self.head) - self.tail_size

    @property
    def end(self) -> bytes:
        return b"".join(block.data for block in self.tail)


class ByteCollector:
    """The output of one command.

    Args:
        limit: bytes of both streams together.

    Attributes:
        bytes_seen, messages_seen: everything that the command put out, including what is left out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._streams = {name: _Stream() for name in _NAMES}
        self._split = False
        self.bytes_seen = 0
        self.messages_seen = 0

    def add(self, name: StreamName, data: bytes) -> bytes:
        """Add a piece. Return what to stream to the consumer now: the piece, its beginning or nothing."""
        stream = self._streams[name]
        room = self._limit - self.bytes_seen
        self.bytes_seen += len(data)
        self.messages_seen += 1
        stream.seen += len(data)
        if len(data) <= room:
            stream.head += data
            stream.streamed += len(data)
            return data
        if not self._split:
            self._split = True
            self._divide()
        stream.append(data)
        self._fit()
        shown = data[: max(0, room)]
        stream.streamed += len(shown)
        return shown

    @property
    def is_past_limit(self) -> bool:
        """Whether the command wrote more than the limit."""
        return self._split

    @property
    def truncation(self) -> Truncation | None:
        """How much is missing; None while the output is complete."""
        missing = sum(stream.left_out for stream in self._streams.values())
        if not missing:
            return None
        messages = sum(stream.dropped_messages for stream in self._streams.values())
        return Truncation("max_output_size_mb", self._limit, missing, max(1, messages))

    def rest(self) -> Iterator[tuple[StreamName, int, bytes]]:
        """Yield, for each stream, how many bytes were left out before its end, and the end that was not streamed."""
        for name, stream in self._streams.items():
            start = stream.seen - stream.tail_size
            missing = max(0, start - stream.streamed)
            data = stream.end[max(0, stream.streamed - start) :]
            if missing or data:
                yield name, missing, data

    def output(self, name: StreamName) -> bytes:
        """Return what is kept of a stream, with a mark where output was left out."""
        stream = self._streams[name]
        mark = b""
        if stream.left_out:
            mark = f"\n[... {amount(stream.left_out)} of output left out here ...]\n".encode()
        return bytes(stream.head) + mark + stream.end

    def _divide(self) -> None:
        """Move what each stream may not keep as its beginning to its end."""
        small, large = sorted(self._streams.values(), key=lambda stream: len(stream.head))
        share = self._limit // 3
        kept = min(len(small.head), share // 2)
        small.shorten(kept)
        large.shorten(share - kept)

    def _fit(self) -> None:
        excess = sum(len(stream.head) + stream.tail_size for stream in self._streams.values()) - self._limit
        for stream in sorted(self._streams.values(), key=lambda stream: -stream.tail_size):
            before = stream.tail_size
            stream.leave_out(max(0, excess))
            excess -= before - stream.tail_size
