"""The kernel: run cells, interrupt them, move files and the session's state."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from os import _exit, getpgid, getpid, kill, listdir
from threading import main_thread
from time import monotonic
from types import FrameType
from typing import Any

from ipykernel import kernelbase
from ipykernel.ipkernel import IPythonKernel
from traitlets import Type

from cellblock_kernel.changedfiles import ChangedFiles
from cellblock_kernel.changes import Changes
from cellblock_kernel.failures import brief_traceback, failure
from cellblock_kernel.hostrequests import HostRequests
from cellblock_kernel.loops import listen_again
from cellblock_kernel.messages import shorten
from cellblock_kernel.originals import BUILTINS
from cellblock_kernel.orphans import Orphans
from cellblock_kernel.shell import SandboxShell
from cellblock_kernel.streams import OrderedStream
from cellblock_kernel.tools import Tools

__builtins__ = BUILTINS

# Seconds after an interrupt in which another signal counts as the same interrupt.
INTERRUPT_PAUSE = 0.5
# Seconds until a thread has to let another one run, from an interrupt to the end of the cell. With three busy threads
# beside it, a cell then took 1.0 s instead of 1.7 s to end under gVisor. Set at all times, it would slow such threads
# down by a tenth.
HURRIED_SWITCH = 0.001

# The most characters of an input() prompt.
PROMPT = 64 * 1024

MOST_WARNINGS = 8  # of one result
LONGEST_WARNING = 300  # characters

LAST_WORDS = 0.2  # seconds for the reply of the last cell


class OwnStreams:
    """Takes the place of ``sys`` in ipykernel's code, which flushes both streams before a reply and before "idle".

    A cell may have replaced sys.stdout by an object whose ``flush`` fails, and the reply would not be sent.
    """

    def __init__(self, stdout: Any, stderr: Any) -> None:
        self.stdout, self.stderr = stdout, stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def normalised(code: str) -> str:
    """Return a cell's code without a byte order mark, and with line feeds alone as its line ends."""
    return code.removeprefix("\ufeff").replace("\r\n", "\n")


class SandboxKernel(IPythonKernel):
    """An IPythonKernel that also moves files and the session's state, in bounded pieces.

    State is captured and loaded on the shell channel, where cells run. Its pieces travel on the control channel at the
    same time.
    """

    shell: Any
    session: Any
    iopub_thread: Any
    io_loop: Any
    shell_stream: Any
    control_stream: Any

    shell_class = Type(SandboxShell)
    _supports_kernel_subshells = False
    _runs_code = False
    _answers = False  # the running request's reply is being sent, or was
    _interrupted = 0.0  # the time of the last interrupt, in monotonic seconds
    _switch_interval: float | None = None  # the cell's own switch interval, while HURRIED_SWITCH replaces it

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("save", "load"):
            self.shell_handlers[f"state_{name}_request"] = partial(self._move_state, name)
        for name in ("comm_open", "comm_msg", "comm_close"):
            self.shell_handlers[name] = partial(self._handle_comm, self.shell_handlers[name])
        self._state: Any = None
        self.surroundings: Any = None
        own: Any = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._own_streams: dict[str, OrderedStream] = own
        for name, stream in own.items():
            setattr(sys, f"__{name}__", stream)  # or a cell that sets sys.stdout back would print to /dev/null
        setattr(kernelbase, "sys", OwnStreams(**own))  # noqa: B010 - mypy knows no such name there
        self.iopub_thread.late_text = lambda name, text: own[name].write(text)
        self.warnings: list[str] = []  # for the next result
        self.orphans = Orphans()
        self.changed_files = ChangedFiles()
        self.tools = Tools(self)
        self.host_requests = HostRequests(self)
        self.changes: Changes
        self._requests: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        noting = self.host_requests.noting
        self.control_handlers = {kind: noting(handler) for kind, handler in self.control_handlers.items()}
        self.control_handlers.update(self.host_requests.handlers)
        super().start()
        # ipykernel ignores SIGINT until the first cell, and a command would inherit that
        signal.signal(signal.SIGINT, self._on_interrupt)
        self.changes = Changes(self.shell, self._own_streams, self.warn)
        self._methods = [
            (owner, name) for owner in (self, self.shell) for name in dir(type(owner))
            if callable(getattr(type(owner), name, None))
        ]  # fmt: skip
        self._context = copy_context()
        self.shell_stream.on_recv(self._take_request, copy=False)

    def _take_request(self, message: Any) -> None:
        """Serve a request in a task that asyncio.all_tasks() does not list: a cell may cancel all that it lists."""
        request = self.shell_main(None, message)  # not create_task: the session may have set a task factory
        task = asyncio.Task(request, loop=asyncio.get_running_loop(), context=self._context)
        asyncio.tasks._unregister_task(task)
        self._requests.add(task)
        task.add_done_callback(self._end_request)

    def _end_request(self, task: asyncio.Task[None]) -> None:
        """End the kernel if a request has no end: the host reports it lost at once, not after a time limit."""
        self._requests.discard(task)
        if task.cancelled() or task.exception() is not None:
            _exit(1)

    async def process_control(self, message: Any) -> None:
        await self.host_requests.process(message, super().process_control)

    def finish_metadata(self, parent: Any, metadata: Any, reply_content: Any) -> Any:
        """Note that a reply is sent now."""
        self._answers = True
        return super().finish_metadata(parent, metadata, reply_content)

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Answer a request, also where something fails that a cell has changed. Without an answer, end the kernel."""
        self._answers = False
        try:
            await super().execute_request(stream, ident, parent)
        except BaseException as error:  # noqa: BLE001
            if self._answers:  # a second reply would be a forged one
                _exit(1)
            try:
                reply = failure(error, self.shell.execution_count)
                self._show_failure(reply)
                self.session.send(stream, "execute_reply", reply, parent, ident=ident)
                self._end_if_broken()
            except BaseException:  # noqa: BLE001
                _exit(1)

    def warn(self, warning: str) -> None:
        """Say something with the next result."""
        if len(self.warnings) < MOST_WARNINGS:
            self.warnings.append(warning[:LONGEST_WARNING])

    def pre_handler_hook(self) -> None:
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def post_handler_hook(self) -> None:
        """Keep the handler: a callback that a cell has left on the loop can be interrupted, too."""

    def _is_of_session(self, frame: FrameType | None) -> bool:
        """Return whether a function of a cell runs, such as a callback that the loop calls between two cells."""
        while frame is not None and frame.f_globals is not self.shell.user_ns:
            frame = frame.f_back
        return frame is not None

    def _on_interrupt(self, _number: int, frame: FrameType | None) -> None:
        """Interrupt the session's code only. Interrupting a reply on its way would lose the reply.

        Ignores a second signal within INTERRUPT_PAUSE: the host interrupts in two ways, and both may arrive.
        """
        now = monotonic()
        if (self._runs_code or self._is_of_session(frame)) and now - self._interrupted > INTERRUPT_PAUSE:
            self._interrupted = now
            interrupt: Any = KeyboardInterrupt()
            interrupt._render_traceback_ = partial(brief_traceback, interrupt)
            raise interrupt

    def _input_request(self, prompt: str, *args: Any, **kwargs: Any) -> Any:
        """Send a prompt after all earlier output. A prompt above 1 MiB would cost the kernel its life."""
        self.iopub_thread.wait_for(self.iopub_thread.push)
        with self.tools.lock:  # calls of tools in other threads wait until the question is answered
            return super()._input_request(shorten(prompt, PROMPT), *args, **kwargs)

    async def do_execute(self, code: str, *args: Any, **kwargs: Any) -> Any:
        self._interrupted = 0.0  # an interrupt of the last cell does not count for this one
        every = self.shell.ast_node_interactivity == "all"  # then a displayed value may not be the last message
        self.shell.displayhook.pub_socket = self.iopub_socket if every else self.iopub_thread.later
        self.shell.shown_error = None
        self.orphans.begin_cell()
        if left_out := self.session.release():
            self.warn(f"{left_out} displays between two cells were left out")
        OrderedStream.release()
        parent = self.get_parent("shell")
        self.tools.begin(parent["content"].get("tools"), parent, self._parent_ident["shell"])
        before = self.changed_files.begin()
        with self.iopub_thread.session_code(), self._environment():
            reply = await self._run_cell(normalised(code), *args, **kwargs)
        self.tools.end()
        await self._absorb_cancellation()
        shown = self.shell.shown_error
        if reply["status"] == "ok" and shown is not None:
            reply = {**reply, **failure(shown, reply["execution_count"]), "payload": reply["payload"]}
        if self._interrupted:
            self.orphans.kill_descendants()
        self._drain_streams()
        if self._switch_interval is not None:
            sys.setswitchinterval(self._switch_interval)
            self._switch_interval = None
        reply["warnings"], self.warnings = self.warnings, []
        reply["changed_files"] = self.changed_files.end(before)
        return reply

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """Set the variables that the request brings, and put them back when the cell is over."""
        given = self.get_parent("shell")["content"].get("environment") or {}
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    async def _run_cell(self, code: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run a cell and return its reply, whatever it raises."""
        try:
            try:
                self._runs_code = True
                self.changes.put_back()
                reply: Any = await IPythonKernel.do_execute(self, code, *args, **kwargs)
            finally:
                self._take_over()
                self._check_streams()
                self.changes.check()
                self._runs_code = False
        except BaseException as error:  # noqa: BLE001 - a KeyboardInterrupt just before or after the cell's own code too
            self._runs_code = False
            reply = failure(error, self.shell.execution_count)
            if not isinstance(error, KeyboardInterrupt):
                self._show_failure(reply)
                self._end_if_broken()
        return dict(reply)

    async def _handle_comm(self, handler: Any, *request: Any) -> None:
        """Handle a comm's message. Its handler's output belongs to this message, and not to the next cell."""
        with self.iopub_thread.session_code(), self.session.sending(), OrderedStream.sending():
            handled = handler(*request)
            if isawaitable(handled):
                await handled

    def _take_over(self) -> None:
        """Work with the originals of what the session may have changed."""
        if self.changes.take_over():
            self.iopub_thread.listen_again()
            for stream in (self.control_stream, self.shell_stream):
                listen_again(stream)
            self.host_requests.serve_again()

    def _end_if_broken(self) -> None:
        """End the kernel after this reply if IPython can run no cell any more: the host then reports it lost."""
        broken = [name for owner, name in self._methods if not callable(getattr(owner, name, None))]
        if broken or not self.shell.runs_cells():
            self.warn("interpreter: a cell has changed IPython so that no cell can run; the kernel ends")
            asyncio.get_running_loop().call_later(LAST_WORDS, _exit, 1)

    def _show_failure(self, reply: dict[str, Any]) -> None:
        """Publish an error that IPython did not show, as the compiler's RecursionError."""
        reply["traceback"] = [f"{reply['ename']}: {reply['evalue']}"]
        content = {key: reply[key] for key in ("ename", "evalue", "traceback")}
        self.session.send(self.iopub_socket, "error", content, self.get_parent("shell"), ident=self._topic("error"))

    async def _absorb_cancellation(self) -> None:
        """Go on after a cell has cancelled the task in which it runs."""
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def _check_streams(self) -> None:
        """Flush the cell's own streams. Replace one that cannot be flushed, and say so."""
        for name, stream in self._own_streams.items():
            current = getattr(sys, name, None)
            if current is stream:
                continue
            try:
                current.flush()  # type: ignore[union-attr]
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - an object of the cell
                setattr(sys, name, stream)
                if current is not None:
                    self.warn(f"sys.{name} was reset, because its flush() failed with {type(error).__name__}")

    def _drain_streams(self) -> None:
        """Read what C code and child processes have written to stdout and stderr so far."""
        for stream in self._own_streams.values():
            stream.drain()

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        """Publish a status. From "busy" to "idle", what the main thread publishes waits for "idle"."""
        if channel != "shell":
            super()._publish_status(status, channel, parent)
            return
        publisher = self.iopub_thread
        publisher.serves = publisher.gathers = True
        super()._publish_status(status, channel, parent)
        if status != "busy":
            publisher.serves = publisher.gathers = False
            publisher.push()
            OrderedStream.hold()
            self.session.hold()

    def _send_interrupt_children(self) -> None:
        """Interrupt this process and the other processes of its group.

        Not with killpg: the kernel is process 1, and group 1 means "all but process 1". The main thread gets its signal
        directly, because gVisor may deliver a signal for the process to another thread, and the cell would not notice.
        """
        if self._switch_interval is None:
            self._switch_interval = sys.getswitchinterval()
            sys.setswitchinterval(min(self._switch_interval, HURRIED_SWITCH))
        group = getpgid(0)
        main = main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        for name in listdir("/proc"):
            if name.isdecimal() and int(name) != getpid():
                with contextlib.suppress(ProcessLookupError):
                    if getpgid(int(name)) == group:
                        kill(int(name), signal.SIGINT)

    async def interrupt_request(self, stream: Any, ident: Any, parent: Any) -> None:
        await super().interrupt_request(stream, ident, parent)
        # An async cell waits in the loop's selector, which keeps waiting after a signal. Wake it, or what the signal
        # handler scheduled on the loop would run only after the cell.
        self.io_loop.asyncio_loop.call_soon_threadsafe(int)

    async def _move_state(self, name: str, stream: Any, ident: Any, parent: Any) -> None:
        """Save or load the state. This runs code of the session and can be interrupted like a cell."""
        pipe = self.host_requests.pipe(parent, only=True)
        with self.iopub_thread.session_code():
            try:
                self._runs_code = True
                self.changes.put_back()
                try:
                    content = self._save_or_load(name, pipe, parent["content"]["options"])
                finally:
                    self._runs_code = False
                    self._take_over()
            except KeyboardInterrupt:
                content = {"status": "error", "reason": "it was interrupted"}
            except Exception as error:  # noqa: BLE001 - code of the session runs here
                content = {"status": "error", "reason": f"{type(error).__name__}: {error}"[:500]}
        pipe.end()
        self.changed_files.forget()
        if name == "load":
            self.shell.displayhook.has_lost = content.pop("has_lost", False)
        self.session.send(stream, f"state_{name}_reply", content, parent, ident=ident)

    def _save_or_load(self, name: str, pipe: Any, options: dict[str, Any]) -> dict[str, Any]:
        if self._state is None:
            from cellblock_session.state import SessionState

            self._state = SessionState(self.shell, self.surroundings)
        move = self._state.save if name == "save" else self._state.load
        content: dict[str, Any] = move(pipe, **options)
        return content
