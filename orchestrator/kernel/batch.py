"""Batch: several messages that a kernel publishes in one frame. Pure; the frame is hostile."""

from __future__ import annotations

import itertools
import struct

from orchestrator.kernel.zmtp import FRAMES_BOUND

_COUNT = struct.Struct(">H")


class Batch:
    """Messages one after another: of each the number of frames, the size of each frame (big-endian), and the frames.

    They are unpacked one at a time, so that a frame of many small messages does not hold the event loop.
    """

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._at = 0

    def next(self) -> list[bytes] | None:
        """Return the next message's frames; None after the last. Bytes that are no message count as one last frame."""
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
        if broken or self._at == len(packed):  # the last: free the frame before it is handled
            self._packed, self._at = b"", 0
        if broken:
            return [packed[at:]]
        return [packed[start:end] for start, end in itertools.pairwise(ends)]
