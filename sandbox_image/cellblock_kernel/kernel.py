"""The kernel: cells and their interrupts, files and the session's state."""

import contextlib
import linecache
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path

from ipykernel.ipkernel import IPythonKernel
from IPython.core import interactiveshell
from traitlets import Type

from cellblock_kernel.messages import shorten
from cellblock_kernel.shell import SandboxShell, drain_streams

# Seconds after an interrupt in which another one is the same.
INTERRUPT_PAUSE = 0.5
# Seconds after which a thread has to let another one run, from an interrupt to the cell's end: with three busy threads
# beside it a cell then took 1.0 s to end under gVisor, not 1.7 s. Always, it would cost such threads a tenth.
HURRIED_SWITCH = 0.001

# Characters of the question of an input().
PROMPT = 64 * 1024

OWN = Path(__file__).parent


def brief_traceback(error):
    """Say where a cell was interrupted. IPython calls it instead of its own, which takes 0.1 s and more of CPU.

    A cell whose threads are busy gets a small share of that, and would meet the end of its grace period. Hence no file
    is looked at either, if that can be: whoever waits for the system has to wait for the busy threads then.
    """
    lines = ["Traceback (most recent call last):"]
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename != interactiveshell.__file__ and Path(code.co_filename).parent != OWN:
            lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}')
            if source := linecache.getline(code.co_filename, number).strip():
                lines.append(f"    {source}")
    return [*lines, type(error).__name__]


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

    def _input_request(self, prompt, *args, **kwargs):
        """Ask, after what was shown before. A question beyond 1 MiB would cost the kernel."""
        self.iopub_thread.wait_for(self.iopub_thread.push)
        return super()._input_request(shorten(prompt, PROMPT), *args, **kwargs)

    async def do_execute(self, *args, **kwargs):
        self._interrupted = 0.0  # what the last cell was told does not count for this one
        every = self.shell.ast_node_interactivity == "all"  # what a cell shows so may not be its last
        self.shell.displayhook.pub_socket = self.iopub_socket if every else self.iopub_thread.later
        with self.iopub_thread.session_code():
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

    def _publish_status(self, status, channel, parent=None):
        """Publish it; from "busy" to "idle" what the main thread publishes waits for that end."""
        if channel != "shell":
            super()._publish_status(status, channel, parent)
            return
        publisher = self.iopub_thread
        publisher.serves = publisher.gathers = True
        super()._publish_status(status, channel, parent)
        if status != "busy":
            publisher.serves = publisher.gathers = False
            publisher.push()

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
        with self.iopub_thread.session_code():
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
