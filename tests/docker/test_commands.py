"""Commands beside cells, on real kernels."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from orchestrator import (
    AgentKernelManager,
    CommandFinished,
    CommandLimitError,
    CommandOutput,
    InvalidInputError,
    KernelDiedError,
    KernelSession,
    OutputDropped,
    RunningCommand,
)
from tests.conftest import awaited, make_manager, one_session
from tests.docker.command_cases import CASES, MIB, Case

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        yield session


async def output_of(running: RunningCommand) -> str:
    pieces = [event.data async for event in running.events() if isinstance(event, CommandOutput)]
    return b"".join(pieces).decode()


async def until_output(running: RunningCommand, wanted: str) -> None:
    async with asyncio.timeout(20), contextlib.aclosing(running.events()) as events:
        seen = b""
        async for event in events:
            if isinstance(event, CommandOutput):
                seen += event.data
            if wanted.encode() in seen:
                return
    raise AssertionError(seen)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_command_has_exactly_this_result(
    manager: AgentKernelManager, session: KernelSession, case: Case
) -> None:
    """Each row of the table: exit code, both streams, and the outcome."""
    await manager.write_file(session, "plain", "echo never\n")
    await manager.run_command(session, ["chmod", "755", "plain"])
    result = await manager.run_command(session, case.command, **{"timeout": 60, **(case.arguments or {})})
    assert result.exit_code == case.exit_code, result
    if case.stdout is not None:
        assert result.stdout == case.stdout
    if case.stderr is not None:
        assert result.stderr == case.stderr
    assert result.outcome == (case.outcome or ("ok" if case.exit_code == 0 else "error"))
    assert result.timed_out == (case.outcome == "timeout")
    assert result.kernel_state == "idle"


async def test_a_flood_of_1_gb_is_bounded_on_the_host(manager: AgentKernelManager, session: KernelSession) -> None:
    """The result has the beginning and the end; the host's memory grows by the limit and little more."""
    peak, before = 0, psutil.Process().memory_info().rss

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, psutil.Process().memory_info().rss - before)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    result = await manager.run_command(session, "echo begin; head -c 1000000000 /dev/zero; echo end", timeout=300)
    watching.cancel()
    assert result.outcome == "ok"
    assert result.stdout.startswith(b"begin\n\0")
    assert result.stdout.endswith(b"\0end\n")
    assert result.truncated is not None
    kept = len(result.stdout)
    assert result.truncated.dropped_bytes == pytest.approx(1_000_000_010 - kept, abs=200)
    assert kept == pytest.approx(10 * MIB, abs=200)
    assert peak < 64 * MIB


async def test_commands_run_while_a_cell_runs_and_several_at_once(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    cell = asyncio.create_task(manager.execute(session, "import time\nfor _ in range(20): time.sleep(0.1)\n'over'"))
    await asyncio.sleep(0.2)
    results = await asyncio.gather(*(manager.run_command(session, f"sleep 0.1; echo {n}") for n in range(5)))
    assert [result.stdout for result in results] == [b"%d\n" % n for n in range(5)]
    assert not cell.done()
    assert (await cell).result == "'over'"


async def test_a_command_sees_the_files_of_cells_and_cells_see_its_files(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    await manager.execute(session, "_ = open('of_cell', 'w').write('a')")
    assert (await manager.run_command(session, "cat of_cell; echo b > of_command")).stdout == b"a"
    assert (await manager.execute(session, "open('of_command').read()")).result == "'b\\n'"


async def test_a_cells_interrupt_and_its_end_leave_commands_alone(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """Neither the command nor what it has left in the background ends with an interrupted cell."""
    await manager.run_command(session, "nohup sleep 97 >/dev/null 2>&1 &")
    running = await manager.start_command(session, "sleep 98; echo end")
    cell = asyncio.create_task(
        manager.execute(session, "import subprocess, time\nsubprocess.run('sleep 99', shell=True)")
    )
    await asyncio.sleep(0.5)
    assert await awaited(manager.interrupt(session))
    assert (await cell).outcome == "interrupted"
    found = await manager.run_command(
        session, "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -xE '9[789]' | sort -u"
    )
    assert found.stdout_text.split() == ["97", "98"]
    await awaited(running.kill())
    assert (await running.wait(20)).outcome == "interrupted"
    await manager.run_command(session, ["pkill", "sleep"])


async def test_streaming_yields_output_as_it_comes(manager: AgentKernelManager, session: KernelSession) -> None:
    seen: list[tuple[str, bytes]] = []
    times: list[float] = []
    loop = asyncio.get_running_loop()
    async for event in manager.stream_command(session, "echo one; sleep 0.5; echo two >&2"):
        if isinstance(event, CommandOutput):
            seen.append((event.name, event.data))
            times.append(loop.time())
        else:
            assert isinstance(event, CommandFinished)
            assert event.result.stdout == b"one\n"
    assert seen == [("stdout", b"one\n"), ("stderr", b"two\n")]
    assert times[1] - times[0] > 0.3


async def test_a_command_waits_for_a_slow_consumer(manager: AgentKernelManager, session: KernelSession) -> None:
    """While nobody takes its output, it writes no more than the window and its pipe hold."""
    code = "import sys, os\nfor n in range(400):\n    os.write(1, bytes(65536)); open('progress', 'w').write(str(n))"
    async with contextlib.aclosing(manager.stream_command(session, ["python3", "-c", code])) as events:
        first = await anext(events)
        assert isinstance(first, CommandOutput)
        await asyncio.sleep(1.0)
        assert int(await manager.read_file(session, "progress")) < 60
        total = len(first.data)
        async for event in events:
            if isinstance(event, CommandOutput):
                total += len(event.data)
            elif isinstance(event, OutputDropped):
                total += event.dropped_bytes
    assert total == 400 * 65536


async def test_closing_the_stream_kills_the_command(manager: AgentKernelManager, session: KernelSession) -> None:
    async with contextlib.aclosing(manager.stream_command(session, "echo up; sleep 1234")) as events:
        async for _event in events:
            break
    assert (await manager.run_command(session, ["pgrep", "-f", "sleep 1234"])).exit_code == 1
    assert (await session.command_history())[-2].outcome == "cancelled"


async def test_a_cancelled_call_kills_its_command(manager: AgentKernelManager, session: KernelSession) -> None:
    task = asyncio.create_task(manager.run_command(session, "sleep 1235"))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await manager.run_command(session, ["pgrep", "-f", "sleep 1235"])).exit_code == 1
    assert await awaited(manager.list_commands(session)) == []


async def test_a_call_that_is_cancelled_at_once_leaves_nothing(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    for turns in range(8):
        task = asyncio.create_task(manager.run_command(session, "sleep 1236"))
        for _ in range(turns * 3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.5)
    assert (await manager.run_command(session, ["pgrep", "-f", "sleep 1236"])).exit_code == 1
    assert await awaited(manager.list_commands(session)) == []


async def test_a_background_command_is_watched_fed_and_killed(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    running = await manager.start_command(session, "read line; echo got $line; sleep 60", keep_stdin=True)
    assert [each.number for each in await awaited(manager.list_commands(session))] == [running.number]
    assert running.is_running
    assert await running.write("hello\n")
    with pytest.raises(TimeoutError):
        await running.wait(0.3)
    assert await awaited(running.kill("TERM"))
    result = await running.wait(20)
    assert (result.outcome, result.exit_code, result.stdout) == ("interrupted", 143, b"got hello\n")
    assert not await awaited(running.kill())
    assert await awaited(manager.list_commands(session)) == []
    assert [event async for event in running.events() if isinstance(event, CommandOutput)] == [
        CommandOutput("stdout", b"got hello\n")
    ]


async def test_only_one_consumer_reads_a_command(manager: AgentKernelManager, session: KernelSession) -> None:
    running = await manager.start_command(session, "echo x")
    await running.wait(20)
    assert await output_of(running) == "x\n"
    with pytest.raises(InvalidInputError, match="read already"):
        await output_of(running)


async def test_output_that_nobody_reads_is_bounded(manager: AgentKernelManager, session: KernelSession) -> None:
    """A command that nobody watches does not wait; a later consumer gets the end, and is told what is missing."""
    running = await manager.start_command(session, "head -c 5000000 /dev/zero; echo end")
    assert (await running.wait(60)).outcome == "ok"
    events = [event async for event in running.events()]
    assert isinstance(events[0], OutputDropped)
    kept = b"".join(event.data for event in events if isinstance(event, CommandOutput))
    assert kept.endswith(b"end\n")
    assert events[0].dropped_bytes + len(kept) == 5_000_004


async def test_stdin_that_was_not_kept_is_refused(manager: AgentKernelManager, session: KernelSession) -> None:
    running = await manager.start_command(session, "sleep 5")
    with pytest.raises(InvalidInputError, match="keep_stdin"):
        await running.write(b"x")
    await awaited(running.kill())
    await running.wait(20)


@pytest.mark.parametrize(
    ("command", "arguments", "match"),
    [
        ("", {}, "1 to"),
        ([], {}, "1 to"),
        (["true", "a\0b"], {}, "NUL"),
        (["true", "\ud800"], {}, "surrogate"),
        (["true", 1], {}, "strings"),
        ("true", {"env": {"A=B": "1"}}, "name of a variable"),
        ("true", {"env": {"A": 1}}, "strings"),
        ("true", {"timeout": 0}, "above 0"),
        ("true", {"timeout": float("nan")}, "above 0"),
        (["true", "x" * 200_000], {}, "too long"),
        ("true", {"cwd": "/nosuch"}, "working directory"),
        ("true", {"cwd": "/etc/passwd"}, "working directory"),
        ("true", {"cwd": "a\0"}, "NUL"),
    ],
)
async def test_bad_arguments_are_refused(
    manager: AgentKernelManager, session: KernelSession, command: object, arguments: dict[str, object], match: str
) -> None:
    with pytest.raises(InvalidInputError, match=match):
        await manager.run_command(session, command, **arguments)  # type: ignore[arg-type]
    assert await awaited(manager.list_commands(session)) == []


async def test_no_more_commands_run_than_the_policy_allows(manager: AgentKernelManager, session: KernelSession) -> None:
    most = manager.policy.limits.commands
    running = [await manager.start_command(session, "sleep 60") for _ in range(most)]
    with pytest.raises(CommandLimitError) as caught:
        await manager.run_command(session, "true")
    assert caught.value.limit == most
    for each in running:
        await awaited(each.kill())
    await asyncio.gather(*(each.wait(20) for each in running))
    assert (await manager.run_command(session, "true")).ok


async def test_a_terminal_is_one(manager: AgentKernelManager, session: KernelSession) -> None:
    """It has a size that changes, an echo, and an end of input."""
    command = "stty size; trap 'stty size' WINCH; read line; cat; stty size; echo end"
    running = await manager.start_command(session, command, terminal=(30, 100))
    seen = ""
    async with asyncio.timeout(60):
        async for event in running.events():
            if not isinstance(event, CommandOutput):
                break
            before, seen = seen, seen + event.data.decode().replace("\r\n", "\n")
            if "30 100" in seen and "30 100" not in before:
                resizing = running.resize(40, 120)  # type: ignore[func-returns-value] # a coroutine over a server
                await awaited(resizing)
                await running.write("first\nsecond\n")
                await running.close_stdin()
    assert "40 120" in seen
    assert seen.count("first") == 1
    assert seen.count("second") == 2
    assert seen.endswith("end\n")


async def test_control_c_reaches_a_program_on_a_terminal(manager: AgentKernelManager, session: KernelSession) -> None:
    running = await manager.start_command(session, "echo up; sleep 60", terminal=(24, 80))
    await asyncio.sleep(0.5)
    await running.write("\x03")
    assert (await running.wait(20)).exit_code == 130


async def test_a_cell_that_takes_exit_statuses_is_named(manager: AgentKernelManager, session: KernelSession) -> None:
    cell = asyncio.create_task(
        manager.execute(
            session, "import os, time\ntry:\n    os.wait()\nexcept ChildProcessError: pass\ntime.sleep(0.2)"
        )
    )
    await asyncio.sleep(0.3)
    result = await manager.run_command(session, "sleep 0.3")
    await cell
    assert result.exit_code in (0, None)
    if result.exit_code is None:
        assert "exit status" in result.warnings[0]


async def test_history_and_numbers(manager: AgentKernelManager, session: KernelSession) -> None:
    first = await manager.run_command(session, ["echo", "a b"])
    second = await manager.run_command(session, "echo c; exit 4")
    records = (await session.command_history())[-2:]
    assert [record.number for record in records] == [first.number, second.number] == [first.number, first.number + 1]
    assert [record.command for record in records] == [("echo", "a b"), ("echo c; exit 4",)]
    assert [record.shell for record in records] == [False, True]
    assert [record.outcome for record in records] == ["ok", "error"]
    assert records[0].result["stdout"] == "a b\n"


async def test_a_result_survives_its_dict(manager: AgentKernelManager, session: KernelSession) -> None:
    result = await manager.run_command(session, ["printf", "\\377ok"])
    assert type(result).from_dict(result.as_dict()) == result


async def test_a_kernel_that_dies_ends_its_commands(runtime: str) -> None:
    async with one_session(runtime) as (manager, session):
        running = await manager.start_command(session, "echo up; sleep 60")
        await asyncio.sleep(0.5)
        await manager.execute(session, "import os; os._exit(3)")
        result = await running.wait(20)
        assert (result.outcome, result.exit_code, result.stdout) == ("kernel_died", None, b"up\n")
        assert result.kernel_state == "dead"
        with pytest.raises((KernelDiedError, LookupError)):
            await manager.run_command(session, "true")


async def test_memory_that_a_command_takes_is_an_oom(runtime: str) -> None:
    async with one_session(runtime) as (manager, session):
        code = "x = []\nwhile True: x.append(bytearray(20_000_000))"
        result = await manager.run_command(session, ["python3", "-c", code], timeout=60)
        assert result.outcome == "oom", result


async def test_a_session_that_sleeps_says_which_commands_ended(runtime: str) -> None:
    async with make_manager(runtime) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            await manager.execute(session, "x = 1")
            running = await manager.start_command(session, "sleep 77")
        assert await manager.hibernate("a")
        assert (await running.wait(20)).outcome == "kernel_died"
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            result = await manager.execute(session, "x")
            assert result.result == "1"
            assert any("sleep 77" in warning for warning in result.warnings), result.warnings
            assert (await manager.run_command(session, "echo on")).number == 2


async def test_a_fork_says_which_commands_it_lacks(runtime: str) -> None:
    async with one_session(runtime, max_kernels=3) as (manager, session):
        running = await manager.start_command(session, "sleep 78")
        [fork] = await manager.fork(session, 1)
        result = await manager.execute(fork, "1")
        assert any("sleep 78" in warning for warning in result.warnings), result.warnings
        assert running.is_running
        await awaited(running.kill())


async def test_sigkill_reaches_everything_that_a_command_has_started(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    leader = 'python3 -c \'import os; os.setsid(); os.execvp("sleep", ["sleep", "1237"])\''
    running = await manager.start_command(session, f"{leader} & (sleep 1237 &) ; sleep 1237")
    await asyncio.sleep(0.5)
    await awaited(running.kill(signal.SIGKILL))
    await running.wait(20)
    assert (await manager.run_command(session, ["pgrep", "-f", "sleep 1237"])).exit_code == 1


async def test_a_killed_commands_processes_do_not_go_on(manager: AgentKernelManager, session: KernelSession) -> None:
    """A shell whose child was killed before it would run its next command. The order may depend on process ids."""
    for shift in range(1, 17):
        await manager.run_command(session, "true; " * shift)
        running = await manager.start_command(session, "(sh -c 'sleep 97; echo c'; echo b); echo a")
        async with asyncio.timeout(20):
            while (await manager.run_command(session, ["pgrep", "-fx", "sleep 97"])).exit_code:
                await asyncio.sleep(0.01)
        await awaited(running.kill())
        result = await running.wait(20)
        assert (result.outcome, result.stdout) == ("interrupted", b"")


async def test_parents_are_killed_before_their_children_whatever_their_ids(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """The order alone keeps a shell from going on; how often a wrong order shows depends on the host's scheduler."""
    result = await manager.execute(
        session,
        "from cellblock_kernel.orphans import parents_first\n"
        "parents_first({7, 8, 9, 16}, {8: 9, 9: 16, 16: 1, 7: 8, 3: 7}), parents_first({5, 6}, {5: 6, 6: 5})",
    )
    assert result.result == "([16, 9, 8, 7], [5, 6])"
