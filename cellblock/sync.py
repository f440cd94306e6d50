"""Manager: AgentKernelManager for programs without an event loop, such as scripts and web frameworks.

    from cellblock.sync import Manager

    with Manager() as manager, manager.acquire_kernel("agent") as (_kernel, session):
        print(manager.execute(session, "1 + 1").result)

Every method is the one of ``AgentKernelManager`` with the same name and parameters, and waits for its result. Sessions
and results are the same objects; use a session only through its manager, and for its attributes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal as signals
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Concatenate, Generic, Never, ParamSpec, Self, TypeVar

from cellblock.loopthread import LoopThread
from orchestrator import (
    AgentKernelManager,
    CommandEvent,
    CommandResult,
    ExecutionResult,
    InputHandler,
    InputRequest,
    ManagerClosedError,
)
from orchestrator import RunningCell as AsyncCell
from orchestrator import RunningCommand as AsyncCommand

__all__ = ["Manager", "RunningCell", "RunningCommand", "answered_by"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def answered_by(function: Callable[[InputRequest], str]) -> InputHandler:
    """Make an input handler of an ordinary function, which is called in a thread of its own and may block.

    Example: ``manager.execute(session, code, answer=answered_by(lambda request: input(request.prompt)))``.
    """

    async def answer(request: InputRequest) -> str:
        return await asyncio.to_thread(function, request)

    return answer


def _waits(
    method: Callable[Concatenate[AgentKernelManager, P], Coroutine[object, object, R]],
) -> Callable[Concatenate[Manager, P], R]:
    @functools.wraps(method)
    def call(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._thread.run(lambda: method(self._manager, *args, **kwargs))

    return call


def _calls(method: Callable[Concatenate[AgentKernelManager, P], R]) -> Callable[Concatenate[Manager, P], R]:
    @functools.wraps(method)
    def call(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._thread.call(lambda: method(self._manager, *args, **kwargs))

    return call


def _enters(
    method: Callable[Concatenate[AgentKernelManager, P], AbstractAsyncContextManager[R]],
) -> Callable[Concatenate[Manager, P], AbstractContextManager[R]]:
    @functools.wraps(method)
    def enter(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[R]:
        return self._thread.enter(lambda: method(self._manager, *args, **kwargs))

    return enter


def _iterates(
    method: Callable[Concatenate[AgentKernelManager, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Manager, P], Generator[R, None, None]]:
    @functools.wraps(method)
    def iterate(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        return self._thread.iterate(method(self._manager, *args, **kwargs))

    return iterate


def _takes(
    maker: Callable[P, T],
) -> Callable[[Callable[[Manager, T], None]], Callable[Concatenate[Manager, P], None]]:
    """Give ``__init__`` the parameters of the class that it wraps."""

    def decorate(initialise: Callable[[Manager, T], None]) -> Callable[Concatenate[Manager, P], None]:
        @functools.wraps(maker, assigned=("__doc__",), updated=())
        def init(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> None:
            initialise(self, maker(*args, **kwargs))

        return init

    return decorate


class RunningCommand:
    """A command that a synchronous manager has started: ``orchestrator.RunningCommand``, whose methods wait here.

    Attributes:
        number, pid, command, started_at: see ``orchestrator.RunningCommand``.
    """

    def __init__(self, command: AsyncCommand, thread: LoopThread) -> None:
        self._command = command
        self._thread = thread
        self.number = command.number
        self.pid = command.pid
        self.command = command.command
        self.started_at = command.started_at

    def __repr__(self) -> str:
        return repr(self._command)

    @property
    def is_running(self) -> bool:
        return self._command.is_running

    def wait(self, timeout: float | None = None) -> CommandResult:
        """See ``orchestrator.RunningCommand.wait``."""
        return self._thread.run(lambda: self._command.wait(timeout))

    def events(self) -> Generator[CommandEvent, None]:
        """See ``orchestrator.RunningCommand.events``."""
        return self._thread.iterate(self._command.events())

    def kill(self, signal: int | str = signals.SIGKILL) -> bool:
        """See ``orchestrator.RunningCommand.kill``."""
        return self._thread.call(lambda: self._command.kill(signal))

    def write(self, data: bytes | str) -> bool:
        """See ``orchestrator.RunningCommand.write``."""
        return self._thread.run(lambda: self._command.write(data))

    def close_stdin(self) -> None:
        """See ``orchestrator.RunningCommand.close_stdin``."""
        self._thread.run(self._command.close_stdin)

    def resize(self, rows: int, columns: int) -> None:
        """See ``orchestrator.RunningCommand.resize``."""
        self._thread.call(lambda: self._command.resize(rows, columns))


class RunningCell:
    """A cell that a synchronous manager has started: ``orchestrator.RunningCell``, whose methods wait here.

    Attributes:
        id, code, started_at: see ``orchestrator.RunningCell``.
    """

    def __init__(self, cell: AsyncCell, thread: LoopThread) -> None:
        self._cell = cell
        self._thread = thread
        self.id = cell.id
        self.code = cell.code
        self.started_at = cell.started_at

    def __repr__(self) -> str:
        return repr(self._cell)

    @property
    def is_running(self) -> bool:
        return self._cell.is_running

    def wait(self, timeout: float | None = None) -> ExecutionResult:
        """See ``orchestrator.RunningCell.wait``."""
        return self._thread.run(lambda: self._cell.wait(timeout))

    def interrupt(self) -> bool:
        """See ``orchestrator.RunningCell.interrupt``."""
        return self._thread.call(self._cell.interrupt)


def _begins(
    method: Callable[Concatenate[AgentKernelManager, P], Coroutine[object, object, AsyncCell]],
) -> Callable[Concatenate[Manager, P], RunningCell]:
    @functools.wraps(method)
    def begin(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> RunningCell:
        return RunningCell(self._thread.run(lambda: method(self._manager, *args, **kwargs)), self._thread)

    return begin


def _finds(
    method: Callable[Concatenate[AgentKernelManager, P], AsyncCell],
) -> Callable[Concatenate[Manager, P], RunningCell]:
    @functools.wraps(method)
    def find(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> RunningCell:
        return RunningCell(self._thread.call(lambda: method(self._manager, *args, **kwargs)), self._thread)

    return find


def _starts(
    method: Callable[Concatenate[AgentKernelManager, P], Coroutine[object, object, AsyncCommand]],
) -> Callable[Concatenate[Manager, P], RunningCommand]:
    @functools.wraps(method)
    def start(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> RunningCommand:
        return RunningCommand(self._thread.run(lambda: method(self._manager, *args, **kwargs)), self._thread)

    return start


def _lists(
    method: Callable[Concatenate[AgentKernelManager, P], list[AsyncCommand]],
) -> Callable[Concatenate[Manager, P], list[RunningCommand]]:
    @functools.wraps(method)
    def listed(self: Manager, /, *args: P.args, **kwargs: P.kwargs) -> list[RunningCommand]:
        found = self._thread.call(lambda: method(self._manager, *args, **kwargs))
        return [RunningCommand(command, self._thread) for command in found]

    return listed


class _Attribute(Generic[R]):
    """An attribute of the wrapped manager, to be read."""

    def __init__(self, read: Callable[[AgentKernelManager], R]) -> None:
        self._read = read

    def __get__(self, manager: Manager, owner: object = None) -> R:
        return self._read(manager._manager)

    def __set__(self, manager: Manager, value: Never) -> None:
        raise AttributeError("the attributes of a synchronous manager are read only.")


class Manager:
    """``AgentKernelManager`` in an event loop of its own, in a thread of its own. Safe to use from several threads.

    Takes the arguments of ``AgentKernelManager``, and has its methods and attributes. Use it as a context manager, or
    call ``shutdown`` at the end: a process that ends without leaves its kernels to the next start on the host.

    Ctrl-C interrupts the cell that the main thread waits for: ``execute`` raises KeyboardInterrupt once the cell has
    ended, and the kernel keeps its variables. SIGTERM is left to the program.

    Raises:
        RuntimeError: a method is called in the event loop's thread, as by an input handler.
    """

    @_takes(AgentKernelManager)
    def __init__(self, manager: AgentKernelManager) -> None:
        self._manager = manager
        self._thread = LoopThread("cellblock")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def shutdown(self, *, keep_sessions: bool | None = None) -> None:
        """Shut down as ``AgentKernelManager.shutdown`` does, and end the thread. Idempotent.

        Args:
            keep_sessions: keep every session; None: as the manager was made.

        Raises:
            EngineError: the engine does not answer; the next start on this host removes what is left.
        """
        try:
            with contextlib.suppress(ManagerClosedError):  # an earlier call, or one in another thread
                self._thread.run(lambda: self._manager.shutdown(keep_sessions=keep_sessions))
        finally:
            self._thread.stop()

    start = _waits(AgentKernelManager.start)
    acquire_kernel = _enters(AgentKernelManager.acquire_kernel)
    execute = _waits(AgentKernelManager.execute)
    execute_code = _waits(AgentKernelManager.execute_code)
    stream_code = _iterates(AgentKernelManager.stream_code)
    read_folder = _iterates(AgentKernelManager.read_folder)
    write_folder = _waits(AgentKernelManager.write_folder)
    start_code = _begins(AgentKernelManager.start_code)
    find_cell = _finds(AgentKernelManager.find_cell)
    restart_kernel = _waits(AgentKernelManager.restart_kernel)
    install = _waits(AgentKernelManager.install)
    list_variables = _waits(AgentKernelManager.list_variables)
    interrupt = _calls(AgentKernelManager.interrupt)
    execute_code_for_notebook = _waits(AgentKernelManager.execute_code_for_notebook)
    put_file = _waits(AgentKernelManager.put_file)
    get_file = _waits(AgentKernelManager.get_file)
    read_file = _waits(AgentKernelManager.read_file)
    write_file = _waits(AgentKernelManager.write_file)
    stat_file = _waits(AgentKernelManager.stat_file)
    exists = _waits(AgentKernelManager.exists)
    list_files = _waits(AgentKernelManager.list_files)
    make_dir = _waits(AgentKernelManager.make_dir)
    move = _waits(AgentKernelManager.move)
    remove = _waits(AgentKernelManager.remove)
    run_command = _waits(AgentKernelManager.run_command)
    stream_command = _iterates(AgentKernelManager.stream_command)
    start_command = _starts(AgentKernelManager.start_command)
    list_commands = _lists(AgentKernelManager.list_commands)
    end_session = _waits(AgentKernelManager.end_session)
    checkpoint = _waits(AgentKernelManager.checkpoint)
    restore = _waits(AgentKernelManager.restore)
    fork = _waits(AgentKernelManager.fork)
    hibernate = _waits(AgentKernelManager.hibernate)
    export_history = _waits(AgentKernelManager.export_history)
    import_history = _waits(AgentKernelManager.import_history)
    export_notebook = _waits(AgentKernelManager.export_notebook)
    get_kernel_resource_usage = _waits(AgentKernelManager.get_kernel_resource_usage)
    sweep_everywhere = _waits(AgentKernelManager.sweep_everywhere)
    apply_retention = _waits(AgentKernelManager.apply_retention)
    note_operator = _calls(AgentKernelManager.note_operator)
    overview = _calls(AgentKernelManager.overview)

    sessions = _Attribute(lambda manager: manager.sessions)
    recovery = _Attribute(lambda manager: manager.recovery)
    runtime = _Attribute(lambda manager: manager.runtime)
    instance_id = _Attribute(lambda manager: manager.instance_id)
    resource_limits = _Attribute(lambda manager: manager.resource_limits)
    max_kernels = _Attribute(lambda manager: manager.max_kernels)
    kernel_name = _Attribute(lambda manager: manager.kernel_name)
    keep_sessions = _Attribute(lambda manager: manager.keep_sessions)
    settings = _Attribute(lambda manager: manager.settings)
    policy = _Attribute(lambda manager: manager.policy)
    telemetry = _Attribute(lambda manager: manager.telemetry)
    monitor = _Attribute(lambda manager: manager.monitor)
    pool = _Attribute(lambda manager: manager.pool)
