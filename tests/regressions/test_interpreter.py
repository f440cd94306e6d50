"""A cell may do anything to the interpreter's own objects: every request still gets its reply, and the kernel lives."""

from __future__ import annotations

import asyncio
import time

from orchestrator import AgentKernelManager, KernelSession
from tests.conftest import one_session

ARMED = ("task-", "alarm-")  # what these cells leave behind goes off between two cells

# Each cell leaves something broken behind. Then a plain cell must run, print and return its value.
HOSTILE = {
    "stdout-without-flush": "import sys; sys.stdout = type('Q', (), {'write': lambda s, t: None})()",
    "stderr-without-flush": "import sys; sys.stderr = type('Q', (), {'write': lambda s, t: None})()",
    "both-without-flush": "import sys; sys.stdout = sys.stderr = type('Q', (), {'write': lambda s, t: None})()",
    "stdout-is-a-closed-file": "import sys\nwith open('l', 'w') as f: sys.stdout = f",
    "stderr-is-a-closed-file": "import sys\nwith open('l', 'w') as f: sys.stderr = f",
    "stdout-flush-raises-base": (
        "import sys\nclass Q:\n    def write(self, t): pass\n    def flush(self): raise SystemExit\nsys.stdout = Q()"
    ),
    "stdout-is-an-int": "import sys; sys.stdout = 3",
    "stdout-is-deleted": "import sys; del sys.stdout",
    "deep-expression": "try:\n    exec('x=' + '+'.join(['1'] * 5000))\nexcept RecursionError: pass",
    "os-replace-is-none": "import os; os.replace = os.rename = os.open = os.pwrite = os.pread = None",
    "os-getpid-is-none": "import os; os.getpid = None; os.getpgid = None; os.listdir = None",
    "json-is-broken": "import json; json.dumps = json.loads = None; json.encoder.JSONEncoder.encode = None",
    "time-is-broken": "import time; time.monotonic = time.time = None",
    "threading-is-broken": "import threading; threading.get_ident = threading.Lock = None",
    "struct-is-broken": "import struct; struct.pack = None",
    "builtins-len-is-none": "import builtins; builtins.len = None",
    "all-tasks-cancelled": (
        "import asyncio\nothers = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]\n"
        "for t in others: t.cancel()\n_ = await asyncio.gather(*others, return_exceptions=True)"
    ),
    "own-task-cancelled": "import asyncio; asyncio.current_task().cancel()",
    "loop-stopped": "import asyncio; asyncio.get_event_loop().stop()",
    "task-exits-later": (
        "import asyncio, sys\nasync def quit(): sys.exit(3)\n_ = asyncio.get_event_loop().create_task(quit())"
    ),
    "task-interrupts-later": (
        "import asyncio\nasync def stop(): raise KeyboardInterrupt\n_ = asyncio.get_event_loop().create_task(stop())"
    ),
    "alarm-raises-later": (
        "import signal\ndef ring(*_): raise RuntimeError('late')\n"
        "_ = signal.signal(signal.SIGALRM, ring)\n_ = signal.setitimer(signal.ITIMER_REAL, 0.3)"
    ),
    "alarm-exits-later": (
        "import signal, sys\n_ = signal.signal(signal.SIGALRM, lambda *_: sys.exit(4))\n"
        "_ = signal.setitimer(signal.ITIMER_REAL, 0.3)"
    ),
    "displayhook-is-none": "import sys; sys.displayhook = None",
    "excepthook-raises": "import sys\ndef bad(*_): raise ValueError\nsys.excepthook = bad",
    "trace-raises": "import sys\ndef bad(*_): raise ValueError\nsys.settrace(bad)",
    "recursion-limit-is-low": "import sys; sys.setrecursionlimit(60)",
    "modules-cleared": "import sys; sys.modules.clear()",
    "callable-in-place": "import os, json; os.replace = json.dumps = lambda *a, **k: 1 / 0",
    "deep-plus": "x=" + "+".join(["1"] * 5000),
    "deep-plus-async": "import asyncio; await asyncio.sleep(0)\nx=" + "+".join(["1"] * 5000),
    "deep-minus": "x=" + "-" * 5000 + "1",
    "deep-lambda": "f=" + "lambda: " * 5000 + "1",
}


async def fault_after(manager: AgentKernelManager, session: KernelSession, name: str) -> str:
    """Run a hostile cell and a plain one. Return what is wrong with the plain one's result; "" for nothing."""
    started = time.monotonic()
    async with asyncio.timeout(20):
        await manager.execute_code(session, HOSTILE[name])
        took = time.monotonic() - started
        await asyncio.sleep(0.6 if name.startswith(ARMED) else 0)
        after = await manager.execute_code(session, "print('out')\n6 * 7")
    if (after["status"], after["stdout"], after["result"]) != ("ok", "out\n", "42"):
        return str(after)
    if name.startswith(ARMED) and "between two cells" not in str(after["warnings"]):
        return f"the next result does not say it: {after['warnings']}"
    return f"it took {took:.1f} s" if name.startswith("deep-") and took > 3 else ""


async def test_the_next_cell_runs_whatever_one_did_to_the_interpreter(runtime: str) -> None:
    """Each hostile cell ends within its limit; the next one prints and returns its value, in the same kernel."""
    async with one_session(runtime) as (manager, session):
        await manager.execute_code(session, "mark = 1")
        faults = {name: await fault_after(manager, session, name) for name in HOSTILE}
        assert {name: fault for name, fault in faults.items() if fault} == {}
        assert (await manager.execute_code(session, "mark"))["result"] == "1"


async def test_the_result_says_what_was_reset(runtime: str) -> None:
    """A stream that cannot be flushed and a function that cannot be called are restored, and a warning names them."""
    async with one_session(runtime) as (manager, session):
        stream = await manager.execute_code(session, HOSTILE["stdout-without-flush"])
        function = await manager.execute_code(session, HOSTILE["os-replace-is-none"])
        await manager.put_file(session, b"content", "file.txt")
        assert (await manager.execute_code(session, "open('file.txt').read()"))["result"] == "'content'"
    assert any("sys.stdout was reset" in warning for warning in stream["warnings"])
    assert any("os.replace was restored" in warning for warning in function["warnings"])


async def test_a_patch_of_the_standard_library_stays_until_it_is_removed(runtime: str) -> None:
    """The next cells see a function that a cell put in place of the library's; the kernel itself does not use it."""
    async with one_session(runtime) as (manager, session):
        await manager.execute_code(session, "import os; os.replace = lambda *a: 'patched'")
        await manager.put_file(session, b"content", "file.txt")
        assert (await manager.execute_code(session, "os.replace('a', 'b')"))["result"] == "'patched'"
        assert (await manager.execute_code(session, "open('file.txt').read()"))["result"] == "'content'"
