"""A cell may do anything to the interpreter's own objects: every request still gets its reply, and the kernel lives."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession
from orchestrator.errors import CheckpointStateError, FileTransferError, KernelDiedError, KernelTimeoutError
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
    "len-raises": "import builtins; builtins.len = lambda *a: 1 / 0",
    "isinstance-raises": "import builtins; builtins.isinstance = lambda *a: 1 / 0",
    "isinstance-is-false": "import builtins; builtins.isinstance = lambda *a: False",
    "super-raises": "import builtins; builtins.super = lambda *a: 1 / 0",
    "getattr-raises": "import builtins; builtins.getattr = lambda *a: 1 / 0",
    "type-is-int": "import builtins; builtins.type = int",
    "str-is-int": "import builtins; builtins.str = int; builtins.dict = list",
    "import-raises": "import builtins; builtins.__import__ = lambda *a, **k: 1 / 0",
    "import-is-deleted": "import builtins; del builtins.__import__",
    "compile-raises": "import builtins; builtins.compile = builtins.exec = lambda *a, **k: 1 / 0",
    "session-class-is-broken": "from jupyter_client.session import Session; Session.send = Session.msg = None",
    "builtins-cleared": "import builtins; vars(builtins).clear()",
    "modules-are-none": (
        "import sys\nfor n in list(sys.modules):\n    if n not in ('sys', 'builtins'): sys.modules[n] = None"
    ),
    "modules-are-empty": (
        "import sys, types\n"
        "for n in ('traceback', 'linecache', 'ast', 're', 'inspect'): sys.modules[n] = types.ModuleType(n)"
    ),
    "inspect-is-broken": "import inspect; inspect.isawaitable = lambda *a: 1 / 0",
    "display-pub-is-none": "get_ipython().display_pub = None",
    "shell-class-is-broken": "from IPython.core.interactiveshell import InteractiveShell as S; S.run_ast_nodes = None",
    "factory-of-tasks-raises": "import asyncio; asyncio.get_event_loop().set_task_factory(lambda *a, **k: 1 / 0)",
    "events-are-none": "get_ipython().events = None",
    "transform-raises": "def t(l): raise RuntimeError\nget_ipython().input_transformers_post.append(t)",
    "transform-exits": "def t(l): raise SystemExit\nget_ipython().input_transformers_post.append(t)",
    "transform-loops": "def t(l):\n    while True: pass\nget_ipython().input_transformers_post.append(t)",
    "transform-is-none": "def t(l): return None\nget_ipython().input_transformers_cleanup.append(t)",
    "ast-transform-exits": (
        "import ast\nclass T(ast.NodeTransformer):\n    def visit(self, n): raise SystemExit\n"
        "get_ipython().ast_transformers.append(T())"
    ),
    "stdout-write-is-none": "import sys; sys.stdout.write = None; sys.stdout.flush = None",
    "stdout-class-is-broken": "import sys; type(sys.stdout).write = None; type(sys.stdout)._outbox = None",
    "stdout-is-empty": "import sys; vars(sys.stdout).clear()",
    "stdout-attributes-are-none": "import sys\nfor n in list(vars(sys.stdout)): setattr(sys.stdout, n, None)",
    "callback-spins-later": (
        "import asyncio\ndef spin():\n    while True: pass\n_ = asyncio.get_event_loop().call_soon(spin)"
    ),
    "many-notes": "e = ValueError('x'); e.__notes__ = ['n' * 1000] * 10000\nraise e",
    "many-lines": "class E(Exception):\n    def _render_traceback_(self): return ['\\x1b' * 1000] * 10000\nraise E",
    "many-short-lines": "class E(Exception):\n    def _render_traceback_(self): return ['y'] * 40000\nraise E",
    "many-mime-types": "display({f'a/{i}': 'x' * 1000 for i in range(10000)}, raw=True)",
    "much-metadata": "display({'text/plain': 't'}, metadata={f'a/{i}': 'x' * 1000 for i in range(10000)}, raw=True)",
    "deep-plus": "x=" + "+".join(["1"] * 5000),
    "deep-plus-async": "import asyncio; await asyncio.sleep(0)\nx=" + "+".join(["1"] * 5000),
    "deep-minus": "x=" + "-" * 5000 + "1",
    "deep-lambda": "f=" + "lambda: " * 5000 + "1",
}


STOPPED = ("transform-loops", "callback-spins-later")  # these keep the kernel busy until the time limit


async def executed(manager: AgentKernelManager, session: KernelSession, code: str) -> dict[str, Any]:
    """Return a cell's result, also of one that exceeded its time limit."""
    try:
        return await manager.execute_code(session, code)
    except KernelTimeoutError as error:
        return error.result.as_dict()


async def fault_after(manager: AgentKernelManager, session: KernelSession, name: str) -> str:
    """Run a hostile cell and a plain one. Return what is wrong with the plain one's result; "" for nothing."""
    started = time.monotonic()
    async with asyncio.timeout(20):
        await executed(manager, session, HOSTILE[name])
        took = time.monotonic() - started
        await asyncio.sleep(0.6 if name.startswith(ARMED) else 0)
        after = await executed(manager, session, "print('out')\n6 * 7")
    if name in STOPPED and after["outcome"] == "timeout" and after["kernel_state"] == "idle":
        after["status"] = "ok"
    if (after["status"], after["stdout"], after["result"]) != ("ok", "out\n", "42"):
        return str(after)
    if name.startswith(ARMED) and "between two cells" not in str(after["warnings"]):
        return f"the next result does not say it: {after['warnings']}"
    return f"it took {took:.1f} s" if name.startswith("deep-") and took > 3 else ""


async def test_the_next_cell_runs_whatever_one_did_to_the_interpreter(runtime: str) -> None:
    """Each hostile cell ends within its limit; the next one prints and returns its value, in the same kernel."""
    async with one_session(runtime, limits=KernelResourceLimits(max_execution_time=6)) as (manager, session):
        await manager.execute_code(session, "mark = 1")
        faults = {name: await fault_after(manager, session, name) for name in HOSTILE}
        assert {name: fault for name, fault in faults.items() if fault} == {}
        assert (await manager.execute_code(session, "mark"))["result"] == "1"


# Each changes what the launcher's own threads call, and lets them run meanwhile.
LASTING = {
    "getattr-raises": "builtins.getattr = lambda *a: 1 / 0",
    "isinstance-raises": "builtins.isinstance = lambda *a: 1 / 0",
    "isinstance-interrupts": "def bad(*a): raise KeyboardInterrupt\nbuiltins.isinstance = bad",
    "len-is-none": "builtins.len = None",
    "len-exits": "def bad(*a): raise SystemExit\nbuiltins.len = bad",
    "sum-is-none": "builtins.sum = builtins.map = builtins.range = builtins.memoryview = None",
    "exceptions-are-none": "builtins.Exception = None; builtins.BaseException = 3",
    "builtins-cleared": "vars(builtins).clear()",
    "select-is-none": "selectors.EpollSelector.select = None",
    "loop-is-broken": "asyncio.BaseEventLoop._run_once = asyncio.Handle._run = None",
    "stream-is-deaf": "ZMQStream._handle_recv = ZMQStream._handle_events = None",
    "session-is-broken": "Session.send = Session.msg = None",
    "locks-are-none": "threading.Lock = threading.RLock = threading.get_ident = None",
    "json-is-none": "json.dumps = json.loads = json.JSONEncoder.encode = json.JSONDecoder.decode = None",
    "os-is-none": "os.pwrite = os.open = os.replace = os.getpid = os.close = None",
}


async def fault_meanwhile(manager: AgentKernelManager, session: KernelSession, change: str) -> str:
    """Let a change last while output is under way and a file comes. Return what is wrong then; "" for nothing."""
    code = (
        "import asyncio, builtins, json, os, selectors, sys, threading, time\n"
        "from jupyter_client.session import Session\nfrom zmq.eventloop.zmqstream import ZMQStream\n"
        "write, sleep = sys.stdout.write, time.sleep\nfor i in range(400): _ = write(f'{i}\\n')\n"
        f"{change}\nsleep(0.5)"
    )
    cell = asyncio.create_task(executed(manager, session, code))
    await asyncio.sleep(0.25)
    try:
        async with asyncio.timeout(20):
            await manager.put_file(session, b"1", "during.txt")
            result = await cell
            await manager.put_file(session, b"2", "after.txt")
            code = "print('out')\nopen('during.txt').read() + open('after.txt').read()"
            after = await executed(manager, session, code)
    except TimeoutError:
        return f"no answer; the cell {'ended' if cell.done() else 'runs'}"
    if result["stdout"].splitlines()[:400] != [str(number) for number in range(400)]:
        return f"output was lost: {result['stdout'][:200]!r}"
    if (after["status"], after["stdout"], after["result"]) != ("ok", "out\n", "'12'"):
        return str(after)
    return ""


async def test_the_launchers_threads_outlast_a_change(runtime: str) -> None:
    """No output is lost, files still arrive, and the next cell runs, in the same kernel."""
    async with one_session(runtime, limits=KernelResourceLimits(max_execution_time=6)) as (manager, session):
        await manager.execute_code(session, "mark = 1")
        faults = {name: await fault_meanwhile(manager, session, change) for name, change in LASTING.items()}
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


@pytest.mark.parametrize(
    ("name", "undone"),
    [
        ("isinstance-raises", "builtins.isinstance"),
        ("modules-are-empty", "sys.modules['inspect']"),
        ("events-are-none", "get_ipython().events"),
        ("transform-exits", "IPython's input_transformers_post"),
    ],
)
async def test_the_result_says_what_was_undone(runtime: str, name: str, undone: str) -> None:
    """What no cell could run with is undone after the cell that did it, and its warning names it."""
    async with one_session(runtime) as (manager, session):
        result = await manager.execute_code(session, HOSTILE[name])
        after = await manager.execute_code(session, "6 * 7")
    assert any("no cell could run with" in warning and undone in warning for warning in result["warnings"]), result
    assert (after["result"], after["warnings"]) == ("42", [])


async def test_changes_that_work_stay(runtime: str) -> None:
    """A patched builtin, a replaced module, a transformer and a stream's own method are there in the next cell."""
    code = (
        "import builtins, sys, types\n"
        "real = len\nbuiltins.len = lambda x: real(x)\nsys.modules['this'] = 3\n"
        "sys.stdout.isatty = lambda: 'mine'\n"
        "get_ipython().input_transformers_post.append(lambda lines: [l.replace('SIX', '6') for l in lines])"
    )
    async with one_session(runtime) as (manager, session):
        done = await manager.execute_code(session, code)
        for _ in range(2):
            after = await manager.execute_code(
                session, "len is not real, sys.modules['this'] + SIX, sys.stdout.isatty()"
            )
            assert (after["result"], after["warnings"]) == ("(True, 9, 'mine')", [])
    assert (done["outcome"], done["warnings"]) == ("ok", [])


@pytest.mark.parametrize(
    "code",
    [
        "get_ipython().__class__.run_cell_async = None",
        "l.run_forever = l._run_once = None",
        "get_ipython().kernel.session.send = None",
        "get_ipython().kernel.shell = None",
        "get_ipython().run_cell = None",
        "get_ipython().kernel.__class__.do_execute = None",
        "get_ipython().kernel._publish_status = None",
    ],
)
async def test_a_kernel_that_can_run_no_cell_ends_at_once(runtime: str, code: str) -> None:
    """The host reports it lost. It does not wait for a time limit."""
    async with one_session(runtime) as (manager, session):
        started = time.monotonic()
        first = await manager.execute_code(session, "import asyncio; l = asyncio.get_event_loop(); " + code)
        assert first["outcome"] in ("ok", "kernel_died")
        with pytest.raises(KernelDiedError):
            for _ in range(3):
                await manager.execute_code(session, "1")
                await asyncio.sleep(0.5)
        assert time.monotonic() - started < 5


# Limits that a cell sets for its own process. It cannot raise them again.
LIMITED = {
    "no more files": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
    "no more threads": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))",
    "no more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))",
}


async def test_every_request_is_answered_under_limits_of_a_cell(runtime: str) -> None:
    """A list of files, a look at the variables and a checkpoint succeed or fail at once, and the kernel lives on."""
    limits = KernelResourceLimits(max_execution_time=20)
    for name, code in LIMITED.items():
        async with one_session(runtime, limits=limits) as (manager, session):
            assert (await manager.execute_code(session, code))["outcome"] == "ok", name
            for request in (manager.list_files, manager.list_variables, manager.checkpoint):
                async with asyncio.timeout(30):  # the calls' own deadlines are later
                    with contextlib.suppress(CheckpointStateError, FileTransferError):
                        await request(session)
            assert (await manager.execute_code(session, "6 * 7"))["result"] == "42", name


@pytest.mark.parametrize(
    "code",
    [
        "import sys; del sys.stdin, sys.stdout, sys.stderr",
        "import sys, types; sys.modules['made'] = types.ModuleType('made'); del sys.modules['made'].__name__",
        "globals().clear()",
    ],
)
async def test_a_checkpoint_is_taken_of_what_is_left(runtime: str, code: str) -> None:
    """Of an interpreter from which a cell has deleted something; and the state loads again."""
    async with one_session(runtime) as (manager, session):
        await manager.execute_code(session, code)
        await manager.execute_code(session, "kept = [1, 2]")
        await manager.restore(session, await manager.checkpoint(session))
        assert (await manager.execute_code(session, "kept"))["result"] == "[1, 2]"
