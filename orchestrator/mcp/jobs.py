"""Jobs: what runs for principals, so that a call can be answered before it is over, and asked about again.

Everything that a tool starts is a job with an id. A job outlives its call. Its reply is kept for a while after its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from orchestrator.errors import CellblockError, CommandLimitError, InvalidInputError
from orchestrator.mcp.handles import Handle
from orchestrator.mcp.replies import Reply, failure
from orchestrator.mcp.shelf import Shelf

_MOST_RUNNING = 32  # jobs of one principal
_KEPT = 50  # ended jobs of one principal
_KEPT_BYTES = 32 * 1024 * 1024  # of their replies
_KEPT_TOTAL = 256 * 1024 * 1024  # of the replies of all principals
_TAIL = 32 * 1024  # characters of output that a running job remembers
_CLOSING = 5.0  # seconds that jobs have to end


class Job:
    """A cell, a command or another call that runs.

    Attributes:
        id: unique among those of its principal.
        state: what it does, for a model to read.
        stopper: stops it gently, once it runs. Returns whether that could be done. None: it is cancelled.
        unheard: whether the call that started it was cancelled, so that nobody has its id.
        tail: the end of its output.
    """

    task: asyncio.Task[Reply]

    def __init__(self, handle: Handle, kind: str) -> None:
        self.id = f"{kind}-{secrets.token_hex(3)}"
        self.handle = handle
        self.kind = kind
        self.state = "it waits for its turn"
        self.stopper: Callable[[], bool | Awaitable[bool]] | None = None
        self.unheard = False
        self.tail = ""
        self._started = time.monotonic()

    def heard(self, text: str) -> None:
        """Take a piece of output."""
        self.tail = (self.tail + text)[-_TAIL:]

    @property
    def is_running(self) -> bool:
        return not self.task.done()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def reply(self) -> Reply:
        """The reply of a job that is over.

        Raises:
            Exception: it failed, and not with an error of Cellblock's own.
        """
        if self.task.cancelled():
            return Reply(f"{self.id} was stopped before it was done.", outcome="cancelled")
        return self.task.result()


class Jobs:
    """The jobs of all principals."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Job] = {}
        self._ended: Shelf[Job] = Shelf(items=_KEPT, each=_KEPT_BYTES, total=_KEPT_TOTAL)
        self._stopping: set[asyncio.Future[bool]] = set()
        self._closed = False

    def start(self, handle: Handle, kind: str, work: Callable[[Job], Coroutine[Any, Any, Reply]]) -> Job:
        """Start a job.

        Raises:
            CommandLimitError: as many jobs of this principal run as may.
            InvalidInputError: the server shuts down.
        """
        if self._closed:
            raise InvalidInputError("the server shuts down.")
        if sum(1 for owner, _id in self._running if owner == handle.owner) >= _MOST_RUNNING:
            raise CommandLimitError(f"{_MOST_RUNNING} calls run already; nothing was started.", limit=_MOST_RUNNING)
        job = Job(handle, kind)
        job.task = asyncio.create_task(_replied(work(job)))
        self._running[handle.owner, job.id] = job
        job.task.add_done_callback(lambda _task: self._end(job))
        return job

    def find(self, owner: str, job_id: str) -> Job:
        """Return a job of this principal.

        Raises:
            InvalidInputError: it has no such job, or it ended long ago.
        """
        job = self._running.get((owner, job_id)) or self._ended.get(owner, job_id)
        if job is None:
            known = ", ".join(each.id for each in self.running(owner)) or "nothing"
            raise InvalidInputError(
                f"there is no {job_id[:40]!r}: {known} is running.", remedy="The last 50 that have ended are known."
            )
        return job

    def running(self, owner: str, session: str | None = None) -> list[Job]:
        """Return the jobs of a principal that run, the oldest first; with ``session``, only those of one session."""
        return [
            job for (whose, _id), job in self._running.items() if whose == owner and session in (None, job.handle.name)
        ]

    def ended(self, owner: str, session: str) -> list[Job]:
        """Return the jobs of a session that are over and still known, the oldest first."""
        return [job for job in self._ended.of(owner) if job.handle.name == session]

    def unheard(self, handle: Handle) -> list[Job]:
        """Return the jobs of a session that nobody has heard of, each once."""
        known = [*self.running(handle.owner), *self._ended.of(handle.owner)]
        found = [job for job in known if job.unheard and job.handle == handle]
        for job in found:
            job.unheard = False
        return found

    def stop(self, job: Job) -> None:
        """Stop a job: interrupt a cell, kill a command, cancel anything else. Returns at once."""
        if not job.is_running:
            return
        stopped = False if job.stopper is None else job.stopper()
        if inspect.isawaitable(stopped):
            future = asyncio.ensure_future(stopped)
            self._stopping.add(future)
            future.add_done_callback(lambda done: self._stopped(job, done))
        elif not stopped:
            job.task.cancel()

    async def aclose(self) -> None:
        """Cancel all jobs, and wait up to 5 s for their end. Idempotent."""
        self._closed = True
        tasks = [job.task for job in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSING)

    def _stopped(self, job: Job, done: asyncio.Future[bool]) -> None:
        self._stopping.discard(done)
        if done.cancelled() or done.exception() is not None or not done.result():
            job.task.cancel()

    def _end(self, job: Job) -> None:
        self._running.pop((job.handle.owner, job.id), None)
        job.stopper = None
        size = 1000
        if not job.task.cancelled():
            size = 1000 if job.task.exception() is not None else job.task.result().size
        job.tail = ""
        self._ended.put(job.handle.owner, job.id, job, size)


async def _replied(work: Coroutine[Any, Any, Reply]) -> Reply:
    try:
        return await work
    except CellblockError as error:
        return failure(error)


async def until(job: Job, seconds: float, every: float, tell: Callable[[], Awaitable[None]]) -> bool:
    """Wait for a job, and call ``tell`` now and then. Returns whether the job is over.

    Args:
        seconds: to wait at most.
        every: seconds between two calls of ``tell``.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                done, _pending = await asyncio.wait({job.task}, timeout=every)
                if done:
                    break
                await tell()
    return not job.is_running
