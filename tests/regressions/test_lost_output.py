"""What a cell puts out is shown, or the result says that it is not; and a failure is no success."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import one_session


@dataclass(frozen=True)
class Case:
    """Cells that run one after another, and what the last one's result must have."""

    cells: tuple[str, ...]
    stdout: str | None = None
    outcome: str = "ok"
    ename: str | None = None
    mime: str | None = None
    contains: str | None = None
    warning: str | None = None


TEE = """
import sys
class Tee:
    def __init__(self, to): self.to = to
    def write(self, text): return self.to.write(text)
    def flush(self): self.to.flush()
sys.stdout = Tee(sys.stdout)
"""
CASES = {
    "stdout-wrapped-by-a-logger": Case(
        (
            TEE,
            "print('hello')",
        ),
        stdout="hello\n",
    ),
    "dunder-stdout": Case(("import sys; sys.stdout = sys.__stdout__", "print('hello')"), stdout="hello\n"),
    "stdout-buffer": Case(("import sys; _ = sys.stdout.buffer.write(b'raw\\n')",), stdout="raw\n"),
    "stdout-reconfigure": Case(("import sys; sys.stdout.reconfigure(encoding='utf-8'); print('ä')",), stdout="ä\n"),
    "inspection": Case(("len?",), contains="Return the number of items"),
    "faulthandler": Case(("import faulthandler; faulthandler.dump_traceback()",), contains="most recent call first"),
    "run-a-script-that-fails": Case(
        ("open('job.py', 'w').write('1/0')", "%run job.py"), outcome="error", ename="ZeroDivisionError"
    ),
    "run-a-script-that-exits": Case(
        ("open('job.py', 'w').write('import sys; sys.exit(3)')", "%run job.py"), outcome="error", ename="SystemExit"
    ),
    "capture-of-a-failure": Case(("%%capture out\n1/0",), outcome="error", ename="ZeroDivisionError"),
    "script-without-its-program": Case(("%%perl\nprint 1",), outcome="error", ename="FileNotFoundError"),
    "script-with-quotes": Case(('%%script "/bin/sh" -e\necho in',), stdout="in\n"),
    "script-of-no-program": Case(("%%script nosuch --flag\n1",), outcome="error", ename="FileNotFoundError"),
    "run-cell-that-fails": Case(("_ = get_ipython().run_cell('1/0')",), outcome="error", ename="ZeroDivisionError"),
    "crlf-in-bash": Case(("%%bash\r\necho one\r\necho two\r\n",), stdout="one\ntwo\n"),
    "byte-order-mark": Case(("\ufeffprint('hello')",), stdout="hello\n"),
    "command-that-fails": Case(("!exit 3",), warning="the command exited with status 3"),
    "captured-command-that-fails": Case(("x = !exit 4",), warning="the command exited with status 4"),
    "syntax-error-in-run-cell": Case(("_ = get_ipython().run_cell('if')",), outcome="error", ename="SyntaxError"),
    "load-a-file": Case(("open('load.py', 'w').write('6 * 7')", "%load load.py"), contains="6 * 7"),
    "subprocess-to-stdout": Case(
        ("import subprocess, sys; _ = subprocess.run(['echo', 'hello'], stdout=sys.stdout)",), stdout="hello\n"
    ),
    "agg-figure": Case(
        ("import matplotlib; matplotlib.use('Agg')\nimport matplotlib.pyplot as plt\n_ = plt.plot([1, 2])",),
        mime="image/png",
    ),
}


def fault_of(case: Case, result: dict[str, Any]) -> str:
    """Return what is wrong with a result; "" for nothing."""
    wrong = [
        result["outcome"] != case.outcome,
        case.stdout is not None and result["stdout"] != case.stdout,
        case.ename is not None and (result["error"] or {}).get("ename") != case.ename,
        case.mime is not None and not any(case.mime in output.get("data", {}) for output in result["outputs"]),
        case.contains is not None and case.contains not in str(result["outputs"]),
        case.warning is not None and case.warning not in str(result["warnings"]),
    ]
    return str(result) if any(wrong) else ""


async def test_what_a_cell_puts_out_is_reported(runtime: str) -> None:
    """The last cell's result has the output, the outcome and the error that a stock kernel's user would expect."""
    faults = {}
    async with one_session(runtime) as (manager, session):
        for name, case in CASES.items():
            for code in case.cells:
                result = await manager.execute_code(session, code)
            if fault := fault_of(case, result):
                faults[name] = fault
    assert faults == {}


LATE = {
    "child": "import subprocess\n_ = subprocess.Popen('sleep 0.3; echo late words', shell=True)",
    "forked": ("import os, time\nif os.fork() == 0:\n    time.sleep(0.3); print('late words'); os._exit(0)"),
    "display": (
        "import threading, time\ndef late():\n    time.sleep(0.3); display('late words')\n"
        "threading.Thread(target=late).start()"
    ),
    "thread": (
        "import threading, time\ndef late():\n    time.sleep(0.3); print('late words')\n"
        "threading.Thread(target=late).start()"
    ),
    "task": (
        "import asyncio\nasync def late():\n    await asyncio.sleep(0.3); print('late words')\n"
        "_ = asyncio.get_event_loop().create_task(late())"
    ),
    "task-exception": (
        "import asyncio, gc\nasync def late():\n    await asyncio.sleep(0.3); raise ValueError('late words')\n"
        "_ = asyncio.get_event_loop().create_task(late()); del _"
    ),
}


async def test_output_between_cells_comes_with_the_next_result(runtime: str) -> None:
    """What threads, tasks and child processes say after their cell has ended is in the next result."""
    silent = []
    async with one_session(runtime) as (manager, session):
        for name, code in LATE.items():
            await manager.execute_code(session, code)
            await asyncio.sleep(0.8)
            after = await manager.execute_code(
                session, "import gc; _ = gc.collect()\nimport asyncio; await asyncio.sleep(0.2)"
            )
            if "late words" not in str(after["outputs"]):
                silent.append((name, after["outputs"]))
    assert silent == []


@pytest.mark.parametrize(
    "code",
    [
        "display({'application/json': [1] * 50000, 'text/plain': 'shown'}, raw=True)",
        "display({'text/plain': 'shown'}, metadata={'a': [1] * 50000}, raw=True)",
        "display({'text/plain': 'shown', **{f'a/{i}': 'x' for i in range(40000)}}, raw=True)",
        "display({'application/json': [[i] for i in range(9000)], 'text/plain': 'shown'}, raw=True)",
    ],
)
@pytest.mark.one_runtime
async def test_a_display_of_more_items_than_a_message_may_have_is_shortened(runtime: str, code: str) -> None:
    """Its text is there, and the result says that something is missing."""
    async with one_session(runtime) as (manager, session):
        result = await manager.execute_code(session, code)
    (output,) = result["outputs"]
    assert output["data"]["text/plain"].startswith("shown")
    assert result["truncated"]["reason"] == "message_size"


@pytest.mark.one_runtime
async def test_an_error_of_more_lines_than_a_message_may_have_is_shortened(runtime: str) -> None:
    """Both the output and the reply reach the host."""
    code = "class E(Exception):\n    def _render_traceback_(self): return ['y'] * 40000\nraise E('x')"
    async with one_session(runtime) as (manager, session):
        result = await manager.execute_code(session, code)
        assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"
    assert (result["outcome"], result["error"]["ename"]) == ("error", "E")
    assert any("lines left out" in line for line in result["outputs"][0]["traceback"])
