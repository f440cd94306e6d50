"""Pace: the time that a transfer of a file may take. Pure, but for the clock."""

from __future__ import annotations

import time

# Seconds for one piece; a sandbox under memory pressure takes its time.
_PATIENCE = 30.0
# Bytes per second that a transfer must reach after that. An idle kernel under gVisor moves 100 times as much.
_LEAST_RATE = 1024 * 1024


class Pace:
    """The time of one transfer: ``patience`` seconds, and in all as many more as its bytes take at the least rate.

    Attributes:
        patience: seconds that one piece may take at most.
        moved: bytes that have been moved.
    """

    def __init__(self, patience: float = _PATIENCE, least_rate: float = _LEAST_RATE) -> None:
        self.patience = patience
        self._least_rate = least_rate
        self._started = time.monotonic()
        self.moved = 0

    def remaining(self) -> float:
        """Return the seconds that the next piece may take, never less than 0."""
        end = self._started + self.patience + self.moved / self._least_rate
        return max(0.0, min(self.patience, end - time.monotonic()))
