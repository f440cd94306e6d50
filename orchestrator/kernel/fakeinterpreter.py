"""FakeInterpreter: how a ``FakeKernel`` serves requests and runs scripted cells."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.kernel.channel import Accept, Channel, Handler, Message
from orchestrator.kernel.fakecell import Ask, Die, FakeCell, Obeys, Output, Use, Violate, Wait, printed, raised

if TYPE_CHECKING:
    from orchestrator.kernel.fakekernel import FakeKernel

T = TypeVar("T")
Content = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the host sent."""

    message_id: str
    channel: Channel
    kind: str
    content: Content
    buffers: Sequence[bytes]
    handler: Handler
    accept: Accept | None


class FakeInterpreter:
    """The inside of a fake kernel: a main thread that serves shell requests one after another, and a control thread."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._numbers = 0
        self._count = 0
        self._requests: dict[str, Request] = {}
        self._queue: deque[Request] = deque()
        self._work: asyncio.Task[None] | None = None
        self._interrupted: asyncio.Future[None] | None = None  # while something runs that can be interrupted
        self._obeys: Obeys = "control"
        self._answer: asyncio.Future[str] | None = None
        self._held: deque[tuple[Request, Message]] = deque()

    def take(
        self,
        channel: Channel,
        kind: str,
        content: Content,
        buffers: Sequence[bytes],
        handler: Handler,
        accept: Accept | None,
    ) -> str:
        """Take a request, and return its id."""
        self._numbers += 1
        request = Request(f"request-{self._numbers}", channel, kind, content, buffers, handler, accept)
        self._requests[request.message_id] = request
        if kind == "input_reply":
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(str(content.get("value")))
        elif channel == "shell":
            self._queue.append(request)
            if self._work is None:
                self._work = asyncio.get_running_loop().create_task(self._serve())
        elif self._kernel.answers:
            asyncio.get_running_loop().call_soon(self._control, request)
        return request.message_id

    def forget(self, message_id: str) -> None:
        """Send no more for this request."""
        self._requests.pop(message_id, None)

    def interrupt(self, way: Obeys) -> None:
        """Interrupt what runs, if it obeys interrupts that come this way."""
        if self._interrupted is not None and not self._interrupted.done() and self._obeys in ("control", way):
            self._interrupted.set_result(None)

    def release_output(self) -> None:
        """Send the outputs that were held."""
        while self._held and not self._kernel.output_held:
            self._deliver(*self._held.popleft())

    def end(self) -> None:
        """Run nothing any more."""
        if self._work is not None:
            self._work.cancel()

    async def _serve(self) -> None:
        try:
            while self._queue:
                request = self._queue.popleft()
                if not self._kernel.answers:
                    await asyncio.get_running_loop().create_future()
                await self._answer_shell(request)
        finally:
            self._work = None

    async def _answer_shell(self, request: Request) -> None:
        await asyncio.sleep(0)
        self._say(request, "status", {"execution_state": "busy"})
        match request.kind:
            case "execute_request":
                await self._execute(request)
                return
            case "state_save_request" | "state_load_request":
                content = await self._interruptible(self._kernel.state.move(request.kind, request.content), "control")
                content = content or {"status": "error", "reason": "it was interrupted"}
            case _:
                content = {"status": "ok"}
        self._reply(request, content)
        self._say(request, "status", {"execution_state": "idle"})

    async def _execute(self, request: Request) -> None:
        code = str(request.content["code"])
        cell = self._kernel.cells.get(code, self._kernel.default)
        silent = request.content.get("silent") is True
        if not silent:
            self._count += 1
            self._kernel.executed.append(code)
        ended = await self._interruptible(self._run_steps(request, cell), cell.obeys)
        error = cell.error if ended else ("KeyboardInterrupt", "")
        content: Content = {"status": "ok", "execution_count": self._count}
        if error is not None:
            output = raised(*error)
            self._say(request, output.kind, output.content)
            content |= {"status": "error", **output.content}
        replies, idles = (cell.replies, cell.idles) if ended else (True, True)
        if replies:
            self._reply(request, content)
        if idles:
            self._say(request, "status", {"execution_state": "idle"})
        if not (replies and idles):
            await self._interruptible(asyncio.Event().wait(), cell.obeys)
            if not replies:
                self._reply(request, content)
            if not idles:
                self._say(request, "status", {"execution_state": "idle"})

    async def _run_steps(self, request: Request, cell: FakeCell) -> bool:
        for step in cell.steps:
            await asyncio.sleep(0)
            match step:
                case Output():
                    self._say(request, step.kind, step.content, step.channel)
                case Wait(None):
                    await asyncio.Event().wait()
                case Wait():
                    await asyncio.sleep(step.seconds or 0.0)
                case Ask():
                    await self._ask(request, step.prompt)
                case Die():
                    self._kernel.die(step.exit)
                case Violate():
                    self._kernel.violate(step.reason, excess=step.excess)
                case Use():
                    self._kernel.use(**step.fields)
        return True

    async def _ask(self, request: Request, prompt: str) -> None:
        self._answer = asyncio.get_running_loop().create_future()
        self._say(request, "input_request", {"prompt": prompt, "password": False}, "stdin")
        output = printed(await self._answer)
        self._say(request, output.kind, output.content)

    async def _interruptible(self, work: Awaitable[T], obeys: Obeys) -> T | None:
        """Return what ``work`` returns; None when it was interrupted."""
        task = asyncio.ensure_future(work)
        self._interrupted, self._obeys = asyncio.get_running_loop().create_future(), obeys
        try:
            waits: set[asyncio.Future[Any]] = {task, self._interrupted}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            self._interrupted.cancel()
            self._interrupted = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _control(self, request: Request) -> None:
        buffers: list[bytes] = []
        content: Content = {"status": "ok"}
        if request.kind == "interrupt_request":
            if self._interrupted is not None and self._obeys == "outside":  # the control thread cannot run
                self._interrupted.add_done_callback(lambda _: self._reply(request, content))
                return
            self.interrupt("control")
        elif request.kind.startswith("file_"):
            content, buffers = self._kernel.files.answer(request.kind, request.content, request.buffers)
        elif request.kind.startswith("state_"):
            content, buffers = self._kernel.state.answer(request.kind, request.content, request.buffers)
        self._reply(request, content, buffers)

    def _reply(self, request: Request, content: Content, buffers: Sequence[bytes] = ()) -> None:
        self._say(request, request.kind.replace("_request", "_reply"), content, request.channel, buffers)

    def _say(
        self, request: Request, kind: str, content: Content, channel: str = "iopub", buffers: Sequence[bytes] = ()
    ) -> None:
        if not self._kernel.is_alive:
            return
        said = request, Message(channel, kind, request.message_id, content, buffers)
        if channel == "iopub" and self._kernel.output_held:
            self._held.append(said)
        else:
            self._deliver(*said)

    def _deliver(self, request: Request, message: Message) -> None:
        size = len(json.dumps(message.content))
        if request.message_id in self._requests and (request.accept is None or request.accept(message.kind, size)):
            request.handler(message)
