"""Blocking: an asynchronous object for callers in other threads. Each method of it waits for its result."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Concatenate, Generic, ParamSpec, TypeVar

from cellblock.loopthread import LoopThread
from cellblock.started import AnyCell, AnyCommand, RunningCell, RunningCommand

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class Blocking(Generic[M_co]):
    """A manager, or what belongs to one, and the thread of its event loop. The functions below make its methods.

    Args:
        wrapped: has the asynchronous methods.
        thread: of the manager that it belongs to; None: one of its own.
    """

    def __init__(self, wrapped: M_co, thread: LoopThread | None = None) -> None:
        self._wrapped = wrapped
        self._thread = thread or LoopThread("cellblock")


def waits(
    method: Callable[Concatenate[M, P], Coroutine[object, object, R]],
) -> Callable[Concatenate[Blocking[M], P], R]:
    """Make a method that waits for a coroutine's result."""

    @functools.wraps(method)
    def call(self: Blocking[M], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._thread.run(lambda: method(self._wrapped, *args, **kwargs))

    return call


def calls(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[Blocking[M], P], R]:
    """Make a method that calls a plain one in the loop's thread."""

    @functools.wraps(method)
    def call(self: Blocking[M], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._thread.call(lambda: method(self._wrapped, *args, **kwargs))

    return call


def enters(
    method: Callable[Concatenate[M, P], AbstractAsyncContextManager[R]],
) -> Callable[Concatenate[Blocking[M], P], AbstractContextManager[R]]:
    """Make a context manager of an asynchronous one."""

    @functools.wraps(method)
    def enter(self: Blocking[M], /, *args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[R]:
        return self._thread.enter(lambda: method(self._wrapped, *args, **kwargs))

    return enter


def iterates(
    method: Callable[Concatenate[M, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Blocking[M], P], Generator[R, None, None]]:
    """Make a generator of an asynchronous one."""

    @functools.wraps(method)
    def iterate(self: Blocking[M], /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        return self._thread.iterate(method(self._wrapped, *args, **kwargs))

    return iterate


def cell_of(
    method: Callable[Concatenate[M, P], AnyCell | Awaitable[AnyCell]],
) -> Callable[Concatenate[Blocking[M], P], RunningCell]:
    """Make a method that starts or finds a cell."""

    @functools.wraps(method)
    def found(self: Blocking[M], /, *args: P.args, **kwargs: P.kwargs) -> RunningCell:
        async def work() -> AnyCell:
            cell = method(self._wrapped, *args, **kwargs)
            return await cell if isinstance(cell, Awaitable) else cell

        return RunningCell(self._thread.run(work), self._thread)

    return found


def command_of(
    method: Callable[Concatenate[M, P], Awaitable[AnyCommand]],
) -> Callable[Concatenate[Blocking[M], P], RunningCommand]:
    """Make a method that starts a command."""

    @functools.wraps(method)
    def started(self: Blocking[M], /, *args: P.args, **kwargs: P.kwargs) -> RunningCommand:
        return RunningCommand(self._thread.run(lambda: method(self._wrapped, *args, **kwargs)), self._thread)

    return started


def commands_of(
    method: Callable[Concatenate[M, P], Sequence[AnyCommand] | Awaitable[Sequence[AnyCommand]]],
) -> Callable[Concatenate[Blocking[M], P], list[RunningCommand]]:
    """Make a method that lists commands."""

    @functools.wraps(method)
    def listed(self: Blocking[M], /, *args: P.args, **kwargs: P.kwargs) -> list[RunningCommand]:
        found = self._thread.settle(lambda: method(self._wrapped, *args, **kwargs))
        return [RunningCommand(command, self._thread) for command in found]

    return listed
