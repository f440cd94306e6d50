"""Cells in real kernels: what they put out, how they end, and what the host learns of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import pytest_asyncio

from orchestrator import (
    AgentKernelManager,
    CellFinished,
    DisplayData,
    KernelDiedError,
    KernelResourceLimits,
    KernelSession,
    KernelTimeoutError,
    StreamOutput,
)
from orchestrator.output.events import Event
from tests.conftest import make_manager, one_session

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = KernelResourceLimits(max_execution_time=20, max_output_size_mb=1, max_memory_mb=512)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime, limits=LIMITS) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    """One agent's session for all tests of the module that do not end it."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        yield session


async def test_the_result_says_which_runtime_it_ran_under(
    manager: AgentKernelManager, session: KernelSession, runtime: str
) -> None:
    """The runtime in the result is the one that was asked for, and gVisor is what the kernel sees."""
    result = await manager.execute_code(session, "import os; os.uname().release")
    assert result["runtime"] == runtime == manager.runtime
    # under runc the sandbox sees this host's kernel; gVisor is a kernel of its own
    assert (result["result"] == repr(os.uname().release)) == (runtime == "runc")


async def test_stdout_and_stderr_are_kept_apart_and_in_order(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """Interleaved writes to both streams come back in the order of writing."""
    code = "import sys\nfor n in range(5):\n    print('out', n)\n    print('err', n, file=sys.stderr)"
    result = await manager.execute_code(session, code)
    texts = [(output["name"], output["text"]) for output in result["outputs"]]
    assert texts == [
        (name, f"{short} {n}\n") for n in range(5) for name, short in (("stdout", "out"), ("stderr", "err"))
    ]
    assert result["stdout"] == "".join(f"out {n}\n" for n in range(5))
    assert result["stderr"] == "".join(f"err {n}\n" for n in range(5))


async def test_output_of_child_processes_belongs_to_their_cell(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """What a child wrote to the inherited descriptors before the cell ended is in the cell's result, every time."""
    for number in range(10):
        code = f"import subprocess; _ = subprocess.run(['sh', '-c', 'echo child {number}; echo err {number} >&2'])"
        result = await manager.execute_code(session, code)
        assert result["stdout"] == f"child {number}\n"
        assert result["stderr"] == f"err {number}\n"


async def test_rich_outputs_arrive_whole(manager: AgentKernelManager, session: KernelSession) -> None:
    """PNG, HTML and JSON come as mime bundles; a matplotlib figure is a PNG without being asked for."""
    code = (
        "from IPython.display import HTML, JSON, display\n"
        "import matplotlib.pyplot as plt\n"
        "display(HTML('<b>bold</b>'), JSON({'a': [1, 2]}))\n"
        "plt.plot([1, 2, 3])\nplt.show()"
    )
    result = await manager.execute_code(session, code)
    html, data, picture = (output["data"] for output in result["outputs"] if output["type"] == "display_data")
    assert html["text/html"] == "<b>bold</b>"
    assert data["application/json"] == {"a": [1, 2]}
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG\r\n")
    json.dumps(result)


async def test_what_was_printed_before_an_error_is_there(manager: AgentKernelManager, session: KernelSession) -> None:
    """An error keeps the outputs before it, with a traceback both raw and plain."""
    result = await manager.execute_code(session, "print('before')\nraise ValueError('boom')")
    assert result["status"] == "error"
    assert result["stdout"] == "before\n"
    assert result["error"]["ename"] == "ValueError"
    assert result["error"]["evalue"] == "boom"
    assert "ValueError: boom" in result["error"]["traceback_text"]
    assert "\x1b" not in result["error"]["traceback_text"]
    assert [output["type"] for output in result["outputs"]] == ["stream", "error"]
    assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"


async def test_events_come_while_the_cell_runs(manager: AgentKernelManager, session: KernelSession) -> None:
    """The first event is there long before the cell has ended; the last one is the result."""
    code = "import time\nprint('first', flush=True)\ntime.sleep(2)\nprint('last')"
    arrivals: list[tuple[float, Event]] = []
    async for event in manager.stream_code(session, code):
        arrivals.append((time.monotonic(), event))  # noqa: PERF401 - the moment of arrival is the point
    assert arrivals[0][1] == StreamOutput("stdout", "first\n")
    assert arrivals[-1][0] - arrivals[0][0] > 1.5
    finished = arrivals[-1][1]
    assert isinstance(finished, CellFinished)
    assert finished.result.stdout == "first\nlast\n"


async def test_a_progress_bar_is_one_line(manager: AgentKernelManager, session: KernelSession) -> None:
    """tqdm rewrites its line a thousand times; what is kept is what a notebook shows, beside the cell's own output."""
    code = "from tqdm import tqdm\nfor n in tqdm(range(1000), mininterval=0): pass\nprint('done')"
    result = await manager.execute_code(session, code)
    assert result["stdout"] == "done\n"
    assert result["stderr"].count("\n") == 1
    assert re.match(r"100%\|.+\| 1000/1000 \[", result["stderr"].strip("\r"))
    assert "\r" not in result["stderr"].strip("\r")


async def test_display_updates_and_clear_output_act_as_in_a_notebook(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """An updated display shows its last content; cleared output is gone."""
    code = (
        "from IPython.display import display, clear_output\n"
        "print('gone'); clear_output(wait=True); print('stays')\n"
        "handle = display('old', display_id=True); handle.update('new')"
    )
    result = await manager.execute_code(session, code)
    assert result["stdout"] == "stays\n"
    shown = [output["data"]["text/plain"] for output in result["outputs"] if output["type"] == "display_data"]
    assert shown == ["'new'"]


async def test_output_past_the_limit_is_dropped_and_said(manager: AgentKernelManager, session: KernelSession) -> None:
    """A cell that prints 5 MB under a limit of 1 MiB ends ok, with the head, and with how much was dropped."""
    result = await manager.execute_code(session, "for n in range(50): print('x' * 100_000)")
    assert result["status"] == "ok"
    kept, truncated = len(result["stdout"]), result["truncated"]
    assert 0 < kept <= 1024 * 1024
    assert truncated["limit_bytes"] == 1024 * 1024
    assert kept + truncated["dropped_bytes"] == pytest.approx(50 * 100_001, rel=0.01)
    assert (await manager.execute_code(session, "1"))["result"] == "1"


@pytest.mark.parametrize(
    "code",
    ["'x' * 8_000_000", "from IPython.display import HTML; HTML('x' * 8_000_000)", "raise ValueError('x' * 8_000_000)"],
)
async def test_one_huge_output_does_not_cost_the_kernel(
    manager: AgentKernelManager, session: KernelSession, code: str
) -> None:
    """A single value far beyond the bound on a message is cut inside, in plain words, and the kernel lives."""
    await manager.execute_code(session, "kept = 5")
    result = await manager.execute_code(session, code)
    assert "left out" in json.dumps(result["outputs"])
    assert len(json.dumps(result)) < 4_000_000
    assert (await manager.execute_code(session, "kept"))["result"] == "5"


async def test_input_fails_at_once_with_a_clear_error(manager: AgentKernelManager, session: KernelSession) -> None:
    """``input()`` does not hang the caller."""
    result = await manager.execute_code(session, "input('name? ')")
    assert result["error"]["ename"] == "StdinNotImplementedError"


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import asyncio; await asyncio.sleep(60)",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "while True:\n    try:\n        import time; time.sleep(0.01)\n    except ValueError: pass",
    ],
)
async def test_a_timeout_interrupts_and_keeps_the_variables(runtime: str, body: str) -> None:
    """Past its limit a cell is interrupted; what it printed is in the error, and the kernel still has its state."""
    limits = KernelResourceLimits(max_execution_time=1)
    async with make_manager(runtime, limits=limits) as manager, manager.acquire_kernel("a") as (_kernel, session):
        await manager.execute_code(session, "kept = 'here'")
        with pytest.raises(KernelTimeoutError) as caught:
            await manager.execute_code(session, f"print('begun')\n{body}")
        assert caught.value.result.stdout == "begun\n"
        assert caught.value.result.kernel_state == "idle"
        assert (await manager.execute_code(session, "kept"))["result"] == "'here'"
        assert session.execution_history[1]["result"]["outcome"] == "timeout"


async def test_a_cell_that_swallows_the_interrupt_costs_its_kernel(runtime: str) -> None:
    """When the interrupt does not end the cell, the kernel is killed, the error says so, and its place is free."""
    code = "import time\nwhile True:\n    try:\n        time.sleep(1)\n    except KeyboardInterrupt: pass"
    limits = KernelResourceLimits(max_execution_time=1)
    async with make_manager(runtime, limits=limits, max_kernels=1) as manager:
        async with manager.acquire_kernel("a") as (_kernel, session):
            with pytest.raises(KernelTimeoutError, match="had to be killed") as caught:
                await manager.execute_code(session, code)
            assert caught.value.result.kernel_state == "dead"
            with pytest.raises(KernelDiedError):
                await manager.execute_code(session, "1")
        async with manager.acquire_kernel("b", timeout=30) as (_kernel, session):
            assert (await manager.execute_code(session, "1"))["result"] == "1"


async def test_cancelling_the_caller_interrupts_the_cell(manager: AgentKernelManager, session: KernelSession) -> None:
    """After a cancelled call the kernel is free and keeps its variables, and the history tells of the cell."""
    await manager.execute_code(session, "kept = 7")
    task = asyncio.create_task(manager.execute_code(session, "import time; time.sleep(60)"))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert session.execution_history[-1]["result"]["outcome"] == "cancelled"
    assert (await manager.execute_code(session, "kept"))["result"] == "7"


@pytest.mark.alone
async def test_cancelling_twice_still_sees_the_cell_end(manager: AgentKernelManager, session: KernelSession) -> None:
    """An impatient caller does not leave a cell that runs on unseen."""
    task = asyncio.create_task(manager.execute_code(session, "import time; time.sleep(60)"))
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    begun = time.monotonic()
    assert (await manager.execute_code(session, "1"))["result"] == "1"
    assert time.monotonic() - begun < 2


async def test_a_slow_consumer_does_not_stretch_the_time_limit(runtime: str) -> None:
    """The limit holds while the consumer takes no events."""
    code = "import time\nprint('first', flush=True)\nfor _ in range(50): time.sleep(0.1)\nprint('never')"
    limits = KernelResourceLimits(max_execution_time=1)
    async with make_manager(runtime, limits=limits) as manager, manager.acquire_kernel("a") as (_kernel, session):
        events = manager.stream_code(session, code)
        assert await anext(events) == StreamOutput("stdout", "first\n")
        await asyncio.sleep(3)
        with pytest.raises(KernelTimeoutError) as caught:
            async for _ in events:
                pass
        assert "never" not in caught.value.result.stdout


async def test_lone_surrogates_do_not_swallow_output(manager: AgentKernelManager, session: KernelSession) -> None:
    """What cannot be encoded is replaced; everything beside it arrives."""
    result = await manager.execute_code(session, "print('before'); print('a\\ud83d'); print('after')")
    assert result["stdout"] == "before\na?\nafter\n"
    result = await manager.execute_code(session, "raise ValueError('x\\ud83d')")
    assert (result["error"]["ename"], result["error"]["evalue"]) == ("ValueError", "x?")


async def test_a_display_of_the_wrong_shape_does_not_spoil_the_notebook(
    manager: AgentKernelManager, session: KernelSession, tmp_path: Path
) -> None:
    """An item that nbformat refuses is dropped where it comes in; the others are in the result and the notebook."""
    result = await manager.execute_code(session, "display({'text/plain': 5, 'text/html': '<b>'}, raw=True)")
    assert [output["data"] for output in result["outputs"]] == [{"text/html": "<b>"}]
    manager.save_session_as_notebook(session, tmp_path / "a.ipynb")
    notebook = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert [output["data"] for output in notebook["cells"][-1]["outputs"]] == [{"text/html": "<b>"}]


async def test_a_consumer_that_stops_early_interrupts_the_cell(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """Closing the stream ends the cell; it does not run on unseen."""
    code = "import time\nticks = 0\nwhile True:\n    ticks += 1; print(ticks, flush=True); time.sleep(0.1)"
    async with contextlib.aclosing(manager.stream_code(session, code)) as events:
        async for _ in events:
            break
    first = (await manager.execute_code(session, "ticks"))["result"]
    await asyncio.sleep(0.5)
    assert (await manager.execute_code(session, "ticks"))["result"] == first


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import os; os._exit(3)", 3), ("import ctypes; ctypes.string_at(0)", 139)],
)
async def test_a_cell_that_ends_its_kernel_is_told_so(manager: AgentKernelManager, code: str, exit_code: int) -> None:
    """A cell that kills its own kernel gets a result with the exit code, at once, and the agent a fresh kernel."""
    async with manager.acquire_kernel("mortal", timeout=60) as (_kernel, session):
        await manager.execute_code(session, "kept = 1")
        result = await asyncio.wait_for(manager.execute_code(session, f"print('last words', flush=True)\n{code}"), 15)
    assert result["status"] == "error"
    assert result["outcome"] == "kernel_died"
    assert f"exit code {exit_code}" in result["error"]["evalue"]
    assert result["kernel_state"] == "dead"
    async with manager.acquire_kernel("mortal", timeout=60) as (_kernel, session):
        assert session.previous_end == "kernel_died"
        assert (await manager.execute_code(session, "kept"))["error"]["ename"] == "NameError"
    await manager.end_session("mortal")


async def test_cells_of_one_session_take_turns(manager: AgentKernelManager, session: KernelSession) -> None:
    """Two tasks that use one session run one after the other."""
    code = "import time\nbegun = time.monotonic(); time.sleep(0.5); print(begun, time.monotonic())"
    results = await asyncio.gather(*(manager.execute_code(session, code) for _ in range(3)))
    spans = sorted([float(word) for word in result["stdout"].split()] for result in results)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


async def test_kernel_features_that_agents_use(manager: AgentKernelManager, session: KernelSession) -> None:
    """Magics, shell escapes, top-level await and the last expression's value work."""
    code = "import asyncio\nawait asyncio.sleep(0.01)\n%time pass\n!echo from the shell\n[1, 2]"
    result: dict[str, Any] = await manager.execute_code(session, code)
    assert result["status"] == "ok", result["error"]
    assert "from the shell" in result["stdout"]
    assert result["result"] == "[1, 2]"
    assert result["duration_s"] > 0


async def test_the_last_values_are_there_from_the_first_cell_on(runtime: str) -> None:
    """`_`, `__`, `Out` and `_N` as in any notebook, in a fresh kernel and after a restore."""
    async with one_session(runtime) as (manager, session):
        for restored in (False, True):
            assert (await manager.execute_code(session, "20"))["result"] == "20"
            assert (await manager.execute_code(session, "_ + 1"))["result"] == "21"
            assert (await manager.execute_code(session, "_ * 2, __"))["result"] == "(42, 20)"
            if not restored:
                assert (await manager.execute_code(session, "_, Out[1], _2"))["result"] == "((42, 20), 20, 21)"
                await manager.restore(session, await manager.checkpoint(session))
                assert (await manager.execute_code(session, "_[0], Out[2]"))["result"] == "((42, 20), 21)"


async def test_display_events_are_typed(manager: AgentKernelManager, session: KernelSession) -> None:
    """A display comes as DisplayData with its metadata."""
    code = "from IPython.display import display\ndisplay({'text/plain': 'x'}, raw=True, metadata={'a': 1})"
    events = [event async for event in manager.stream_code(session, code)]
    assert isinstance(events[0], DisplayData)
    assert events[0].metadata == {"a": 1}
