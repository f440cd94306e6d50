"""The event loop's time, divided among the kernels of one instance.

asyncio serves all that is ready in one pass, so each kernel that sends without end would take its time in every pass.
Here a kernel that has used up its slice rests: longer the more other kernels are active, and hardly when it is alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SLICE = 0.002  # seconds that a kernel may use the loop before it rests
_FORGIVEN = 0.01  # seconds without a message after which a used part of the slice is forgotten
_ACTIVE = 0.1  # seconds after its last message in which a kernel counts as active
_ALONE = 0.5  # slices to rest when no other kernel is active: the embedding program needs the loop too
_OTHERS = 3.0  # further slices to rest for each other active kernel, so that several floods leave most of the loop free
# One message that held the loop for 8 ms delays everything that waits. The rest after it is six times longer, so that
# less than one in a hundred cells of the other kernels (5 ms each) meets such a message.
_HEAVY, _RARER = 0.008, 6.0


class LoopShare:
    """The time that the kernels of one instance share.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._last_used: dict[KernelShare, float] = {}

    def of_kernel(self) -> KernelShare:
        """Return the share of one more kernel."""
        return KernelShare(self)

    def note(self, share: KernelShare, now: float) -> None:
        """Note that a kernel is active."""
        self._last_used[share] = now

    def others(self, share: KernelShare, now: float) -> int:
        """Return how many other kernels were active within the last 0.1 s."""
        return sum(other is not share and now - used < _ACTIVE for other, used in self._last_used.items())

    def forget(self, share: KernelShare) -> None:
        """Count a kernel as inactive."""
        self._last_used.pop(share, None)


class KernelShare:
    """One kernel's share. Call ``begin`` before the work that its bytes cause, and ``end`` after."""

    def __init__(self, loop_share: LoopShare) -> None:
        self._loop_share = loop_share
        self._begun = 0.0
        self._spent = 0.0
        self._last = 0.0
        self._rested = 0.0  # monotonic seconds until which it rests
        self._closed = False

    def begin(self) -> None:
        """Start to measure."""
        self._begun = self._loop_share.clock()

    @property
    def rest(self) -> float:
        """Seconds to wait before more of this kernel is read; mostly 0."""
        return max(0.0, self._rested - self._loop_share.clock())

    def end(self) -> None:
        """Stop measuring, and set the next rest when the slice is used up."""
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
        """Count this kernel no more."""
        self._closed = True
        self._loop_share.forget(self)
