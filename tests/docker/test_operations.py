"""`cellblock ps`, `cellblock top` and the control socket, with real kernels and a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.operator.controlsocket import control_clients
from tests.conftest import make_manager
from tests.terminal import Terminal

COMMAND = str(Path(sys.executable).with_name("cellblock"))


@pytest_asyncio.fixture
async def manager(runtime: str, tmp_path: Path, state: Path) -> AsyncIterator[AgentKernelManager]:
    log = str(tmp_path / "audit.jsonl")
    async with make_manager(runtime, max_kernels=3, warm=1, state_dir=str(state), audit_log=log) as manager:
        yield manager


async def cellblock(manager: AgentKernelManager, *arguments: str, columns: str = "140") -> str:
    variables = environment(manager) | {"COLUMNS": columns}
    if not columns:
        del variables["COLUMNS"]
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        printed, _ = await process.communicate()
    return printed.decode()


def environment(manager: AgentKernelManager) -> dict[str, str]:
    return os.environ | {
        "CELLBLOCK_STATE_DIR": manager.settings.state_dir,
        "CELLBLOCK_AUDIT_LOG": manager.settings.audit_log,
        "COLUMNS": "140",
    }


async def test_ps_lists_every_kernel(manager: AgentKernelManager, runtime: str) -> None:
    """`ps` shows a busy, an idle and a ready kernel with agent, runtime, usage and running cell, but never code."""
    async with manager.acquire_kernel("idle-agent") as (_k, idle), manager.acquire_kernel("busy-agent") as (_k, busy):
        await manager.execute_code(idle, "secret = 'hush'")
        running = asyncio.create_task(manager.execute_code(busy, "import time; hush = 1\nwhile True: time.sleep(0.01)"))
        await asyncio.sleep(3)
        (overview,) = json.loads(await cellblock(manager, "ps", "--json"))
        table, piped = await cellblock(manager, "ps"), await cellblock(manager, "ps", columns="")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert "hush" not in json.dumps(overview) + table
    kernels = {kernel["agent"]: kernel for kernel in overview["kernels"]}
    assert kernels["idle-agent"]["state"] == "idle"
    assert kernels["idle-agent"]["cells"] == 1
    assert kernels["busy-agent"]["state"] == "busy"
    assert kernels["busy-agent"]["cell"]["number"] == 1
    assert 2 < kernels["busy-agent"]["cell"]["age_s"] < 30
    assert kernels[None]["state"] == "ready"
    for kernel in kernels.values():
        assert kernel["runtime"] == runtime
        assert 15 < kernel["usage"]["memory_mb"] < 300
    assert overview["pool"] == {"max": 3, "ready": 1, "leased": 2, "starting": 0, "ending": 0, "waiting": 0}
    assert "busy-agent" in table
    assert all(f"\n{kernel['kernel_id'][:12]} " in piped and "busy-agent " in piped for kernel in overview["kernels"])
    assert "1 instance, 3 of 3 kernels" in table


@pytest.mark.one_runtime
async def test_top_interrupts_and_kills(manager: AgentKernelManager) -> None:
    """In `top`, i interrupts the selected cell, k and y kill its kernel, q quits; the audit log records each act."""
    async with manager.acquire_kernel("agent") as (_kernel, session):
        running = asyncio.create_task(manager.execute_code(session, "import time\nwhile True: time.sleep(0.01)"))
        terminal = Terminal([COMMAND, "top"], environment(manager))
        await terminal.until(lambda text: "agent" in text and "#1" in text)
        terminal.press("i")
        result = await asyncio.wait_for(running, 20)
        assert (result["outcome"], result["error"]["ename"]) == ("interrupted", "KeyboardInterrupt")
        await terminal.until(lambda text: "idle" in text)
        terminal.press("i")
        await terminal.until(lambda text: "no cell is running" in text)
        running = asyncio.create_task(manager.execute_code(session, "while True: pass"))
        await terminal.until(lambda text: "#2" in text)
        terminal.press("k")
        await terminal.until(lambda text: "Kill kernel" in text)
        terminal.press("y")
        result = await asyncio.wait_for(running, 20)
        assert (result["outcome"], result["kernel_state"]) == ("kernel_died", "dead")
        terminal.press("q")
        assert await terminal.wait() == 0
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        assert session.previous_end == "killed"
    found = await cellblock(manager, "audit", "search", "--event", "operator.", "--json")
    events = [json.loads(line)["event"] for line in found.splitlines()]
    assert events == ["operator.interrupt", "operator.interrupt", "operator.kill"]


@pytest.mark.one_runtime
async def test_ps_reports_an_empty_host_and_silent_instances(manager: AgentKernelManager, tmp_path: Path) -> None:
    """`ps` prints an empty summary if nothing runs, and names an instance whose socket does not answer."""
    manager.settings.__dict__["state_dir"] = str(tmp_path / "none")
    assert "0 instances" in await cellblock(manager, "ps")
    folder = tmp_path / "none" / "i-0123456789ab"
    folder.mkdir(parents=True)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / "control.sock"))
    left.close()
    said = await cellblock(manager, "ps")
    assert "0123456789ab does not answer" in said
    assert "0 instances (1 more: no answer)" in said
    assert "is not one of 'agent', 'cpu'" in await cellblock(manager, "ps", "--sort", "colour")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{\n", b'{"do": "no"}\n', b'{"do": []}\n', b"[" * 100_000 + b"\n", b'{"do": "kill", "kernel": 5}\n', b""],
)  # fmt: skip
@pytest.mark.one_runtime
async def test_nonsense_on_the_control_socket_is_refused(manager: AgentKernelManager, line: bytes) -> None:
    """An invalid request is answered with an error, and the manager keeps serving requests."""
    (client,) = control_clients(Path(manager.settings.state_dir))
    assert client.path.stat().st_mode & 0o777 == 0o600
    reader, writer = await asyncio.open_unix_connection(client.path)
    writer.write(line)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    assert not line or "error" in json.loads(answer)
    writer.close()
    assert await client.ask({"do": "overview"}, 5)


@pytest.mark.one_runtime
async def test_the_control_socket_is_removed_at_shutdown(runtime: str, state: Path) -> None:
    """An instance has one control socket while its manager runs, and none after the shutdown."""
    async with make_manager(runtime, state_dir=str(state)) as manager:
        session: KernelSession
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert session.ended is None
        assert len(control_clients(state)) == 1
    assert control_clients(state) == []


@pytest.mark.one_runtime
async def test_interrupt_and_kill_by_id_name_the_operator(manager: AgentKernelManager) -> None:
    """`cellblock interrupt` and `kill` take an agent or the beginning of an id; the audit log has who did it."""
    async with manager.acquire_kernel("agent-7", timeout=60) as (_kernel, session):
        running = asyncio.create_task(manager.execute(session, "import time\nwhile True: time.sleep(0.01)"))
        while session.running_cell is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert "interrupted kernel" in await cellblock(manager, "interrupt", "agent-7")
        assert (await asyncio.wait_for(running, 60)).outcome == "interrupted"
        assert "no cell is running" in await cellblock(manager, "interrupt", session.session_id[:8])
        killed = json.loads(await cellblock(manager, "kill", session.kernel_id[:12], "--json"))
        assert (killed["killed"], killed["agent"], killed["user"]) == (True, "agent-7", "root")
    assert "no running kernel" in await cellblock(manager, "kill", "agent-7")
    found = await cellblock(manager, "audit", "search", "--event", "operator.", "--json")
    acts = [json.loads(line) for line in found.splitlines()]
    assert [act["event"] for act in acts] == ["operator.interrupt", "operator.interrupt", "operator.kill"]
    for act in acts:
        assert (act["operator"]["uid"], act["operator"]["user"]) == (os.getuid(), "root")
        assert act["operator"]["pid"] not in (0, os.getpid())
