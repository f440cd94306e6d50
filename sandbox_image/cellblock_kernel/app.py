"""Start the kernel of this sandbox: an ipykernel whose sockets connect to the host.

The host listens on five Unix sockets in the read-only folder of ``connection.json``. Each ZMQ socket here *connects*
where ipykernel would bind. Nothing in this package protects the host, because the code in a cell can change all of it.
The package makes an honest kernel fast, orderly and complete.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import cellblock_session.ondemand  # noqa: F401 - before ipykernel
import zmq
from cellblock_session.surroundings import Surroundings
from cellblock_site.machine import PACKAGES
from ipykernel.heartbeat import Heartbeat
from ipykernel.kernelapp import IPKernelApp
from tornado.ioloop import IOLoop
from traitlets.config import Config

from cellblock_kernel.kernel import SandboxKernel
from cellblock_kernel.loops import LastingControlThread
from cellblock_kernel.messages import BoundedSession
from cellblock_kernel.publisher import IOPUB_HIGH_WATER, Publisher
from cellblock_kernel.spawning import prepare as prepare_spawning
from cellblock_kernel.streams import OrderedStream

CONNECTION_FILE = "/run/kernel/connection.json"
MOST_STUCK = 100  # starts of an event loop that runs nothing
FONT_CACHE = "/opt/cellblock/matplotlib"


class ConnectingHeartbeat(Heartbeat):
    """ipykernel's heartbeat, with a socket that connects."""

    def _try_bind_socket(self) -> None:
        self.socket.connect(f"ipc://{self.ip}-{self.port}")


class NoShellThread:
    """Takes the place of ipykernel's thread for subshells, which costs every cell two hops between threads.

    It is false, so requests go straight to the main thread. It knows the main thread because async cells ask for it.
    """

    parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class SandboxApp(IPKernelApp):
    """IPKernelApp with sockets that connect, without a debugger and without writing a connection file."""

    stuck = 0  # starts of the event loop since it last ran a callback

    blocking_class = None  # replaces a trait whose default would import all of jupyter_client

    def _try_bind_socket(self, s: Any, port: int) -> int:
        if s.type == zmq.XPUB:
            s.setsockopt(zmq.SNDHWM, IOPUB_HIGH_WATER)
            s.setsockopt(zmq.XPUB_NODROP, 1)
        s.setsockopt(zmq.HANDSHAKE_IVL, 0)  # no timeout: the host takes one connection and may have been suspended
        s.connect(f"ipc://{self.ip}-{port}")
        return port

    def init_iopub(self, context: Any) -> None:
        socket = context.socket(zmq.XPUB)
        socket.linger = 1000
        self.iopub_port = self._bind_socket(socket, self.iopub_port)
        self.iopub_thread = Publisher(socket, self.session)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_control(self, context: Any) -> None:
        # Not super(): it connects a debugger's DEALER to the shell endpoint, which then gets every other request.
        self.control_socket = context.socket(zmq.ROUTER)
        self.control_socket.linger = 1000
        self.control_port = self._bind_socket(self.control_socket, self.control_port)
        self.debugpy_socket = context.socket(zmq.STREAM)
        self.debug_shell_socket = context.socket(zmq.DEALER)
        self.control_thread = LastingControlThread(daemon=True)
        self.shell_channel_thread = NoShellThread()

    def _session_default(self) -> BoundedSession:
        return BoundedSession(parent=self, username="kernel")

    def init_heartbeat(self) -> None:
        self.heartbeat = ConnectingHeartbeat(zmq.Context(), (self.transport, self.ip, self.hb_port))
        self.heartbeat.start()

    def start(self) -> None:
        """Serve until the container ends, whatever a task, a callback or a signal handler of the session raises.

        asyncio's loop stops when one raises SystemExit or KeyboardInterrupt, or a signal handler anything at all.
        """
        self.kernel.start()
        loop = IOLoop.current()
        self.io_loop = loop
        while self.kernel._shutdown_message is None:
            self.stuck += 1
            try:
                loop.add_callback(self._note_progress)
                loop.start()
                self.kernel.warn("asyncio: the event loop was stopped between two cells; it was started again")
            except BaseException as error:  # noqa: BLE001
                self.kernel.warn(f"between two cells, a task or signal handler raised {type(error).__name__}: {error}")
            if self.stuck > MOST_STUCK:
                os._exit(1)  # a cell has closed the loop or replaced its methods: the host reports the kernel lost

    def _note_progress(self) -> None:
        self.stuck = 0

    def write_connection_file(self, **kwargs: Any) -> None:
        """Write nothing: the host wrote the file, and its folder is read-only."""


def configuration() -> Config:
    """Return the configuration of the app, the kernel and IPython."""
    config = Config()
    config.SandboxApp.connection_file = CONNECTION_FILE
    config.SandboxApp.kernel_class = SandboxKernel
    config.SandboxApp.outstream_class = f"{OrderedStream.__module__}.{OrderedStream.__name__}"
    config.SandboxApp.log_level = "CRITICAL"
    config.HistoryManager.enabled = False  # the host keeps the history
    config.Completer.use_jedi = False  # jedi's first completion takes a minute under gVisor
    config.SandboxKernel._execute_sleep = 0.0  # the host waits for the reply *and* "idle", so it misses no late output
    return config


def silence_own_output() -> None:
    """Point file descriptors 0 to 2 at /dev/null, because the daemon has to store what reaches the container's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def place_font_cache() -> None:
    """Copy the image's font cache to where matplotlib looks for it."""
    target = os.environ.get("MPLCONFIGDIR")
    if target and Path(FONT_CACHE).is_dir():
        shutil.copytree(FONT_CACHE, target, dirs_exist_ok=True)


def main() -> None:
    """Run the kernel until the container ends."""
    place_font_cache()
    BoundedSession.bound = json.loads(Path(CONNECTION_FILE).read_text())["message_bound"]
    app = SandboxApp.instance(config=configuration())
    silence_own_output()
    app.initialize([])
    os.makedirs(PACKAGES, exist_ok=True)  # before the surroundings are noted: it is not the session's
    sys.path.insert(0, "")  # only now: the agent's files become importable but cannot replace modules of this start
    prepare_spawning()
    app.kernel.surroundings = Surroundings()
    app.start()
