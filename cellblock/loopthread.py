"""An event loop in a thread of its own, for callers in other threads that wait for its results.

It knows nothing of kernels. Each call blocks its caller, and only its caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

from orchestrator.errors import ManagerClosedError

R = TypeVar("R")
_END: Final = object()


class LoopThread:
    """Runs coroutines for callers in other threads. The thread starts with the first call.

    KeyboardInterrupt in a caller cancels what it waits for, waits until that has ended, and is then raised.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._stopped = False

    def run(self, work: Callable[[], Awaitable[R]]) -> R:
        """Await what ``work`` returns, in the loop, and return its value.

        Raises:
            ManagerClosedError: ``stop`` was called.
            RuntimeError: called in the loop's own thread, which would wait for itself.
        """
        with self._strand() as strand:
            return self._result(strand, work)

    def call(self, function: Callable[[], R]) -> R:
        """Call a function in the loop's thread, and return its value. Raises what ``run`` raises."""

        async def work() -> R:
            return function()

        return self.run(work)

    def settle(self, function: Callable[[], R | Awaitable[R]]) -> R:
        """Call a function in the loop's thread, and return its value, awaited if it must be. See ``run``."""

        async def work() -> R:
            value = function()
            return await value if inspect.isawaitable(value) else value

        return self.run(work)

    @contextlib.contextmanager
    def enter(self, context: Callable[[], AbstractAsyncContextManager[R]]) -> Iterator[R]:
        """Enter and leave an asynchronous context, both in one task of the loop. ``stop`` leaves it, too.

        Raises:
            ManagerClosedError, RuntimeError: see ``run``.
        """
        with self._strand() as strand:
            try:
                yield self._result(strand, lambda: strand.stack.enter_async_context(context()))
            except BaseException as error:
                if not self._leave(strand, error):
                    raise
            else:
                self._leave(strand, None)

    def iterate(self, stream: AsyncGenerator[R, None]) -> Generator[R, None, None]:
        """Yield what an asynchronous generator yields; closing this one closes that one. ``stop`` closes it, too.

        Raises:
            ManagerClosedError, RuntimeError: see ``run``.
        """

        async def begin() -> None:
            strand.stack.push_async_callback(stream.aclose)

        async def step() -> Any:
            return await anext(stream, _END)

        with self._strand() as strand:
            try:
                self._result(strand, begin)
                while (item := self._result(strand, step)) is not _END:
                    yield item
            finally:
                if threading.current_thread() is not self._thread:  # the garbage collector may close it there
                    self._leave(strand, None)

    def stop(self) -> None:
        """Cancel what still runs, end the thread and wait for its end. Idempotent."""
        with self._lock:
            self._stopped = True
        if self._thread is not None and self._stopping is not None:
            self._post(self._stopping.set)
            if threading.current_thread() is not self._thread:
                self._thread.join()

    @contextlib.contextmanager
    def _strand(self) -> Iterator[_Strand]:
        strand = _Strand()
        try:
            yield strand
        finally:
            self._post(strand.end)

    def _result(self, strand: _Strand, work: Callable[[], Awaitable[R]]) -> R:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a synchronous call in the event loop's own thread would wait for itself.")
        done: Future[R] = Future()
        with self._lock:
            if self._stopped:
                raise _closed()
            if self._thread is None:
                self._start()
            self._pending.add(done)
        done.add_done_callback(self._pending.discard)
        self._post(lambda: strand.begin(work, done))
        try:
            return done.result()
        except KeyboardInterrupt:
            self._post(lambda: strand.cancel(done))
            done.exception()  # waits for the end; a second Ctrl-C ends the wait
            raise

    def _leave(self, strand: _Strand, error: BaseException | None) -> bool:
        """Leave what the strand has entered. Return whether that suppresses the error."""
        kind, traceback = (None, None) if error is None else (type(error), error.__traceback__)
        with contextlib.suppress(ManagerClosedError):  # `stop` has left it
            return bool(self._result(strand, lambda: strand.stack.__aexit__(kind, error, traceback)))
        return False

    def _post(self, function: Callable[[], object]) -> None:
        """Have the loop call a function; does nothing when the loop is closed, where ``_serve`` fails what waits."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function)

    def _start(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._serve, args=(started,), name=self._name, daemon=True)
        self._thread.start()
        self._loop = started.result()

    def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def until_stopped() -> None:
            self._stopping = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._stopping.wait()

        try:
            asyncio.run(until_stopped())
        finally:
            with self._lock:
                self._stopped = True
                left = [done for done in self._pending if not done.done()]
            for done in left:
                done.set_exception(_closed())


class _Strand:
    """Runs the steps of one call one after another, all in one task: timeouts and context variables need that.

    Its methods are called in the loop's thread.

    Attributes:
        stack: what the steps have entered; left at the latest when the task ends.
    """

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self._steps: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], Future[Any]] | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    def begin(self, work: Callable[[], Awaitable[Any]], done: Future[Any]) -> None:
        """Run one step after those before it; ``done`` gets its value or its exception."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._steps.put_nowait((work, done))

    def cancel(self, done: Future[Any]) -> None:
        """Cancel the step of ``done``, unless it has ended."""
        if self._task is not None and not done.done():
            self._cancelled = True
            self._task.cancel()

    def end(self) -> None:
        """Let the task end after its last step."""
        self._steps.put_nowait(None)

    async def _run(self) -> None:
        async with self.stack:
            while (step := await self._steps.get()) is not None:
                await self._take(*step)

    async def _take(self, work: Callable[[], Awaitable[Any]], done: Future[Any]) -> None:
        try:
            done.set_result(await work())
        except asyncio.CancelledError:
            if not self._cancelled:
                raise  # the loop ends: `LoopThread` fails what waits
            self._cancelled = False
            assert self._task is not None
            self._task.uncancel()
            done.set_exception(CancelledError())
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller in the other thread
            done.set_exception(error)


def _closed() -> ManagerClosedError:
    return ManagerClosedError()
