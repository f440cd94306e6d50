"""Kernels without containers, and what makes them: enough for a pool, which knows nothing of what a kernel runs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

from orchestrator.kernel.channel import Channel, Message
from orchestrator.kernel.kernel import Kernel


class FakeKernel(Kernel):
    """A kernel of which a test says whether it lives, and whether it answers."""

    def __init__(self, number: int) -> None:
        self.kernel_id = f"kernel-{number}"
        self.answers = True
        self.asked = 0
        self.stopped = self.warmed = False
        self._lives = True
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_alive(self) -> bool:
        return self._lives

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: None

    def die(self) -> None:
        self._lives = False
        for callback in self._callbacks:
            callback()

    async def warm_up(self) -> None:
        if not self.answers:
            raise TimeoutError
        self.warmed = True

    async def stop(self) -> None:
        self._lives = False
        await asyncio.sleep(0)
        self.stopped = True

    async def request(
        self,
        channel: Channel,
        kind: str,
        content: dict[str, Any],
        *,
        timeout: float | None,
        buffers: Sequence[bytes] = (),
    ) -> Message:
        self.asked += 1
        if not self.answers:
            raise TimeoutError
        return cast("Message", None)


class Factory:
    """Starts fake kernels.

    Attributes:
        made: all of them, in order.
        starting, most: how many starts are under way, and were at once.
        failure: what the next starts raise.
        answers: whether the kernels do.
    """

    answers = True

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._numbers = itertools.count()
        self.made: list[FakeKernel] = []
        self.starting = self.most = 0
        self.failure: Exception | None = None

    async def __call__(self) -> Kernel:
        self.starting += 1
        self.most = max(self.most, self.starting)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.starting -= 1
        if self.failure is not None:
            raise self.failure
        self.made.append(FakeKernel(next(self._numbers)))
        self.made[-1].answers = self.answers
        return self.made[-1]

    @property
    def living(self) -> list[FakeKernel]:
        return [kernel for kernel in self.made if kernel.is_alive]
