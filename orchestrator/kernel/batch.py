"""What a kernel publishes at once: several messages in one frame. Pure; the frame is hostile."""

from __future__ import annotations

import itertools
import struct

from orchestrator.kernel.zmtp import FRAMES_BOUND

_COUNT = struct.Struct(">H")


class Batch:
    """Messages one after another, each with how many frames it has, the bytes of each (big-endian), and the frames.

    They are taken out one by one: a frame of small ones would else hold the loop.
    """

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._at = 0

    def next(self) -> list[bytes] | None:
        """Return the next message's frames; None after the last. What is no message is the last, as a single frame."""
        packed, at = self._packed, self._at
        if at == len(packed):
            return None
        try:
            (count,) = _COUNT.unpack_from(packed, at)
            sizes = struct.unpack_from(f">{count}I", packed, at + _COUNT.size) if count <= FRAMES_BOUND else ()
        except struct.error:
            sizes = ()
        ends = list(itertools.accumulate(sizes, initial=at + _COUNT.size + 4 * len(sizes)))
        broken = not sizes or ends[-1] > len(packed)
        self._at = ends[-1]
        if broken or self._at == len(packed):  # the last: not to be kept while it is handled
            self._packed, self._at = b"", 0
        if broken:
            return [packed[at:]]
        return [packed[start:end] for start, end in itertools.pairwise(ends)]
