"""ServerManager: the synchronous manager of a server's kernels. Needs the extra ``client``."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from cellblock.blocking import Blocking, cell_of, command_of, commands_of, enters, iterates, waits
from orchestrator.errors import ManagerClosedError
from orchestrator.remote.remotemanager import RemoteKernelManager


class ServerManager(Blocking[RemoteKernelManager]):
    """The kernels of a server. ``cellblock.sync.Manager.connect`` makes it; use it as a context manager.

    Every method is the one of ``RemoteKernelManager`` with the same name and parameters, and waits for its result. Safe
    to use from several threads. Ctrl-C interrupts the cell that the main thread waits for.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Close the connections, and end the thread. The server's sessions stay as they are. Idempotent."""
        try:
            with contextlib.suppress(ManagerClosedError):  # an earlier call, or one in another thread
                self._thread.run(self._wrapped.shutdown)
        finally:
            self._thread.stop()

    acquire_kernel = enters(RemoteKernelManager.acquire_kernel)
    execute = waits(RemoteKernelManager.execute)
    execute_code = waits(RemoteKernelManager.execute_code)
    stream_code = iterates(RemoteKernelManager.stream_code)
    start_code = cell_of(RemoteKernelManager.start_code)
    find_cell = cell_of(RemoteKernelManager.find_cell)
    interrupt = waits(RemoteKernelManager.interrupt)
    execute_code_for_notebook = waits(RemoteKernelManager.execute_code_for_notebook)
    restart_kernel = waits(RemoteKernelManager.restart_kernel)
    install = waits(RemoteKernelManager.install)
    list_variables = waits(RemoteKernelManager.list_variables)
    put_file = waits(RemoteKernelManager.put_file)
    get_file = waits(RemoteKernelManager.get_file)
    read_file = waits(RemoteKernelManager.read_file)
    write_file = waits(RemoteKernelManager.write_file)
    stat_file = waits(RemoteKernelManager.stat_file)
    exists = waits(RemoteKernelManager.exists)
    list_files = waits(RemoteKernelManager.list_files)
    make_dir = waits(RemoteKernelManager.make_dir)
    move = waits(RemoteKernelManager.move)
    remove = waits(RemoteKernelManager.remove)
    read_folder = iterates(RemoteKernelManager.read_folder)
    write_folder = waits(RemoteKernelManager.write_folder)
    run_command = waits(RemoteKernelManager.run_command)
    stream_command = iterates(RemoteKernelManager.stream_command)
    start_command = command_of(RemoteKernelManager.start_command)
    list_commands = commands_of(RemoteKernelManager.list_commands)
    list_sessions = waits(RemoteKernelManager.list_sessions)
    end_session = waits(RemoteKernelManager.end_session)
    checkpoint = waits(RemoteKernelManager.checkpoint)
    restore = waits(RemoteKernelManager.restore)
    fork = waits(RemoteKernelManager.fork)
    hibernate = waits(RemoteKernelManager.hibernate)
    export_history = waits(RemoteKernelManager.export_history)
    export_notebook = waits(RemoteKernelManager.export_notebook)
    get_kernel_resource_usage = waits(RemoteKernelManager.get_kernel_resource_usage)
