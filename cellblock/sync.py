"""Manager: AgentKernelManager for programs without an event loop, such as scripts and web frameworks.

    from cellblock.sync import Manager

    with Manager() as manager, manager.acquire_kernel("agent") as (_kernel, session):
        print(manager.execute(session, "1 + 1").result)

Every method is the one of ``AgentKernelManager`` with the same name and parameters, and waits for its result. Sessions
and results are the same objects; use a session only through its manager, and for its attributes. ``Manager.connect``
returns the same over a server. ``Notebooks`` and ``Dispatcher`` are the notebooks of a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, Generic, Never, ParamSpec, Self, TypeVar

from cellblock.blocking import Blocking, calls, cell_of, command_of, commands_of, enters, iterates, waits
from cellblock.started import RunningCell, RunningCommand
from cellblock.syncnotebooks import Dispatcher, Notebooks
from orchestrator import AgentKernelManager, InputHandler, InputRequest, ManagerClosedError

if TYPE_CHECKING:
    from cellblock.servermanager import ServerManager

__all__ = ["Dispatcher", "Manager", "Notebooks", "RunningCell", "RunningCommand", "answered_by"]

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


class _Attribute(Generic[R]):
    """An attribute of the wrapped manager, to be read."""

    def __init__(self, read: Callable[[AgentKernelManager], R]) -> None:
        self._read = read

    def __get__(self, manager: Manager, owner: object = None) -> R:
        return self._read(manager._wrapped)

    def __set__(self, manager: Manager, value: Never) -> None:
        raise AttributeError("the attributes of a synchronous manager are read only.")


class Manager(Blocking[AgentKernelManager]):
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
        super().__init__(manager)

    @staticmethod
    def connect(
        url: str,
        *,
        token: str | None = None,
        uds: str | Path | None = None,
        verify: str | bool = True,
        policy: str = "",
    ) -> ServerManager:
        """Return the manager of a server, ``cellblock serve``: the same calls, types and errors.

        It connects with its first call. Use it as a context manager; needs the extra ``client``.

        Args and errors: see ``AgentKernelManager.connect``.
        """
        remote = AgentKernelManager.connect(url, token=token, uds=uds, verify=verify, policy=policy)
        from cellblock.servermanager import ServerManager

        return ServerManager(remote)

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
                self._thread.run(lambda: self._wrapped.shutdown(keep_sessions=keep_sessions))
        finally:
            self._thread.stop()

    start = waits(AgentKernelManager.start)
    acquire_kernel = enters(AgentKernelManager.acquire_kernel)
    execute = waits(AgentKernelManager.execute)
    execute_code = waits(AgentKernelManager.execute_code)
    stream_code = iterates(AgentKernelManager.stream_code)
    read_folder = iterates(AgentKernelManager.read_folder)
    write_folder = waits(AgentKernelManager.write_folder)
    start_code = cell_of(AgentKernelManager.start_code)
    find_cell = cell_of(AgentKernelManager.find_cell)
    restart_kernel = waits(AgentKernelManager.restart_kernel)
    install = waits(AgentKernelManager.install)
    list_variables = waits(AgentKernelManager.list_variables)
    interrupt = calls(AgentKernelManager.interrupt)
    execute_code_for_notebook = waits(AgentKernelManager.execute_code_for_notebook)
    put_file = waits(AgentKernelManager.put_file)
    get_file = waits(AgentKernelManager.get_file)
    read_file = waits(AgentKernelManager.read_file)
    write_file = waits(AgentKernelManager.write_file)
    stat_file = waits(AgentKernelManager.stat_file)
    exists = waits(AgentKernelManager.exists)
    list_files = waits(AgentKernelManager.list_files)
    make_dir = waits(AgentKernelManager.make_dir)
    move = waits(AgentKernelManager.move)
    remove = waits(AgentKernelManager.remove)
    run_command = waits(AgentKernelManager.run_command)
    stream_command = iterates(AgentKernelManager.stream_command)
    start_command = command_of(AgentKernelManager.start_command)
    list_commands = commands_of(AgentKernelManager.list_commands)
    list_sessions = waits(AgentKernelManager.list_sessions)
    end_session = waits(AgentKernelManager.end_session)
    checkpoint = waits(AgentKernelManager.checkpoint)
    restore = waits(AgentKernelManager.restore)
    fork = waits(AgentKernelManager.fork)
    hibernate = waits(AgentKernelManager.hibernate)
    drain = waits(AgentKernelManager.drain)
    undrain = calls(AgentKernelManager.undrain)
    export_history = waits(AgentKernelManager.export_history)
    import_history = waits(AgentKernelManager.import_history)
    export_notebook = waits(AgentKernelManager.export_notebook)
    get_kernel_resource_usage = waits(AgentKernelManager.get_kernel_resource_usage)
    sweep_everywhere = waits(AgentKernelManager.sweep_everywhere)
    apply_retention = waits(AgentKernelManager.apply_retention)
    note_operator = calls(AgentKernelManager.note_operator)
    overview = calls(AgentKernelManager.overview)
    capacity = calls(AgentKernelManager.capacity)

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
