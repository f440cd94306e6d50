"""Calls: how a tool's call becomes a job, and a job's reply an answer. What the tools are, ``Tooling`` says."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any
from weakref import WeakValueDictionary

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from orchestrator.errors import CellblockError, KernelTimeoutError
from orchestrator.mcp import replies
from orchestrator.mcp.facade import Facade, settled
from orchestrator.mcp.handles import Handle, handle_of
from orchestrator.mcp.jobs import Job, Jobs, until
from orchestrator.mcp.replies import Attachment, Link, Reply
from orchestrator.mcp.shelf import Shelf
from orchestrator.notebooks.dispatcher import Dispatcher
from orchestrator.notebooks.notebooks import Notebooks
from orchestrator.notebooks.operation import RUNNING, checked
from orchestrator.notebooks.sandboxfiles import SandboxFiles
from orchestrator.output.commandresult import CommandOutput
from orchestrator.output.events import CellFinished, Event, StreamOutput

PATIENCE = 45.0  # seconds after which a call is answered, whatever runs: clients give up after 60
KERNEL_WAIT = 60.0  # seconds that a job waits for a free kernel
SCHEME = "cellblock://output/"
_KILLING = 3.0  # seconds that a server has to kill a command; shorter than jobs have to end
_SIGN_OF_LIFE = 5.0  # seconds between two notifications of progress
_NAMES = 100  # of sessions of one principal that are remembered
_ALL_NAMES = 100_000  # of all principals

Ctx = Context[Any, Any]
NotebooksOf = Callable[[Any], Notebooks]


class Calls:
    """Carries calls out, over a manager.

    Args:
        owner_of: returns the principal of a call.
        patience: seconds after which a call is answered.
    """

    def __init__(
        self,
        manager: Facade,
        owner_of: Callable[[Ctx], str],
        resources: Shelf[Attachment],
        patience: float,
        notebooks_of: NotebooksOf | None = None,
    ) -> None:
        self._manager = manager
        self._owner_of = owner_of
        self._resources = resources
        self._patience = patience
        self._turns: WeakValueDictionary[Handle, asyncio.Lock] = WeakValueDictionary()
        self._names: Shelf[str] = Shelf(items=_NAMES, each=_NAMES, total=_ALL_NAMES)
        self._notebooks_of = notebooks_of
        self._notebooks: Shelf[Notebooks] = Shelf(items=_NAMES, each=_NAMES, total=_ALL_NAMES)
        self.jobs = Jobs()

    async def _on_kernel(
        self, ctx: Ctx, session: str, kind: str, work: Callable[[Any], Coroutine[Any, Any, Reply]]
    ) -> CallToolResult:
        async def on_kernel(job: Job) -> Reply:
            async with self._kernel(job) as kernel:
                return self._linked(job.handle, await work(kernel))

        return await self._started(ctx, session, kind, on_kernel)

    async def _started(
        self,
        ctx: Ctx,
        session: str,
        kind: str,
        work: Callable[[Job], Coroutine[Any, Any, Reply]],
        check: Callable[[], object] = lambda: None,
    ) -> CallToolResult:
        def start() -> Job:
            handle = handle_of(self._owner_of(ctx), session)
            check()
            return self.jobs.start(handle, kind, work)

        return await self._answered(ctx, start)

    async def _answered(self, ctx: Ctx, begin: Callable[[], Job], patience: float | None = None) -> CallToolResult:
        """Return a job's reply, or what it has put out when the client's patience ends.

        A call that is cancelled stops its job. The session's next reply names the job, whose id nobody has.
        """
        try:
            job = begin()
        except CellblockError as error:
            return replies.to_mcp(replies.failure(error))
        waited = self._patience if patience is None else patience
        try:
            over = await until(
                job,
                waited,
                min(_SIGN_OF_LIFE, waited / 3),
                lambda: ctx.report_progress(job.age_s, None, f"{job.id}: {job.state}"),
            )
        except asyncio.CancelledError:
            job.unheard = True
            self.jobs.stop(job)
            raise
        job.unheard = False
        so_far = replies.output_so_far(job.tail)
        reply = job.reply if over else replies.unfinished(job.id, job.state, job.age_s, so_far)
        return replies.to_mcp(reply, job.id, [_note(each) for each in self.jobs.unheard(job.handle)])

    @contextlib.asynccontextmanager
    async def _kernel(self, job: Job) -> AsyncGenerator[Any, None]:
        job.state = "it waits for a kernel"
        leased = self._manager.acquire_kernel(
            job.handle.agent_id, KERNEL_WAIT, caller=f"mcp, principal {job.handle.owner}"
        )
        async with leased as (_kernel, session):
            self._names.put(job.handle.owner, job.handle.name, job.handle.name, 1)
            job.state = "it is still running"
            yield session

    async def _cell(self, job: Job, code: str, timeout: float) -> Reply:
        """Run a cell when its turn comes. A cell that waits is cancelled, and one that runs is interrupted."""
        turn = self._turns.setdefault(job.handle, asyncio.Lock())
        async with turn, self._kernel(job) as session:
            job.stopper = lambda: self._manager.interrupt(session)
            events = self._manager.stream_code(session, code, timeout=timeout or None)
            try:
                async with contextlib.aclosing(events):
                    async for event in events:
                        if isinstance(event, StreamOutput):
                            job.heard(event.text)
                        elif isinstance(event, CellFinished):
                            result = event.result
            except KernelTimeoutError as error:
                result = error.result
        return self._linked(job.handle, await asyncio.to_thread(replies.cell, result))

    async def _notebook(self, job: Job, request: dict[str, Any]) -> Reply:
        """Carry out an operation of the notebook protocol: one that runs cells, when its turn comes."""
        op, _fields = checked(request)
        turn = self._turns.setdefault(job.handle, asyncio.Lock()) if op in RUNNING else contextlib.nullcontext()
        async with turn, self._kernel(job) as session:
            job.stopper = lambda: self._manager.interrupt(session)

            def listen(event: Event) -> None:
                if isinstance(event, StreamOutput):
                    job.heard(event.text)

            answer = await Dispatcher(self._notebooks_in(job.handle, session)).dispatch(request, listen=listen)
        return self._linked(job.handle, await asyncio.to_thread(replies.notebook, answer))

    def _notebooks_in(self, handle: Handle, session: Any) -> Notebooks:
        """Return the open notebooks of a session. Their files are those of the sandbox."""
        if self._notebooks_of is not None:
            return self._notebooks_of(session)
        found = self._notebooks.get(handle.owner, handle.name)
        files = SandboxFiles(self._manager, session)
        if found is None:
            found = Notebooks(self._manager, session, files=files)
            self._notebooks.put(handle.owner, handle.name, found, 1)
        found.continue_with(session, files)
        return found

    async def _command(self, job: Job, command: str, cwd: str, timeout: float) -> Reply:
        async with self._kernel(job) as session:
            running = await self._manager.start_command(session, command, cwd=cwd, timeout=timeout or None)
            job.stopper = running.kill
            try:
                async with contextlib.aclosing(running.events()) as events:
                    async for event in events:
                        if isinstance(event, CommandOutput):
                            job.heard(event.data.decode("utf-8", "replace"))
                result = await running.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(CellblockError, TimeoutError):
                    async with asyncio.timeout(_KILLING):
                        await settled(running.kill())
                raise
        return self._linked(job.handle, await asyncio.to_thread(replies.command, result))

    def _linked(self, handle: Handle, reply: Reply) -> Reply:
        def keep(attached: Attachment) -> Link:
            key, size = secrets.token_hex(8), len(attached.content)
            self._resources.put(handle.owner, key, attached, size)
            return Link(f"{SCHEME}{key}", attached.name, attached.mime, size)

        return replies.linked(reply, keep)


def _note(job: Job) -> str:
    state = "still runs" if job.is_running else "is over"
    return f'An earlier call was given up, and its {job.id} {state}: wait("{job.id}") returns its output'
