"""An event loop in a thread, and its callers in others: results, errors, Ctrl-C, and the end. Without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cellblock.loopthread import LoopThread
from orchestrator import ManagerClosedError

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("test")
    yield thread
    thread.stop()


class Recorder:
    """A context and a stream that record how they were entered and left."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextlib.asynccontextmanager
    async def context(self) -> AsyncIterator[str]:
        task, token = asyncio.current_task(), variable.set("inside")
        try:
            yield "entered"
        except BaseException as error:
            self.seen.append(type(error).__name__)
            raise
        finally:
            await asyncio.sleep(0)
            assert asyncio.current_task() is task
            variable.reset(token)
            self.seen.append("left")

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(1000):
                await asyncio.sleep(0)
                yield number
        finally:
            self.seen.append("closed")


async def fail() -> None:
    raise ZeroDivisionError


def test_values_and_errors_come_back(thread: LoopThread) -> None:
    assert thread.run(lambda: asyncio.sleep(0, "value")) == "value"
    assert thread.call(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        thread.run(fail)


def test_a_context_is_entered_and_left_in_one_task(thread: LoopThread) -> None:
    """As ``asyncio.timeout`` and context variables need it; an error of the body goes through it."""
    recorder = Recorder()
    with thread.enter(recorder.context) as value:
        assert value == "entered"
    with pytest.raises(KeyError), thread.enter(recorder.context):
        raise KeyError
    assert recorder.seen == ["left", "KeyError", "left"]


def test_a_context_may_suppress_an_error(thread: LoopThread) -> None:
    stack = contextlib.AsyncExitStack()
    stack.push(lambda kind, _error, _traceback: kind is KeyError)
    with thread.enter(lambda: stack):
        raise KeyError


def test_a_stream_is_closed_with_its_iterator(thread: LoopThread) -> None:
    recorder = Recorder()
    assert len(list(thread.iterate(recorder.stream()))) == 1000
    numbers = thread.iterate(recorder.stream())
    assert [next(numbers), next(numbers)] == [0, 1]
    numbers.close()
    assert recorder.seen == ["closed", "closed"]


def test_ctrl_c_cancels_what_the_main_thread_waits_for_and_waits_for_its_end(thread: LoopThread) -> None:
    """The next call works."""
    ended = False

    async def slow() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)
            ended = True

    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        thread.run(slow)
    timer.join()
    assert ended
    assert thread.run(lambda: asyncio.sleep(0, 1)) == 1


def test_ctrl_c_inside_a_context_leaves_it(thread: LoopThread) -> None:
    recorder = Recorder()
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt), thread.enter(recorder.context):
        thread.run(lambda: asyncio.sleep(60))
    timer.join()
    assert recorder.seen == ["KeyboardInterrupt", "left"]


def test_threads_wait_beside_each_other(thread: LoopThread) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor(20) as callers:
        assert list(callers.map(lambda number: thread.run(lambda: asyncio.sleep(0.3, number)), range(20))) == [
            *range(20)
        ]
    assert time.monotonic() - begun < 3


def test_a_call_in_the_loops_own_thread_is_refused(thread: LoopThread) -> None:
    with pytest.raises(RuntimeError, match="wait for itself"):
        thread.call(lambda: thread.run(fail))


def test_stop_ends_what_runs_and_leaves_what_was_entered() -> None:
    """Callers get ManagerClosedError; leaving a context after that is quiet. Idempotent."""
    thread, recorder = LoopThread("test"), Recorder()
    with ThreadPoolExecutor(1) as callers:
        waiting = callers.submit(thread.run, lambda: asyncio.sleep(60))
        with thread.enter(recorder.context), contextlib.closing(thread.iterate(recorder.stream())) as numbers:
            next(numbers)
            thread.stop()
            thread.stop()
            assert sorted(recorder.seen) == ["CancelledError", "closed", "left"]
        with pytest.raises(ManagerClosedError):
            waiting.result(5)
    for call in (lambda: thread.run(fail), lambda: thread.enter(recorder.context).__enter__()):
        with pytest.raises(ManagerClosedError):
            call()


def test_a_thread_that_was_never_needed_is_never_started() -> None:
    before = threading.active_count()
    thread = LoopThread("test")
    thread.stop()
    assert threading.active_count() == before
