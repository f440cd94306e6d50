"""SandboxedKernel: one kernel of Jupyter, from its connection file to its end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from orchestrator.broker.zmqserving import serve_zmq
from orchestrator.errors import EngineError, InvalidInputError
from orchestrator.jupyter.keptfiles import KeptFiles
from orchestrator.jupyter.notebookfolder import offer_notebook_folder
from orchestrator.kernel.kernel import Kernel
from orchestrator.manager import AgentKernelManager
from orchestrator.outcome import Outcome
from orchestrator.policy.policy import Policy
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings

_LARGEST = 64 * 1024  # bytes of a connection file
_START = 60.0  # seconds to wait for a kernel, or for the end of an earlier one of the same connection file
_LAST_REPLY = 5.0  # seconds that the cell of a lost kernel has to be reported to its client

End = Literal["shutdown", "restart", "lost"]


class SandboxedKernel:
    """Serves the clients of one connection file from one session.

    Jupyter restarts a kernel with a shutdown request, and then starts a new process with the same connection file. So
    the agent's id comes from the connection file, and the files of ``/work`` wait on the host in between.

    Args:
        notebook_folder: where the notebook lies; the sandbox can read it where the policy has ``jupyter.folder``.

    Raises:
        InvalidInputError: the connection file cannot be used.
        PolicyError: the policy cannot be used.
        SettingsError: others can write the folders of this user's data.
    """

    def __init__(self, connection_file: Path, settings: Settings, notebook_folder: Path) -> None:
        self._connection = _read(connection_file)
        identity = hashlib.sha256(f"{connection_file}\0{self._connection['key']}".encode()).hexdigest()[:16]
        self._agent = f"jupyter-{identity}"
        policy, self._notice = offer_notebook_folder(Policy.load(settings.policy), notebook_folder)
        settings.refuse_foreign_folders()
        self._files = KeptFiles(settings.data_path / "jupyter", identity, policy.tmpfs.work_mb)
        self._manager = AgentKernelManager(1, settings=settings, policy=policy)
        self._session: KernelSession | None = None
        self._starting: asyncio.Task[Any] | None = None
        self._end: asyncio.Future[End]

    async def serve(self, alive: int) -> int:
        """Serve until a client, a signal or the end of Jupyter ends the kernel. Returns the exit status.

        Args:
            alive: a file descriptor that can be read once Jupyter has ended the process that it started.

        Raises:
            CellblockError: the kernel could not start. Nothing of it is left.
        """
        self._end = asyncio.get_running_loop().create_future()
        self._starting = asyncio.current_task()
        self._listen(alive)
        try:
            async with self._files.held(_START):
                try:
                    return await self._serve_session()
                finally:
                    await self._manager.shutdown()
        except asyncio.CancelledError:
            if not self._end.done():
                raise
            return 0

    async def _serve_session(self) -> int:
        caller = f"Jupyter, uid {os.getuid()}, pid {os.getpid()}"
        async with self._manager.acquire_kernel(self._agent, timeout=_START, caller=caller) as (_, session):
            reason = "ended by Jupyter"
            try:
                kernel = await self._prepare(session)
                serving = serve_zmq(self._manager, session, self._connection, on_shutdown=self._asked, caller=caller)
                async with serving:
                    self._session, self._starting = session, None
                    kernel.on_lost(lambda: self._ends("lost"))
                    if (end := await self._end) == "lost":
                        reason = await _report_loss(session, kernel)
                if end == "restart":
                    await self._files.save(self._manager, session)
            finally:
                await self._manager.end_session(self._agent, reason=reason)
        return int(end == "lost")

    async def _prepare(self, session: KernelSession) -> Kernel:
        """Return the session's kernel, without variables and with the files of the kernel before a restart."""
        if session.cell_count:  # an earlier process of this connection file was killed, with all that watched it
            await self._manager.restart_kernel(session)
        await self._files.load(self._manager, session)
        if self._notice:
            session.notify(self._notice)
        return session.live_kernel()

    # What ends it

    def _listen(self, alive: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ends, "shutdown")
        self._watch(alive)
        if parent := os.environ.get("JPY_PARENT_PID"):
            try:
                self._watch(os.pidfd_open(int(parent)))
            except (OSError, ValueError):  # it has ended
                self._ends("shutdown")

    def _watch(self, descriptor: int) -> None:
        """End once a process has ended: from then on its descriptor can be read."""
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, self._ends, "shutdown")
        self._end.add_done_callback(lambda _: loop.remove_reader(descriptor))

    def _interrupt(self) -> None:
        if self._session is not None:
            self._session.interrupt()

    def _asked(self, restart: bool) -> None:
        """End, once a client's shutdown request was answered. The broker calls it."""
        self._ends("restart" if restart else "shutdown")

    def _ends(self, end: End) -> None:
        """End the kernel; only the first call counts."""
        if not self._end.done():
            self._end.set_result(end)
            if self._starting is not None:
                self._starting.cancel()


async def _report_loss(session: KernelSession, kernel: Kernel) -> Outcome:
    """Say why the kernel was lost, once its cell's client knows. Returns the reason."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_REPLY), session.between_cells():
            pass
    try:
        ended = await kernel.exit()
        reason, how = ended.reason, ended.describe()
    except EngineError as error:
        reason, how = Outcome.ENGINE_LOST, f"was lost: {error.message}"
    print(f"cellblock: the kernel {how}. Its variables and files are gone.", file=sys.stderr)
    return reason


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a connection file.

    Raises:
        InvalidInputError: it cannot be read, is no connection file, or asks for encryption.
    """
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"the connection file {path} cannot be read: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("key"), str):
        raise InvalidInputError(f"{path} is no connection file of Jupyter: it has no key.")
    if "curve_publickey" in content:
        raise InvalidInputError(
            f"{path} asks for encryption, which Cellblock has not.", remedy="Set transport_encryption to 'disabled'."
        )
    return content
