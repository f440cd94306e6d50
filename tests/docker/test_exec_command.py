"""`cellblock exec` and `cellblock shell`, on real kernels and a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelSession
from tests.conftest import make_manager
from tests.terminal import Terminal

COMMAND = str(Path(sys.executable).with_name("cellblock"))


@pytest_asyncio.fixture
async def manager(runtime: str, tmp_path: Path, state: Path) -> AsyncIterator[AgentKernelManager]:
    log = str(tmp_path / "audit.jsonl")
    async with make_manager(runtime, state_dir=str(state), audit_log=log) as manager:
        yield manager


@pytest_asyncio.fixture
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        yield session


def environment(manager: AgentKernelManager) -> dict[str, str]:
    return os.environ | {"CELLBLOCK_STATE_DIR": str(manager.settings.state_dir), "COLUMNS": "140"}


async def start(manager: AgentKernelManager, *arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        COMMAND, *arguments, env=environment(manager), stdin=pipe, stdout=pipe, stderr=pipe
    )


async def run(manager: AgentKernelManager, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    process = await start(manager, *arguments)
    async with asyncio.timeout(60):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out, err.decode()


@pytest.mark.usefixtures("session")
async def test_exec_is_transparent(manager: AgentKernelManager, tmp_path: Path) -> None:
    """Streams, input, exit code, variables and folder go through; the audit log names the operator."""
    assert await run(manager, "exec", "agent", "--", "sh", "-c", "echo out; echo err >&2; exit 7") == (
        7,
        b"out\n",
        "err\n",
    )
    data = bytes(range(256)) * 8000
    assert await run(manager, "exec", "agent", "--", "cat", stdin=data) == (0, data, "")
    line = "echo $A; pwd"
    assert (await run(manager, "exec", "agent", "--env", "A=b c", "--cwd", "/tmp", "--", "sh", "-c", line))[:2] == (
        0,
        b"b c\n/tmp\n",
    )
    code, out, err = await run(manager, "exec", "agent", "--", "nosuchprogram")
    assert (code, out) == (127, b"")
    assert "No such file" in err
    code, _, err = await run(manager, "exec", "agent", "--timeout", "0.5", "--", "sleep", "60")
    assert (code, "time limit" in err) == (124, True)
    code, _, err = await run(manager, "exec", "nobody", "--", "true")
    assert (code, "no running kernel" in err) == (1, True)
    code, _, err = await run(manager, "exec", "agent", "--cwd", "/nosuch", "--", "true")
    assert (code, "working directory" in err) == (1, True)
    entries = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    operator = next(entry for entry in entries if entry["event"] == "operator.exec")["operator"]
    assert operator["uid"] == os.getuid()
    assert [entry["exit_code"] for entry in entries if entry["event"] == "command.ended"][:3] == [7, 0, 0]


@pytest.mark.one_runtime
async def test_ctrl_c_interrupts_the_command(manager: AgentKernelManager, session: KernelSession) -> None:
    process = await start(
        manager, "exec", "agent", "--", "sh", "-c", "trap 'echo caught; exit 9' INT; echo up; sleep 60 & wait"
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert await process.stdout.readline() == b"caught\n"
        assert await process.wait() == 9


@pytest.mark.one_runtime
async def test_a_client_that_is_killed_ends_its_command(manager: AgentKernelManager, session: KernelSession) -> None:
    process = await start(manager, "exec", "agent", "--", "sh", "-c", "echo up; sleep 4321")
    assert process.stdout is not None
    async with asyncio.timeout(60):
        await process.stdout.readline()
        process.kill()
        await process.wait()
        while manager.list_commands(session):
            await asyncio.sleep(0.05)
    assert (await manager.run_command(session, ["pgrep", "-f", "sleep 4321"])).exit_code == 1


@pytest.mark.usefixtures("session")
async def test_shell_is_a_terminal(manager: AgentKernelManager) -> None:
    """Keys go in as they are, Ctrl-C reaches the program, and requests to the terminal itself are left out."""
    terminal = Terminal([COMMAND, "shell", "agent"], environment(manager), lines=20, columns=90)
    await terminal.until(lambda text: "$" in text, 60)
    terminal.press("stty size; echo $((40 + 2)) there\n")
    text = await terminal.until(lambda text: "42 there" in text, 60)
    assert "20 90" in text
    terminal.press("sleep 60\n")
    await asyncio.sleep(0.5)
    terminal.press("\x03")
    terminal.press("printf '\\033]0;evil title\\007shown\\033]52;c;ZXZpbA==\\007 too\\n'\n")
    await terminal.until(lambda text: "shown too" in text, 60)
    assert terminal.screen.title == ""
    terminal.press("exit 5\n")
    assert await terminal.wait(60) == 5


@pytest.mark.usefixtures("session")
@pytest.mark.one_runtime
async def test_shell_needs_a_terminal(manager: AgentKernelManager) -> None:
    code, _, err = await run(manager, "shell", "agent")
    assert (code, "needs a terminal" in err) == (1, True)
