"""Hostile and unlucky cells, each with how it must end: outcome, error, exit, kernel afterwards.

Run by ``test_outcomes.py`` under: 2 s a cell, 256 MiB of memory, 1 MiB of output.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.output.events import KernelState


@dataclass(frozen=True)
class Ending:
    """How a cell must end.

    Attributes:
        error: its ``ename``; None for none.
        exits: exit codes of which the evidence must have one; () for none at all.
        signal: the evidence's, where it has an exit code.
        killed: processes that the host must have seen killed for want of memory, at least.
        missing: whether part of the output is left out.
    """

    outcome: str
    kernel: KernelState = "idle"
    error: str | None = None
    exits: tuple[int | None, ...] = ()
    signal: str | None = None
    killed: int = 0
    missing: bool = False
    interrupted: bool = False
    stdout: str | None = None


@dataclass(frozen=True)
class HostileCell:
    """A cell, and its ending; ``under`` has what differs under one runtime."""

    name: str
    code: str
    ending: Ending
    under: dict[str, Ending] = field(default_factory=dict)
    alone: bool = False  # whether it leaves its kernel in a state that would colour the next cell
    heavy: bool = False  # whether a busy machine could keep it from its ending until its deadline

    def ending_under(self, runtime: str) -> Ending:
        return self.under.get(runtime, self.ending)


def _error(name: str, **more: Any) -> Ending:
    return Ending("error", error=name, **more)


OK = Ending("ok")
TIMEOUT = Ending("timeout", interrupted=True)
INTERRUPTED_AT_DEADLINE = replace(TIMEOUT, error="KeyboardInterrupt")
KILLED_AT_DEADLINE = replace(TIMEOUT, kernel="dead")
OOM = Ending("oom", "dead", error="KernelOutOfMemory", killed=1, exits=(137,), signal="SIGKILL")
STUCK_FOR_MEMORY = replace(OOM, exits=(137, None))  # gVisor's way: it may be stuck, and then the host ends it
CHILD_OOM = Ending("oom", error="ChildOutOfMemory", killed=1)


def _died(*exits: int, signal: str | None = None) -> Ending:
    return Ending("kernel_died", "dead", error="KernelDied", exits=exits, signal=signal)


_HANG_IN_C = "import ctypes; ctypes.PyDLL(None).sleep(60)"
_BOMB = "x = []\nwhile True: x.append(bytearray(2**20))"
_BOMB_CHILD = f"import subprocess, sys; code = {_BOMB!r}\nchild = subprocess.run([sys.executable, '-c', code])"

CELLS = (
    # Nothing wrong, though it may look so.
    HostileCell("value", "6 * 7", OK),
    HostileCell("only-a-comment", "# nothing", OK),
    HostileCell("caught-error", "try: 1 / 0\nexcept ZeroDivisionError: print('caught')", replace(OK, stdout="caught\n")),
    HostileCell("caught-interrupt-of-its-own", "try: raise KeyboardInterrupt\nexcept KeyboardInterrupt: pass", OK),
    HostileCell("failing-shell-command", "!false", OK),
    HostileCell("thread-left-behind", "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", OK, alone=True),
    HostileCell("error-in-a-thread", "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", OK),
    HostileCell("child-left-behind", "import subprocess; child = subprocess.Popen(['sleep', '60'])", OK, alone=True),
    HostileCell("fork-that-exits", "import os\npid = os.fork()\nif not pid: os._exit(7)\nprint(os.waitpid(pid, 0)[1] >> 8)", replace(OK, stdout="7\n")),
    HostileCell("child-that-segfaults", "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'import ctypes; ctypes.string_at(0)']).returncode)", replace(OK, stdout="-11\n"), heavy=True),
    HostileCell("stdout-closed", "import os; os.close(1)", OK, alone=True),
    HostileCell("stdout-replaced", "import sys; sys.stdout = None", OK, alone=True),
    HostileCell("stdout-elsewhere", "import io, sys; sys.stdout = io.StringIO(); print('there')", replace(OK, stdout=""), alone=True),
    HostileCell("stdout-closed-for-good", "import sys; sys.stdout.close()", OK, alone=True),
    HostileCell("nothing-but-returns", "for n in range(20_000): print(end=f'\\r{n:06}')\nprint()", replace(OK, stdout="019999\n")),
    HostileCell("progress-bar", "import sys\nfor n in range(2000): print(end=f'\\r{n / 20:5.1f}%|' + '#' * (n // 40), file=sys.stderr)\nprint('done')", replace(OK, stdout="done\n")),
    HostileCell("cleared-again-and-again", "from IPython.display import clear_output\nfor n in range(200): print('x' * 20_000); clear_output()\nprint('end')", replace(OK, stdout="end\n"), heavy=True),
    HostileCell("forged-status-of-another", "k = get_ipython().kernel; k.session.send(k.iopub_socket, 'status', {'execution_state': 'idle'}, parent={'msg_id': 'other'}); print('on')", replace(OK, stdout="on\n")),
    HostileCell("odd-text", "print('\\x00\\x1b[2J\\ud800\\uffff\\u202e')", OK),
    HostileCell("loop-stopped", "import asyncio; asyncio.get_running_loop().call_soon(print, 'ran'); await asyncio.sleep(0.1)", replace(OK, stdout="ran\n")),
    HostileCell("value-larger-than-a-message", "'x' * 5_000_000", replace(OK, missing=True), heavy=True),
    HostileCell("child-that-comes-back-from-a-fork", "import os; os.fork(); None", OK, alone=True),
    HostileCell("unraisable", "class C:\n    def __del__(self): raise ValueError\nC(); None", OK),
    HostileCell("builtins-gone", "import builtins; saved = builtins.print; del builtins.print", OK, alone=True),
    HostileCell("interrupt-ignored-for-a-moment", "import signal; old = signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGINT, old); None", OK),
    # The code raised.
    HostileCell("value-error", "raise ValueError('boom')", _error("ValueError")),
    HostileCell("syntax-error", "def f(:", _error("SyntaxError")),
    HostileCell("indentation", "if True:\nx = 1", _error("IndentationError")),
    HostileCell("unknown-name", "nosuch", _error("NameError")),
    HostileCell("unknown-module", "import nosuch", _error("ModuleNotFoundError")),
    HostileCell("recursion", "import sys\nold = sys.getrecursionlimit(); sys.setrecursionlimit(200)\ndef f(): f()\ntry: f()\nfinally: sys.setrecursionlimit(old)", _error("RecursionError"), heavy=True),
    HostileCell("interrupt-of-its-own", "raise KeyboardInterrupt", _error("KeyboardInterrupt")),
    HostileCell("sys-exit", "import sys; sys.exit(3)", _error("SystemExit")),
    HostileCell("exit", "exit()", _error("SystemExit")),
    HostileCell("quit-with-a-status", "quit(3)", _error("SystemExit")),
    HostileCell("base-exception", "class E(BaseException): pass\nraise E", _error("E")),
    HostileCell("unprintable-error", "class E(Exception):\n    def __str__(self): raise ValueError\nraise E", _error("ValueError")),
    HostileCell("error-group", "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])", _error("ExceptionGroup")),
    HostileCell("huge-error", "raise ValueError('x' * 5_000_000)", _error("ValueError", missing=True), heavy=True),
    HostileCell("failing-repr", "class C:\n    def __repr__(self): raise ValueError\nC()", _error("ValueError")),
    HostileCell("error-after-await", "import asyncio\nawait asyncio.sleep(0.01)\n1 / 0", _error("ZeroDivisionError")),
    HostileCell("cancelled-of-its-own", "import asyncio; raise asyncio.CancelledError", _error("CancelledError")),
    HostileCell("input", "input('password? ')", _error("StdinNotImplementedError")),
    HostileCell("read-only-root", "open('/etc/passwd', 'a')", _error("PermissionError")),
    HostileCell("no-network", "import socket; socket.create_connection(('192.0.2.1', 80), 1)", _error("OSError")),
    HostileCell("no-names", "import socket; socket.getaddrinfo('example.com', 80)", _error("gaierror")),
    HostileCell("tmpfs-full", "open('/work/x', 'wb').write(bytes(100 * 2**20))", _error("OSError"), heavy=True),
    HostileCell("absurd-allocation", "bytearray(2**60)", _error("MemoryError"), heavy=True),
    HostileCell("own-limit-on-memory", "import resource; old = resource.getrlimit(resource.RLIMIT_AS); resource.setrlimit(resource.RLIMIT_AS, (2**30, old[1]))\ntry: bytearray(2**31)\nfinally: resource.setrlimit(resource.RLIMIT_AS, old)", _error("MemoryError"), alone=True, heavy=True),
    HostileCell("too-many-files", "files = []\ntry:\n    while True: files.append(open('/dev/null'))\nfinally: [file.close() for file in files]", _error("OSError"), heavy=True),
    HostileCell("too-many-threads", "import threading, time\ngo = threading.Event(); threads = []\ntry:\n    while True: threads.append(threading.Thread(target=go.wait)); threads[-1].start()\nfinally: go.set()", _error("RuntimeError"), heavy=True),
    HostileCell("too-many-children", "import os, signal\npids = []\ntry:\n    while True:\n        pid = os.fork()\n        if not pid: signal.pause(); os._exit(0)\n        pids.append(pid)\nfinally: [os.kill(pid, 9) for pid in pids]; [os.waitpid(pid, 0) for pid in pids]", _error("BlockingIOError"), under={"runsc": STUCK_FOR_MEMORY}, heavy=True),
    HostileCell("error-after-a-flood", "for _ in range(300): print('x' * 10_000)\nraise ValueError('end')", _error("ValueError", missing=True), heavy=True),
    # Past its time: interrupted, and its variables are there.
    HostileCell("busy-loop", "while True: pass", INTERRUPTED_AT_DEADLINE),
    HostileCell("sleep", "import time; time.sleep(60)", INTERRUPTED_AT_DEADLINE),
    HostileCell("async-sleep", "import asyncio; await asyncio.sleep(60)", replace(TIMEOUT, error="CancelledError")),
    HostileCell("waiting-for-a-child", "import subprocess; subprocess.run(['sleep', '60'])", INTERRUPTED_AT_DEADLINE),
    HostileCell("child-deaf-to-interrupts", "import subprocess; subprocess.run(['sh', '-c', 'trap \"\" INT; sleep 60'])", INTERRUPTED_AT_DEADLINE),
    HostileCell("shell-command", "!sleep 60", INTERRUPTED_AT_DEADLINE),
    HostileCell("waiting-for-a-thread", "import threading, time; t = threading.Thread(target=time.sleep, args=(60,), daemon=True); t.start(); t.join()", INTERRUPTED_AT_DEADLINE),
    HostileCell("deadlock", "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", INTERRUPTED_AT_DEADLINE),
    HostileCell("empty-queue", "import queue; queue.Queue().get()", INTERRUPTED_AT_DEADLINE),
    HostileCell("select", "import select; select.select([], [], [])", INTERRUPTED_AT_DEADLINE),
    HostileCell("catastrophic-expression", "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')", INTERRUPTED_AT_DEADLINE),
    HostileCell("busy-threads-too", "import threading\ngo_on = True\ndef spin():\n    while go_on: pass\nfor _ in range(3): threading.Thread(target=spin, daemon=True).start()\ntry:\n    while True: x = 1\nfinally: go_on = False", INTERRUPTED_AT_DEADLINE, alone=True),
    HostileCell("busy-finalizer", "class C:\n    def __del__(self):\n        while True: x = 1\nC(); None", TIMEOUT),
    HostileCell("waiting-for-a-pool", "import multiprocessing, time\nwith multiprocessing.get_context('fork').Pool(2) as pool: pool.map(time.sleep, [60, 60])", INTERRUPTED_AT_DEADLINE),
    HostileCell("hook-after-the-cell", "import time\ndef hook(*_):\n    get_ipython().events.unregister('post_run_cell', hook)\n    time.sleep(60)\nget_ipython().events.register('post_run_cell', hook)", INTERRUPTED_AT_DEADLINE),
    HostileCell("slow-clean-up", "import time\ntry: time.sleep(60)\nfinally: time.sleep(0.5)", INTERRUPTED_AT_DEADLINE),
    HostileCell("hung-clean-up", "import time\ntry: time.sleep(60)\nfinally: time.sleep(60)", INTERRUPTED_AT_DEADLINE),
    HostileCell("interrupt-blocked-in-one-thread", "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\nwhile True: pass", INTERRUPTED_AT_DEADLINE, alone=True),
    HostileCell("interrupt-caught-once", "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('caught')\ntime.sleep(60)", replace(INTERRUPTED_AT_DEADLINE, stdout="caught\n")),
    HostileCell("interrupt-taken-for-the-end", "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')", replace(TIMEOUT, stdout="saved\n")),
    HostileCell("endless-output", "while True: print('x' * 1000)", replace(INTERRUPTED_AT_DEADLINE, missing=True)),
    HostileCell("endless-output-of-a-child", "import subprocess; subprocess.run(['yes'])", replace(INTERRUPTED_AT_DEADLINE, missing=True)),
    HostileCell("c-that-holds-the-lock-but-wakes", _HANG_IN_C, INTERRUPTED_AT_DEADLINE),
    HostileCell("huge-power", "x = 7 ** 10**9", INTERRUPTED_AT_DEADLINE),
    HostileCell("control-thread-gone", "k = get_ipython().kernel; k.control_thread.io_loop.add_callback(k.control_thread.io_loop.stop)\nimport time; time.sleep(60)", INTERRUPTED_AT_DEADLINE),
    # Past its time, and deaf: the kernel is killed.
    HostileCell("interrupt-caught-for-ever", "def spin():\n    while True: x = 1\nwhile True:\n    try: spin()\n    except BaseException: pass", KILLED_AT_DEADLINE),
    HostileCell("interrupt-ignored", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", KILLED_AT_DEADLINE),
    HostileCell("c-that-sleeps-again", "import ctypes\nwhile True: ctypes.PyDLL(None).sleep(60)", INTERRUPTED_AT_DEADLINE),
    HostileCell("c-deaf-to-interrupts", "import signal, ctypes; signal.signal(signal.SIGINT, signal.SIG_IGN); ctypes.PyDLL(None).sleep(60)", KILLED_AT_DEADLINE),
    HostileCell("c-that-never-looks", "sum(range(10**12))", KILLED_AT_DEADLINE),
    # Past its memory.
    HostileCell("memory-bomb", _BOMB, OOM, under={"runsc": STUCK_FOR_MEMORY}, heavy=True),
    HostileCell("one-large-array", "import numpy; numpy.ones(10**9)", OOM, under={"runsc": STUCK_FOR_MEMORY}, heavy=True),
    HostileCell("memory-in-a-thread", f"import threading\ndef bomb():\n    {_BOMB.replace(chr(10), chr(10) + '    ')}\nt = threading.Thread(target=bomb); t.start(); t.join()", OOM, under={"runsc": STUCK_FOR_MEMORY}, heavy=True),
    HostileCell("child-past-the-memory", _BOMB_CHILD, CHILD_OOM, under={"runsc": STUCK_FOR_MEMORY}, alone=True, heavy=True),
    HostileCell("child-past-the-memory-and-an-error", f"{_BOMB_CHILD}\nchild.check_returncode()", CHILD_OOM, under={"runsc": STUCK_FOR_MEMORY}, alone=True, heavy=True),
    # Ended its own kernel.
    HostileCell("exit-0", "import os; os._exit(0)", _died(0)),
    HostileCell("exit-3", "import os; os._exit(3)", _died(3)),
    HostileCell("exit-137", "import os; os._exit(137)", _died(137, signal="SIGKILL")),
    HostileCell("segfault", "import ctypes; ctypes.string_at(0)", _died(139, signal="SIGSEGV"), heavy=True),
    HostileCell("stack-overflow", "import sys; sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(2 * 10**5): x = [x]\nrepr(x)", _died(139, signal="SIGSEGV"), heavy=True),
    HostileCell("another-program", "import os; os.execv('/bin/true', ['true'])", _died(0)),
    HostileCell("exit-in-a-thread", "import os, threading, time; threading.Timer(0.2, os._exit, [4]).start(); time.sleep(60)", _died(4)),
    HostileCell("descriptors-closed", "import os; os.closerange(3, 1024)\nimport time; time.sleep(60)", Ending("kernel_died", "dead", error="KernelDied")),  # it aborts at its next event, or is killed after 5 s
    HostileCell("died-while-printing", "import os\nprint('last words', flush=True)\nos._exit(5)", _died(5)),
    # Broke the protocol.
    HostileCell("forged-idle", "k = get_ipython().kernel; k.session.send(k.iopub_socket, 'status', {'execution_state': 'idle'}, parent=k.get_parent())\nimport time; time.sleep(0.5)", Ending("kernel_died", "dead", error="KernelDied")),
    HostileCell("raw-bytes-on-the-wire", "import os, socket\nfor fd in range(3, 1024):\n    try: name = socket.socket(fileno=os.dup(fd)).getpeername()\n    except OSError: continue\n    if str(name).endswith('k-2'): os.write(fd, b'\\xff' * 1000)\nimport time; time.sleep(60)", Ending("kernel_died", "dead", error="KernelDied")),
)  # fmt: skip
