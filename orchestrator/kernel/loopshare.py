"""The event loop's time, divided among the kernels of one instance.

asyncio serves whatever is ready in one pass, so each kernel that sends without end would take its time of every pass.
Here whoever has used up a slice rests, the longer the more others there are; who is alone hardly waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SLICE = 0.002  # seconds that a kernel may hold the loop before it rests
_FORGIVEN = 0.01  # seconds without a message after which what was used of a slice is forgotten
_ACTIVE = 0.1  # seconds after its last message in which a kernel counts as one that others make room for
_ALONE = 0.5  # slices to rest when no other kernel is active: the program around us has the loop too
_OTHERS = 3.0  # further slices to rest for each active other: together, floods leave the loop to the rest of them
# A message that alone held the loop for so many seconds is felt by whoever waits; rests after it are so many times
# longer, so that not one in a hundred cells of the others (5 ms each) meets one.
_HEAVY, _RARER = 0.008, 6.0


class LoopShare:
    """What all kernels of one instance divide among them.

    Args:
        clock: seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._last_used: dict[KernelShare, float] = {}

    def of_kernel(self) -> KernelShare:
        return KernelShare(self)

    def note(self, share: KernelShare, now: float) -> None:
        self._last_used[share] = now

    def others(self, share: KernelShare, now: float) -> int:
        """Count the other kernels that were active lately."""
        return sum(other is not share and now - used < _ACTIVE for other, used in self._last_used.items())

    def forget(self, share: KernelShare) -> None:
        self._last_used.pop(share, None)


class KernelShare:
    """One kernel's part. ``begin`` before the work that its bytes cause, ``end`` after it."""

    def __init__(self, loop_share: LoopShare) -> None:
        self._loop_share = loop_share
        self._begun = 0.0
        self._spent = 0.0
        self._last = 0.0
        self._rested = 0.0  # until then it rests
        self._closed = False

    def begin(self) -> None:
        self._begun = self._loop_share.clock()

    @property
    def rest(self) -> float:
        """The seconds that this kernel is to rest before more of it is read; mostly 0."""
        return max(0.0, self._rested - self._loop_share.clock())

    def end(self) -> None:
        if self._closed:
            return
        now = self._loop_share.clock()
        if self._begun - self._last > _FORGIVEN:
            self._spent = 0.0
        self._spent += now - self._begun
        self._last = now
        self._loop_share.note(self, now)
        if self._spent < _SLICE:
            return
        others = self._loop_share.others(self, now)
        rest = self._spent * (_ALONE + _OTHERS * others) * (_RARER if others and self._spent > _HEAVY else 1.0)
        self._spent, self._rested = 0.0, max(now, self._rested) + rest

    def close(self) -> None:
        self._closed = True
        self._loop_share.forget(self)
