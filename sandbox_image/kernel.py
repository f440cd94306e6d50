"""Start the kernel of this sandbox: an ipykernel whose sockets dial the host.

The host listens on five unix sockets in the read-only folder of ``connection.json``; every ZMQ socket here
*connects* where ipykernel would bind. Nothing in this file protects the host: the code in a cell can change all
of it. It makes an honest kernel quick, orderly and complete.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import json
import linecache
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import cellblock_session.ondemand  # noqa: F401 - before ipykernel
import zmq
from cellblock_session.surroundings import Surroundings
from ipykernel.control import ControlThread
from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.heartbeat import Heartbeat
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core import interactiveshell
from jupyter_client.session import Session
from traitlets import Type
from traitlets.config import Config

CONNECTION_FILE = "/run/kernel/connection.json"
FONT_CACHE = "/opt/cellblock/matplotlib"

# One stream message carries at most this many characters, so that a single print of any length stays far below the
# host's bound on a message, and that IOPUB_HIGH_WATER of them, which an interrupted cell still has to get rid of, are
# soon taken. Text beyond ASCII takes up to four times the room on the host, and control characters six.
STREAM_PIECE = 256 * 1024
WIDE_PIECE = 64 * 1024
# A cell that prints faster than the host reads waits once this much text is buffered.
STREAM_BUFFER = 1024 * 1024
# What a message of its own costs, in characters: a thousand short lines in turn on both streams fill the buffer too.
PIECE_COST = 1024
# Messages that wait for the host before the publishing thread waits too (XPUB_NODROP).
IOPUB_HIGH_WATER = 25
# Seconds after an interrupt in which another one is the same.
INTERRUPT_PAUSE = 0.5
# Seconds after which a thread has to let another one run, from an interrupt to the cell's end: with three busy threads
# beside it a cell then took 1.0 s to end under gVisor, not 1.7 s. Always, it would cost such threads a tenth.
HURRIED_SWITCH = 0.001


UNUSUAL = bytes(code for code in range(32) if chr(code) not in "\n\r\t")


class Outbox:
    """What the streams have taken and not sent yet, in the order of writing, whichever of the two it was written to.

    ipykernel buffers each stream for itself, so that a line on stderr between two on stdout arrives after both.
    """

    in_child = False  # whether this process was forked from the kernel's

    def __init__(self):
        self._empty()
        os.register_at_fork(after_in_child=self._enter_child)

    def _enter_child(self):
        self.in_child = True
        self._empty()  # what waits is the parent's to send, and the lock may be held

    def _empty(self):
        self._lock = threading.RLock()
        self._pieces = []
        self.size = self._taken = 0

    def put(self, stream, text):
        parent = stream.parent_header
        with self._lock:
            if not self._pieces or self._pieces[-1][0] is not stream or self._pieces[-1][1] != parent:
                self._pieces.append((stream, parent, []))
                self.size += PIECE_COST
            self._pieces[-1][2].append(text)
            self.size += len(text)

    def take(self):
        """Return (stream, parent header, text) of all that waits, and its size, which counts until it was ``sent``."""
        with self._lock:
            pieces = [(stream, parent, "".join(texts)) for stream, parent, texts in self._pieces]
            self._pieces, size = [], self.size - self._taken
            self._taken += size
        return pieces, size

    def sent(self, size):
        with self._lock:
            self.size -= size
            self._taken -= size


def is_plain(text):
    """Whether JSON takes at most twice the room for it."""
    return text.isascii() and len(text.encode().translate(None, UNUSUAL)) == len(text)


class OrderedStream(OutStream):
    """stdout or stderr; both go through one outbox."""

    _outbox = Outbox()

    def __init__(self, *args, **kwargs):
        self._fd_lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a character
        super().__init__(*args, **kwargs)

    def _is_master_process(self):
        return not self._outbox.in_child  # ipykernel asks the system, at every write

    def write(self, string):
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        if not string.isascii():
            string = string.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate fits into no message
        self._outbox.put(self, string)
        # No lock is held from here on: the publishing thread may have to wait for the host, and others for it.
        if not self._is_master_process():
            self._flush()
        elif self._outbox.size > STREAM_BUFFER:
            self.flush()
        else:
            self._schedule_flush()
        return len(string)

    def _flush(self):
        """Send all that waits. Called in the publishing thread; in a forked child, which has none, by the writer."""
        self._flush_pending = False
        publishes = threading.current_thread() is self.pub_thread.thread
        # Not through the thread's own queue: it would wait for itself once that is full.
        target = self.pub_thread.socket if publishes and self._is_master_process() else self.pub_thread
        pieces, size = self._outbox.take()
        try:
            for stream, parent, text in pieces:
                longest = STREAM_PIECE if is_plain(text) else WIDE_PIECE
                for start in range(0, len(text), longest):
                    content = {"name": stream.name, "text": text[start : start + longest]}
                    self.session.pid = os.getpid()  # this thread survives a fork; Session would refuse to send
                    self.session.send(target, self.session.msg("stream", content, parent=parent), ident=stream.topic)
        finally:
            self._outbox.sent(size)

    def flush(self):
        """Wait until all that was written is sent; not where nothing is.

        ipykernel flushes six times in a trivial cell, and each takes two hops between threads: 3 of 12 ms under gVisor.
        """
        if self._outbox.size:
            super().flush()
        else:
            self._flush_pending = False  # the other stream's flush may have sent what this one was to

    def close(self):
        """Send what waits. A cell that closes its stdout would else end all output of this kernel, and wedge it."""
        self.flush()

    def _setup_stream_redirects(self, name):
        super()._setup_stream_redirects(name)
        flags = fcntl.fcntl(self._fid, fcntl.F_GETFL)
        fcntl.fcntl(self._fid, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def _watch_pipe_fd(self):
        while self._should_watch:
            select.select([self._fid], [], [])
            self.drain()

    def drain(self):
        """Take over what C code and child processes have written to the file descriptor so far: at most a pipe full.

        Not until there is nothing: a child that goes on writing would keep its cell from ending.
        """
        if self._fid is None:
            return
        with self._fd_lock:
            left = fcntl.fcntl(self._fid, fcntl.F_GETPIPE_SZ)
            while left > 0:
                try:
                    data = os.read(self._fid, left)
                except BlockingIOError:
                    return
                if not data:  # the cell closed the descriptor
                    self._should_watch = False
                    return
                left -= len(data)
                self.write(self._decoder.decode(data))


def shorten(value, longest):
    """Cut every text inside ``value`` to ``longest`` characters, and say so in its place."""
    if isinstance(value, str) and len(value) > longest:
        half = longest // 2
        return f"{value[:half]}\n[... {len(value) - 2 * half} characters left out ...]\n{value[-half:]}"
    if isinstance(value, dict):
        return {key: shorten(item, longest) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shorten(item, longest) for item in value]
    return value


def without_surrogates(value):
    """Replace every lone surrogate inside ``value``."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_surrogates(item) for item in value]
    return value


def shorten_bundle(data, longest):
    """Leave out every large item of a mime bundle but its plain text, which names them."""
    sizes = {mime: len(json.dumps(item, default=str)) for mime, item in data.items() if mime != "text/plain"}
    large = {mime: size for mime, size in sizes.items() if size > longest}
    said = "".join(f"\n[{mime} of {size} bytes left out]" for mime, size in large.items())
    kept = {mime: item for mime, item in data.items() if mime not in large}
    return {**kept, "text/plain": shorten(str(kept.get("text/plain", "")), longest) + said}


class BoundedSession(Session):
    """A Session whose messages stay below the host's bound; past it the host ends the kernel.

    A message that was shortened says by how many bytes, in its content's "left_out".
    """

    bound = 2**23  # bytes; replaced from connection.json

    def serialize(self, msg, ident=None):
        try:
            frames = super().serialize(msg, ident)
        except UnicodeEncodeError:
            msg = {**msg, "content": without_surrogates(msg["content"])}
            frames = super().serialize(msg, ident)
        size = sum(map(len, frames))
        if size <= self.bound:
            return frames
        content = msg["content"]
        if isinstance(content.get("data"), dict):
            content = {**content, "data": shorten_bundle(content["data"], self.bound // 16)}
        content = shorten(content, self.bound // 16)
        left_out = size - sum(map(len, super().serialize({**msg, "content": content}, ident)))
        return super().serialize({**msg, "content": {**content, "left_out": left_out}}, ident)


class DiallingHeartbeat(Heartbeat):
    """The heartbeat; its socket connects."""

    def _try_bind_socket(self):
        self.socket.connect(f"ipc://{self.ip}-{self.port}")


class SandboxDisplayHook(ZMQShellDisplayHook):
    """Shows the value of a cell's last expression.

    Where a checkpoint lost something, it looks first whether the value has that in it: IPython would print the error
    and call the cell a success.
    """

    has_lost = False

    def compute_format_data(self, result):
        if self.has_lost:
            repr(result)
        return super().compute_format_data(result)


class SandboxShell(ZMQInteractiveShell):
    """The shell; ``!command`` goes through plain pipes.

    IPython's pseudo-terminal loses the output of a short command now and then under gVisor, merges stderr into stdout
    and polls.
    """

    displayhook_class = Type(SandboxDisplayHook)

    def system_piped(self, cmd):
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        self.user_ns["_exit_code"] = subprocess.call(self.var_expand(cmd, depth=1), shell=True)
        drain_streams()

    system = system_piped

    def ask_exit(self):
        """Serves ``exit()`` and ``quit()``: ends the cell, as sys.exit does, and not the kernel with its variables."""
        status = self.keepkernel_on_exit  # where ipykernel puts what they are called with
        raise SystemExit(status if type(status) is int else None)


def drain_streams():
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, OrderedStream):
            stream.drain()


def brief_traceback(error):
    """Say where a cell was interrupted. IPython calls it instead of its own, which takes 0.1 s and more of CPU.

    A cell whose threads are busy gets a small share of that, and would meet the end of its grace period. Hence no file
    is looked at either, if that can be: whoever waits for the system has to wait for the busy threads then.
    """
    lines = ["Traceback (most recent call last):"]
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename not in (__file__, interactiveshell.__file__):
            lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}')
            if source := linecache.getline(code.co_filename, number).strip():
                lines.append(f"    {source}")
    return [*lines, type(error).__name__]


class NoShellThread:
    """Stands where ipykernel has a thread for subshells, which cost every cell two hops between threads.

    It is false, so that requests come straight to the main thread, and knows that thread: async cells ask it.
    """

    parent_thread = threading.main_thread()

    def __bool__(self):
        return False


class SandboxKernel(IPythonKernel):
    """IPythonKernel, and the requests by which files and the session's state travel, in bounded pieces.

    The state is captured and loaded on the shell channel, where cells run too; its pieces travel on the control channel
    meanwhile.
    """

    shell_class = Type(SandboxShell)
    _supports_kernel_subshells = False
    _runs_code = False
    _interrupted = 0.0  # when it was last, in monotonic seconds
    _switch_interval = None  # the cell's own, once it is interrupted

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for name in ("write", "read", "remove"):
            self.control_handlers[f"file_{name}_request"] = partial(self._answer, name)
        for name in ("save", "load"):
            self.shell_handlers[f"state_{name}_request"] = partial(self._move_state, name)
        self.control_handlers["state_take_request"] = self._take_state
        self.control_handlers["state_give_request"] = self._give_state
        self._pipes = {}
        self._state = None
        self.surroundings = None
        self._own_streams = {"stdout": sys.stdout, "stderr": sys.stderr}

    def pre_handler_hook(self):
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, _number, _frame):
        """Interrupt the code of a cell, and nothing else: not a reply that is on its way, which would then be lost.

        And not what tells of the interrupt before: the host asks in two ways, and both may come at once.
        """
        now = time.monotonic()
        if self._runs_code and now - self._interrupted > INTERRUPT_PAUSE:
            self._interrupted = now
            interrupt = KeyboardInterrupt()
            interrupt._render_traceback_ = partial(brief_traceback, interrupt)
            raise interrupt

    async def do_execute(self, *args, **kwargs):
        self._interrupted = 0.0  # what the last cell was told does not count for this one
        try:
            self._runs_code = True
            try:
                reply = await super().do_execute(*args, **kwargs)
            finally:
                self._runs_code = False
        except KeyboardInterrupt:  # it came just before or after the code itself
            count = self.shell.execution_count
            reply = {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": [],
                     "execution_count": count, "user_expressions": {}, "payload": []}  # fmt: skip
        for name, stream in self._own_streams.items():
            if getattr(sys, name) is None:  # print() takes it for "nowhere", and ipykernel for its own stream
                setattr(sys, name, stream)
        drain_streams()
        if self._switch_interval is not None:
            sys.setswitchinterval(self._switch_interval)
            self._switch_interval = None
        return reply

    def _send_interrupt_children(self):
        """Interrupt this process and those of its group.

        Not with killpg: the kernel is process 1, and the group 1 stands for "all but process 1". And the main thread by
        name: gVisor may give a signal for the process to a thread that does not wait, and the cell would go on waiting.
        """
        if self._switch_interval is None:
            self._switch_interval = sys.getswitchinterval()
            sys.setswitchinterval(min(self._switch_interval, HURRIED_SWITCH))
        group = os.getpgid(0)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(int(name)) == group:
                        os.kill(int(name), signal.SIGINT)

    async def interrupt_request(self, stream, ident, parent):
        await super().interrupt_request(stream, ident, parent)
        # An async cell waits in the loop's selector, which goes on waiting after a signal: what the signal's handler
        # asked the loop to do would be done only after the cell.
        self.io_loop.asyncio_loop.call_soon_threadsafe(int)

    def _pipe(self, parent):
        """Find the pipe of a transfer, which whoever hears of it first makes.

        It stays until the next transfer: all of a small state may have come, and its end, before this thread looks.
        """
        from cellblock_session.stream import Pipe

        return self._pipes.setdefault(parent["content"]["transfer"], Pipe())

    async def _move_state(self, name, stream, ident, parent):
        """Save or load the state. It runs code of the session, and can be interrupted like a cell."""
        pipe = self._pipe(parent)
        self._pipes = {parent["content"]["transfer"]: pipe}
        try:
            self._runs_code = True
            try:
                if self._state is None:
                    from cellblock_session.state import SessionState

                    self._state = SessionState(self.shell, self.surroundings)
                move = self._state.save if name == "save" else self._state.load
                content = move(pipe, **parent["content"]["options"])
            finally:
                self._runs_code = False
        except KeyboardInterrupt:
            content = {"status": "error", "reason": "it was interrupted"}
        except Exception as error:  # noqa: BLE001 - the session's own code runs here
            content = {"status": "error", "reason": f"{type(error).__name__}: {error}"[:500]}
        pipe.end()
        if name == "load":
            self.shell.displayhook.has_lost = content.pop("has_lost", False)
        self.session.send(stream, f"state_{name}_reply", content, parent, ident=ident)

    async def _take_state(self, stream, ident, parent):
        pipe = self._pipe(parent)
        piece, last = pipe.poll()
        buffers = [] if piece is None else [piece]
        self.session.send(stream, "state_take_reply", {"last": last}, parent, ident=ident, buffers=buffers)

    async def _give_state(self, stream, ident, parent):
        pipe = self._pipe(parent)
        taken = pipe.offer(bytes(parent["buffers"][0])) if parent["buffers"] else True
        if parent["content"]["last"] and taken:
            pipe.end()
        self.session.send(stream, "state_give_reply", {"taken": taken}, parent, ident=ident)

    async def _answer(self, name, stream, ident, parent):
        content, buffers = {"status": "ok"}, []
        try:
            data = getattr(self, f"_file_{name}")(parent["content"], parent["buffers"], content)
            buffers = [data] if data is not None else []
        except OSError as error:
            content = {"status": "error", "errno": error.errno, "reason": error.strerror or str(error)}
        self.session.send(stream, f"file_{name}_reply", content, parent, ident=ident, buffers=buffers)

    @staticmethod
    def _file_write(request, buffers, reply):
        path = Path(request["path"])
        if request["offset"] == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if request["offset"] == 0 else 0)
        handle = os.open(path, flags, 0o644)
        try:
            data = memoryview(buffers[0]) if buffers else memoryview(b"")
            written = 0
            while written < len(data):
                written += os.pwrite(handle, data[written:], request["offset"] + written)
        finally:
            os.close(handle)
        if request["last"] and request["rename"]:
            path.replace(request["rename"])

    @staticmethod
    def _file_read(request, _buffers, reply):
        handle = os.open(request["path"], os.O_RDONLY | os.O_NONBLOCK)
        try:
            data = bytearray()
            while piece := os.pread(handle, request["length"] - len(data), request["offset"] + len(data)):
                data += piece  # one call may give less than is there; to the host less than asked for means the end
            return bytes(data)
        finally:
            os.close(handle)

    @staticmethod
    def _file_remove(request, _buffers, _reply):
        Path(request["path"]).unlink(missing_ok=True)


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
    config.SandboxApp.outstream_class = "__main__.OrderedStream"
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


if __name__ == "__main__":
    main()
