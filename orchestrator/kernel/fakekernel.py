"""FakeKernel: a kernel in memory, for tests of programs that embed Cellblock.

No engine, no sockets, no threads, no random numbers: the same script gives the same messages in the same order. Every
message arrives in a later turn of the event loop than the request that caused it, as from a real kernel.

    kernel = FakeKernel(cells={"1 + 1": FakeCell([returned({"text/plain": "2"})])})
    session = KernelSession.of("agent", kernel, Policy())

A cell without a script succeeds without output.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.container.exits import Exit
from orchestrator.container.usage import Usage
from orchestrator.errors import EngineError, KernelDiedError
from orchestrator.kernel.channel import Accept, Channel, Handler, Message
from orchestrator.kernel.fakecell import FakeCell
from orchestrator.kernel.fakeinterpreter import FakeInterpreter
from orchestrator.kernel.fakeside import FakeFiles, FakeState
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.lost import failing_when_lost
from orchestrator.outcome import Outcome, Stop

Content = dict[str, Any]


class FakeKernel(Kernel):
    """A kernel in memory. See ``Kernel``, and the module.

    Args:
        cells: what it does with a cell, by the cell's code; may be changed at any time.
        default: what it does with any other cell.

    Attributes:
        answers: whether it answers requests. When False, cells and requests hang, and a request with a timeout raises
            TimeoutError at once, so that tests need not wait.
        executed: the code of each cell that it began, in order.
        notes: what was written to the audit log: name and details of each event.
        asked: how many requests it got with ``request``.
        warmed, stopped, abandoned: whether ``warm_up``, ``stop`` and ``abandon`` have ended.
        output_held: whether its outputs are held, and wait.
        engine_error: raised by ``exit``, ``stop`` and ``measure`` when it is set, as by an engine that does not answer.
        exit_s: seconds that the engine takes to report an end.
        files, state: its working directory and its session state. See ``FakeFiles`` and ``FakeState``.
    """

    oom_kills_reported = 0

    def __init__(
        self,
        kernel_id: str = "fake",
        *,
        cells: Mapping[str, FakeCell] | None = None,
        default: FakeCell | None = None,
        runtime: str = "runc",
        usage: Usage | None = None,
    ) -> None:
        self._kernel_id = kernel_id
        self._runtime = runtime
        self._usage = usage
        self.cells = dict(cells or {})
        self.default = default or FakeCell()
        self.answers = True
        self.executed: list[str] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.asked = 0
        self.warmed = self.stopped = self.abandoned = False
        self.output_held = False
        self.engine_error: EngineError | None = None
        self.exit_s = 0.0
        self.files = FakeFiles()
        self.state = FakeState()
        self._reason = ""
        self._violated = self._excess = False
        self._exit: Exit | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._interpreter = FakeInterpreter(self)

    # What a test does to it

    def die(self, exit: Exit | None = None, reason: str = "the shell connection closed") -> None:
        """End it.

        Args:
            exit: how; None: with exit code 1.
            reason: why the wire was disconnected.
        """
        self._lose(reason, exit or Exit(Outcome.KERNEL_DIED, 1))

    def violate(self, reason: str = "a frame has unknown flags", *, excess: bool = False) -> None:
        """Have it break the protocol, or with ``excess`` exceed a bound: the host disconnects it."""
        if self.is_alive:
            self._violated, self._excess = True, excess
            self._lose(reason, Exit(Outcome.KERNEL_DIED, None))

    def use(self, **fields: Any) -> None:
        """Change fields of ``usage``, such as ``memory`` in bytes or ``oom_kills``."""
        self._usage = replace(self._usage or Usage(0.0, 0.0, 0, 0, 0, 0, 1), **fields)

    # Its life

    @property
    def kernel_id(self) -> str:
        return self._kernel_id

    @property
    def runtime(self) -> str:
        return self._runtime

    @property
    def container_name(self) -> str:
        return f"fake-{self._kernel_id}"

    @property
    def is_alive(self) -> bool:
        return self._exit is None

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        if not self.is_alive:
            callback()
        else:
            self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    @property
    def disconnect_reason(self) -> str:
        return self._reason

    @property
    def violated(self) -> bool:
        return self._violated

    @property
    def excess(self) -> bool:
        return self._excess

    async def exit(self) -> Exit:
        await asyncio.sleep(self.exit_s)
        self._refuse_without_engine()
        assert self._exit is not None, "the kernel lives"
        return self._exit

    def died_error(self, reason: Outcome) -> KernelDiedError:
        return KernelDiedError(
            f"kernel {self._kernel_id[:12]} is gone: {self._reason}.",
            kernel_id=self._kernel_id,
            reason=reason,
            exit_code=None if self._exit is None else self._exit.exit_code,
            remedy="Acquire the agent's kernel again: it gets a fresh one.",
        )

    async def warm_up(self) -> None:
        await asyncio.sleep(0)
        if not self.is_alive:
            raise self.died_error(Outcome.KERNEL_DIED)
        if not self.answers:
            raise TimeoutError
        self.warmed = True

    async def stop(self) -> None:
        self._lose("it was stopped", Exit(Outcome.KERNEL_DIED, None))
        await asyncio.sleep(0)
        self._refuse_without_engine()
        self.stopped = True

    def abandon(self) -> None:
        self._lose("its orchestrator abandoned it", Exit(Outcome.KERNEL_DIED, None))
        self.abandoned = True

    # What is sent to it

    def send(
        self,
        channel: Channel,
        kind: str,
        content: Content,
        handler: Handler,
        buffers: Sequence[bytes] = (),
        accept: Accept | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        if not self.is_alive:
            raise self.died_error(Outcome.KERNEL_DIED)
        return self._interpreter.take(channel, kind, content, buffers, handler, accept)

    def forget(self, message_id: str) -> None:
        self._interpreter.forget(message_id)

    async def request(
        self,
        channel: Channel,
        kind: str,
        content: Content,
        *,
        timeout: float | None,
        buffers: Sequence[bytes] = (),
    ) -> Message:
        self.asked += 1
        if not self.answers and timeout is not None:
            raise TimeoutError
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def receive(message: Message) -> None:
            if message.kind == kind.replace("_request", "_reply") and not reply.done():
                reply.set_result(message)

        message_id = self.send(channel, kind, content, receive, buffers)
        try:
            with failing_when_lost(self, reply):
                async with asyncio.timeout(timeout):
                    return await reply
        finally:
            self.forget(message_id)
            reply.cancel()

    def hold_output(self, held: bool) -> None:
        self.output_held = held
        self._interpreter.release_output()

    # How what it runs is stopped

    async def interrupt(self) -> None:
        with contextlib.suppress(KernelDiedError):
            await self.request("control", "interrupt_request", {}, timeout=None)

    async def interrupt_from_outside(self) -> None:
        await asyncio.sleep(0)
        self._interpreter.interrupt("outside")

    def kill(self, why: Stop) -> None:
        self._lose("its cell ignored the interrupt", Exit(why, None))

    # What it uses, and what is recorded of it

    def usage(self) -> Usage | None:
        return self._usage

    def reset_peak(self) -> None:
        if self._usage is not None:
            self.use(peak=self._usage.memory)

    async def measure(self) -> Usage:
        await asyncio.sleep(0)
        self._refuse_without_engine()
        return self._usage or Usage(0.0, 0.0, 0, 0, 0, 0, 1)

    def note(self, event: str, **details: Any) -> None:
        self.notes.append((event, details))

    def description(self) -> dict[str, Any]:
        return {"container": self.container_name, "runtime": self._runtime, "image": "fake", "policy": "", "limits": {}}

    # Its end

    def _lose(self, reason: str, exit: Exit) -> None:
        if self._exit is not None:
            return
        self._reason, self._exit = reason, exit
        self._interpreter.end()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _refuse_without_engine(self) -> None:
        if self.engine_error is not None:
            raise self.engine_error
