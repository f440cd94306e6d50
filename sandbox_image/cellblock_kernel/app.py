"""Start the kernel of this sandbox: an ipykernel whose sockets dial the host.

The host listens on five unix sockets in the read-only folder of ``connection.json``; every ZMQ socket here
*connects* where ipykernel would bind. Nothing in this package protects the host: the code in a cell can change all
of it. It makes an honest kernel quick, orderly and complete.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import cellblock_session.ondemand  # noqa: F401 - before ipykernel
import zmq
from cellblock_session.surroundings import Surroundings
from ipykernel.control import ControlThread
from ipykernel.heartbeat import Heartbeat
from ipykernel.kernelapp import IPKernelApp
from traitlets.config import Config

from cellblock_kernel.kernel import SandboxKernel
from cellblock_kernel.messages import BoundedSession
from cellblock_kernel.publisher import IOPUB_HIGH_WATER, Publisher
from cellblock_kernel.streams import OrderedStream

CONNECTION_FILE = "/run/kernel/connection.json"
FONT_CACHE = "/opt/cellblock/matplotlib"


class DiallingHeartbeat(Heartbeat):
    """The heartbeat; its socket connects."""

    def _try_bind_socket(self):
        self.socket.connect(f"ipc://{self.ip}-{self.port}")


class NoShellThread:
    """Stands where ipykernel has a thread for subshells, which cost every cell two hops between threads.

    It is false, so that requests come straight to the main thread, and knows that thread: async cells ask it.
    """

    parent_thread = threading.main_thread()

    def __bool__(self):
        return False


class SandboxApp(IPKernelApp):
    """IPKernelApp with dialling sockets, and without what no host asks for (debugger, connection-file writing)."""

    blocking_class = None  # in place of a trait whose default would import all of jupyter_client

    def _try_bind_socket(self, s, port):
        if s.type == zmq.XPUB:
            s.setsockopt(zmq.SNDHWM, IOPUB_HIGH_WATER)
            s.setsockopt(zmq.XPUB_NODROP, 1)
        s.setsockopt(zmq.HANDSHAKE_IVL, 0)  # the host takes one connection, and may have been stopped for a while
        s.connect(f"ipc://{self.ip}-{port}")
        return port

    def init_iopub(self, context):
        socket = context.socket(zmq.XPUB)
        socket.linger = 1000
        self.iopub_port = self._bind_socket(socket, self.iopub_port)
        self.iopub_thread = Publisher(socket, self.session)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_control(self, context):
        # Not super(): it connects a debugger's DEALER to the shell endpoint, where every other request is then lost.
        self.control_socket = context.socket(zmq.ROUTER)
        self.control_socket.linger = 1000
        self.control_port = self._bind_socket(self.control_socket, self.control_port)
        self.debugpy_socket = context.socket(zmq.STREAM)
        self.debug_shell_socket = context.socket(zmq.DEALER)
        self.control_thread = ControlThread(daemon=True)
        self.shell_channel_thread = NoShellThread()

    def _session_default(self):
        return BoundedSession(parent=self, username="kernel")

    def init_heartbeat(self):
        self.heartbeat = DiallingHeartbeat(zmq.Context(), (self.transport, self.ip, self.hb_port))
        self.heartbeat.start()

    def write_connection_file(self, **kwargs):
        """Nothing to write: the host wrote it, and its folder is read-only."""


def configuration():
    config = Config()
    config.SandboxApp.connection_file = CONNECTION_FILE
    config.SandboxApp.kernel_class = SandboxKernel
    config.SandboxApp.outstream_class = f"{OrderedStream.__module__}.{OrderedStream.__name__}"
    config.SandboxApp.log_level = "CRITICAL"
    config.HistoryManager.enabled = False  # the history lives on the host
    config.Completer.use_jedi = False  # its first completion takes a minute under gVisor
    config.SandboxKernel._execute_sleep = 0.0  # the host waits for reply *and* idle, so no late output is missed
    return config


def silence_own_output():
    """Point the process's own file descriptors at /dev/null: what reached the container's log would cost the daemon."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def place_font_cache():
    target = os.environ.get("MPLCONFIGDIR")
    if target and Path(FONT_CACHE).is_dir():
        shutil.copytree(FONT_CACHE, target, dirs_exist_ok=True)


def main():
    place_font_cache()
    BoundedSession.bound = json.loads(Path(CONNECTION_FILE).read_text())["message_bound"]
    app = SandboxApp.instance(config=configuration())
    silence_own_output()
    app.initialize([])
    sys.path.insert(0, "")  # only now: the agent's files are importable, and cannot stand in for what starts here
    app.kernel.surroundings = Surroundings()
    app.start()
