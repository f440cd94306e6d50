"""Tools of the host, called by cells on real kernels."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, InvalidInputError, KernelSession, SessionBusyError, Tool
from orchestrator.isolation.measure import watch
from tests.conftest import awaited, make_manager, one_session

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Point:
    x: int
    y: int


def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


async def slow(seconds: float) -> str:
    """Sleep."""
    await asyncio.sleep(seconds)
    return f"slept {seconds}"


def point(x: int) -> Point:
    return Point(x, x)


def failing() -> None:
    raise KeyError("no such thing")


def no_json() -> object:
    return object()


def large(size: int) -> str:
    return "x" * size


def echo(value: Any) -> Any:
    return value


WEATHER = Tool(
    "get-weather",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
    lambda city: {"city": city, "degrees": 20},
    "Return the weather.",
)
TOOLS: list[Any] = [add, slow, point, failing, no_json, large, echo, WEATHER]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("agent", timeout=60, tools=TOOLS) as (_kernel, session):
        await manager.execute(session, "import tools, asyncio, threading, time")
        yield session


CASES = {
    "tools.add(3)": "5",
    "tools.add(a=3, b=4), tools.add(1, b=5)": "(7, 6)",
    "tools.add(tools.add(1), tools.add(2))": "7",
    "tools.point(3)": "{'x': 3, 'y': 3}",
    "await tools.slow.async_(0.01)": "'slept 0.01'",
    "tools.call_tool('add', {'a': 1})": "3",
    "await tools.call_tool_async('add', {'a': 1})": "3",
    "tools.get_weather(city='Bern')": "{'city': 'Bern', 'degrees': 20}",
    "tools.call_tool('get-weather', {'city': 'Bern'})['degrees']": "20",
    "tools.echo({'deep': [1, 2.5, None, True, 'ü\\u20ac\\U0001f389']})": "{'deep': [1, 2.5, None, True, 'ü€🎉']}",
    "tools.add.__doc__, repr(tools.add)": "('Add two numbers.', '<tool add(a, b=2)>')",
    "import inspect; str(inspect.signature(tools.add))": "'(a, b=2)'",
    "[tool['name'] for tool in tools.list_tools()]": str([getattr(tool, "__name__", "get-weather") for tool in TOOLS]),
    "from concurrent.futures import ThreadPoolExecutor as Pool; list(Pool(4).map(tools.add, [1, 2]))": "[3, 4]",
    "from tools import add as plus; plus(4)": "6",
}


@pytest.mark.parametrize("code", CASES)
async def test_a_call_returns_its_result(manager: AgentKernelManager, session: KernelSession, code: str) -> None:
    result = await manager.execute(session, code)
    assert result.result == CASES[code], result.error


FAILURES = {
    "tools.failing()": "KeyError: 'no such thing'",
    "tools.no_json()": "no JSON",
    "tools.large(3_000_000)": "are allowed",
    "tools.add('x')": "valid integer",
    "tools.add()": "Field required",
    "tools.add(1, c=2)": "Extra inputs",
    "tools.add(1, 2, 3)": "takes 2 arguments",
    "tools.add(1, a=1)": "two values for a",
    "tools.nosuch()": "no tool 'nosuch'; it has: add",
    "tools.call_tool('nosuch', {})": "there is no tool 'nosuch'",
    "tools.get_weather(town='x')": "'city' is a required property",
    "tools.get_weather(city=7)": "not of type 'string'",
    "tools.echo(object())": "the arguments are no JSON",
    "tools.echo(float('nan'))": "the arguments are no JSON",
    "tools.echo('x' * 500_000)": "are allowed",
    "tools.echo('x' * 2_000_000)": "are allowed",
    "tools.echo(list(range(100_000)))": "are allowed",
    "tools.echo([0] * 40_000)": "too many items",
}


@pytest.mark.parametrize("code", FAILURES)
async def test_a_call_that_fails_raises_inside(manager: AgentKernelManager, session: KernelSession, code: str) -> None:
    result = await manager.execute(session, code)
    assert result.error is not None
    assert FAILURES[code] in f"{result.error.ename}: {result.error.evalue}"
    assert (await manager.execute(session, "tools.add(1)")).result == "3"


async def test_an_error_can_be_caught_and_says_its_kind(manager: AgentKernelManager, session: KernelSession) -> None:
    code = "try:\n    tools.failing()\nexcept tools.ToolError as error:\n    found = error.tool, error.kind\nfound"
    assert (await manager.execute(session, code)).result == "('failing', 'KeyError')"


async def test_fifty_gathered_calls_overlap(manager: AgentKernelManager, session: KernelSession) -> None:
    code = (
        "start = time.monotonic()\n"
        "got = await asyncio.gather(*(tools.slow.async_(seconds=0.3) for _ in range(50)))\n"
        "len(got), time.monotonic() - start < 0.9"
    )
    result = await manager.execute(session, code)
    assert result.result == "(50, True)"
    assert result.evidence.tool_calls == 50
    assert 0.3 <= result.evidence.tool_s < 0.9


async def test_no_more_run_at_once_than_the_policy_allows(runtime: str) -> None:
    running = most = 0

    async def count() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5)
        running -= 1

    async with one_session(runtime) as (manager, session):
        code = "import tools, asyncio\n_ = await asyncio.gather(*(tools.count.async_() for _ in range(200)))"
        assert (await manager.execute(session, code, tools=[count])).outcome == "ok"
    assert most == manager.policy.tools.concurrent


async def test_the_clock_stops_while_a_tool_runs(manager: AgentKernelManager, session: KernelSession) -> None:
    """A tool may take longer than its cell; the cell's own time counts before and after it."""
    result = await manager.execute(session, "tools.slow(1.5)", timeout=0.7)
    assert (result.outcome, result.result) == ("ok", "'slept 1.5'")
    result = await manager.execute(session, "tools.slow(1.0)\ntime.sleep(5)", timeout=0.7)
    assert result.outcome == "timeout"
    assert result.duration_s < 4


@pytest.mark.parametrize("code", ["tools.slow(30)", "await tools.slow.async_(30)",
                                  "await asyncio.gather(*(tools.slow.async_(30) for _ in range(5)))"])  # fmt: skip
async def test_an_interrupt_reaches_the_tool(manager: AgentKernelManager, session: KernelSession, code: str) -> None:
    cancelled = asyncio.Event()

    async def slow(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(manager.execute(session, code, tools=[slow]))
    await asyncio.sleep(0.7)
    assert await awaited(manager.interrupt(session))
    result = await task
    assert result.outcome == "interrupted"
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_no_tool_runs_after_its_cell(manager: AgentKernelManager, session: KernelSession) -> None:
    """A call that a thread leaves behind is cancelled, and a later one of that thread is refused inside."""
    ended: list[str] = []

    async def watched() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    code = (
        "found = []\n"
        "def work():\n"
        "    for _ in range(2):\n"
        "        try: tools.watched()\n"
        "        except tools.ToolError as error: found.append(str(error))\n"
        "threading.Thread(target=work).start()\n"
        "time.sleep(0.5)"
    )
    assert (await manager.execute(session, code, tools=[watched])).outcome == "ok"
    await asyncio.sleep(0.3)
    assert ended == ["cancelled"]
    found = (await manager.execute(session, "found")).result
    assert found is not None
    assert "the cell is over" in found
    assert "only while a cell runs" in found


async def test_cancelling_the_call_cancels_its_tools(manager: AgentKernelManager, session: KernelSession) -> None:
    cancelled = asyncio.Event()

    async def waiting() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(manager.execute(session, "tools.waiting()", tools=[waiting]))
    await asyncio.sleep(0.7)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_plain_function_runs_in_a_thread(manager: AgentKernelManager, session: KernelSession) -> None:
    threads: list[threading.Thread] = []

    def blocking() -> None:
        threads.append(threading.current_thread())
        time.sleep(0.3)

    await manager.execute(session, "tools.blocking()", tools=[blocking])
    assert threads[0] is not threading.main_thread()


async def test_a_tool_cannot_run_a_cell_of_its_own_session(manager: AgentKernelManager, session: KernelSession) -> None:
    async def again() -> str:
        with pytest.raises(SessionBusyError):
            await manager.execute(session, "1")
        return "refused"

    assert (await manager.execute(session, "tools.again()", tools=[again])).result == "'refused'"


async def test_tools_of_a_call_and_of_a_lease(runtime: str) -> None:
    """A call's tools are offered beside the lease's, for that cell; after the lease there are none."""
    async with make_manager(runtime) as manager:
        async with manager.acquire_kernel("a", timeout=60, tools=[add]) as (_, session):
            names = "import tools; [tool['name'] for tool in tools.list_tools()]"
            assert (await manager.execute(session, names, tools=[point])).result == "['add', 'point']"
            assert (await manager.execute(session, names)).result == "['add']"
        async with manager.acquire_kernel("a") as (_, session):
            assert (await manager.execute(session, names)).result == "[]"
            result = await manager.execute(session, "tools.add(1)")
            assert result.error is not None
            assert "no tool 'add'" in result.error.evalue


async def test_a_session_with_tools_sleeps_and_wakes(runtime: str) -> None:
    async with make_manager(runtime) as manager:
        async with manager.acquire_kernel("a", timeout=60, tools=[add]) as (_, session):
            await manager.execute(session, "import tools; plus = tools.add; x = tools.add(1)")
        assert await manager.hibernate("a")
        async with manager.acquire_kernel("a", timeout=60, tools=[add]) as (_, session):
            result = await manager.execute(session, "x, tools.add(2)")
            assert result.result == "(3, 4)", result.error


async def test_a_file_tools_py_is_the_sessions_own_without_tools(runtime: str) -> None:
    async with one_session(runtime) as (manager, session):
        await manager.write_file(session, "tools.py", "mine = 7")
        assert (await manager.execute(session, "import tools; tools.mine")).result == "7"


@pytest.mark.alone
async def test_ten_thousand_calls_stall_nobody(manager: AgentKernelManager, session: KernelSession) -> None:
    """The event loop stays free, and calls beyond the limit are refused."""
    code = (
        "refused = 0\n"
        "async def one(n):\n"
        "    global refused\n"
        "    try: await tools.add.async_(n)\n"
        "    except tools.ToolError: refused += 1\n"
        "async def all_of_them():\n"
        "    tasks = [asyncio.ensure_future(one(n)) for n in range(10_000)]\n"
        "    await asyncio.wait(tasks, timeout=5)\n"
        "    for task in tasks: task.cancel()\n"
        "await all_of_them()\n"
        "refused"
    )
    async with watch() as cost:
        result = await manager.execute(session, code, timeout=25)
    assert result.outcome == "ok", result
    assert int(result.result or 0) >= 1000
    assert min(cost.stall, cost.loop_cpu) < 0.1
    assert result.evidence.tool_calls == 10_000


HOSTILE = """
from ipykernel.kernelapp import IPKernelApp
kernel = IPKernelApp.instance().kernel
def say(kind, content, *buffers):
    kernel.session.send(kernel.stdin_socket, kind, content, kernel.tools._parent, ident=kernel.tools._ident,
                        buffers=list(buffers))
"""
FORGED = {
    "an unlisted tool": ("say('tool_request', {'id': 'f', 'name': 'secret'}, b'{}')", 0),
    "a doubled call": ("for _ in range(20): say('tool_request', {'id': 'f', 'name': 'count'}, b'{}')", 1),
    "no id": ("say('tool_request', {'name': 'count'}, b'{}')", 0),
    "an id that is no text": ("say('tool_request', {'id': [1], 'name': 'count'}, b'{}')", 0),
    "a long id": ("say('tool_request', {'id': 'x' * 1000, 'name': 'count'}, b'{}')", 0),
    "a name that is no text": ("say('tool_request', {'id': 'f', 'name': {}}, b'{}')", 0),
    "no arguments": ("say('tool_request', {'id': 'f', 'name': 'count'})", 0),
    "arguments that are a list": ("say('tool_request', {'id': 'f', 'name': 'count'}, b'[]')", 0),
    "arguments that are nonsense": ("say('tool_request', {'id': 'f', 'name': 'count'}, b'\\xff{')", 0),
    "deep arguments": ("say('tool_request', {'id': 'f', 'name': 'count'}, b'{\"a\":' + b'[' * 9000)", 0),
    "a strange cancellation": ("say('tool_cancel', {'id': {}}); say('tool_cancel', {'id': 'nobody'})", 0),
}  # fmt: skip


@pytest.mark.parametrize("attack", FORGED)
async def test_forged_calls(runtime: str, attack: str) -> None:
    """A forged call reaches a function only if it is listed and its arguments are valid, and once."""
    calls = 0

    async def count() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        return calls

    code, expected = FORGED[attack]
    async with one_session(runtime) as (manager, session):
        await manager.execute(session, HOSTILE, tools=[count])
        result = await manager.execute(session, f"import time\n{code}\ntime.sleep(0.3)", tools=[count])
        assert result.outcome == "ok", result
        assert calls == expected
        assert (await manager.execute(session, "import tools; tools.count()", tools=[count])).result == str(
            expected + 1
        )


async def test_the_audit_log_has_every_call(runtime: str, tmp_path: Path) -> None:
    async with one_session(runtime, audit_log=str(tmp_path / "audit.jsonl")) as (manager, session):
        code = "import tools\ntools.add(1)\ntry: tools.add('x')\nexcept tools.ToolError: pass\ntools.failing()"
        await manager.execute(session, code, tools=TOOLS)
    entries = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    called = [entry for entry in entries if entry["event"] == "tool.called"]
    assert [(entry["tool"], entry["outcome"]) for entry in called] == [
        ("add", "ok"),
        ("add", "refused"),
        ("failing", "error"),
    ]
    assert all(len(entry["arguments_sha256"]) == 64 for entry in called)
    assert called[0]["agent"] == "agent"


@pytest.mark.parametrize(
    ("tools", "match"),
    [
        ([lambda: 1], "not the name of a tool"),
        ([add, add], "two tools"),
        ([Tool("a-b", {}, add), Tool("a_b", {}, add)], "two tools"),
        ([lambda *args: 1], "not the name"),
        ([Tool(f"t{n}", {}, add) for n in range(201)], "at most 200"),
    ],
)
async def test_tools_that_cannot_be_offered(manager: AgentKernelManager, tools: list[Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        async with manager.acquire_kernel("other", tools=tools):
            raise AssertionError("unreachable")


async def test_schemas_that_cannot_be_used() -> None:
    def spread(*args: int) -> None: ...

    def unknown(value: threading.Thread) -> None: ...

    for arguments, match in (
        (("x", {"type": "nonsense"}, add), "no JSON schema"),
        (("x", 1, add), "no mapping"),
        (("x", [], add), "no mapping"),
        (("x", None, spread), "cannot be named"),
        (("x", None, unknown), "cannot be described"),
        (("1x", {}, add), "not the name"),
        (("x", {}, 3), "no function"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            Tool(*arguments)
