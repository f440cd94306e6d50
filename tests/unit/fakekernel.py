"""A factory of fake kernels, which a test lets fail or take its time."""

from __future__ import annotations

import asyncio
import itertools

from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.kernel.kernel import Kernel


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
        self.made.append(FakeKernel(f"kernel-{next(self._numbers)}"))
        self.made[-1].answers = self.answers
        return self.made[-1]

    @property
    def living(self) -> list[FakeKernel]:
        return [kernel for kernel in self.made if kernel.is_alive]
