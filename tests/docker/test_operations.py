"""What an operator sees of running kernels, and does to them: by the commands, in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import socket
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from fcntl import ioctl
from pathlib import Path

import pyte
import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.controlsocket import doors
from tests.conftest import make_manager

COMMAND = str(Path(sys.executable).with_name("cellblock"))
LINES, COLUMNS = 30, 140


@pytest_asyncio.fixture
async def manager(runtime: str, tmp_path: Path) -> AsyncIterator[AgentKernelManager]:
    log = str(tmp_path / "audit.jsonl")
    async with make_manager(runtime, max_kernels=3, warm=1, state_dir=str(tmp_path / "s"), audit_log=log) as manager:
        yield manager


async def cellblock(manager: AgentKernelManager, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, env=environment(manager), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        printed, _ = await process.communicate()
    return printed.decode()


def environment(manager: AgentKernelManager) -> dict[str, str]:
    return os.environ | {
        "CELLBLOCK_STATE_DIR": manager.settings.state_dir,
        "CELLBLOCK_AUDIT_LOG": manager.settings.audit_log,
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
    }


class Terminal:
    """A command in a real terminal, as a person would see it."""

    def __init__(self, manager: AgentKernelManager, *arguments: str) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.execve(COMMAND, [COMMAND, *arguments], environment(manager))  # noqa: S606 - in the child of a pty
        ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        os.set_blocking(self._descriptor, False)

    def press(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    async def until(self, seen: Callable[[str], bool], seconds: float = 30) -> str:
        """Wait until the screen is as asked for."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._stream.feed(os.read(self._descriptor, 65536))
            except BlockingIOError:
                await asyncio.sleep(0.05)
            except OSError:  # the command has ended
                break
            if seen(text := "\n".join(self.screen.display)):
                return text
        raise AssertionError("\n".join(self.screen.display))

    async def wait(self) -> int:
        """Return the command's exit status."""
        for _ in range(200):
            with contextlib.suppress(OSError):  # what it prints at its end must be taken, or it waits
                os.read(self._descriptor, 65536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
            if pid:
                os.close(self._descriptor)
                return os.waitstatus_to_exitcode(status)
            await asyncio.sleep(0.05)
        raise AssertionError("it does not end")


async def test_ps_tells_of_every_kernel(manager: AgentKernelManager, runtime: str) -> None:
    """A busy, an idle and a ready kernel, with agent, runtime, usage, and the age of what runs; never the code."""
    async with manager.acquire_kernel("idle-agent") as (_k, idle), manager.acquire_kernel("busy-agent") as (_k, busy):
        await manager.execute_code(idle, "secret = 'hush'")
        running = asyncio.create_task(manager.execute_code(busy, "import time; hush = 1\nwhile True: time.sleep(0.01)"))
        await asyncio.sleep(3)
        (overview,) = json.loads(await cellblock(manager, "ps", "--json"))
        table = await cellblock(manager, "ps")
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
    assert "1 instances, 3 of 3 kernels" in table


async def test_top_interrupts_and_kills(manager: AgentKernelManager) -> None:
    """In a real terminal: i interrupts the chosen cell, k and y kill the kernel, q ends; the log has both."""
    async with manager.acquire_kernel("agent") as (_kernel, session):
        running = asyncio.create_task(manager.execute_code(session, "import time\nwhile True: time.sleep(0.01)"))
        terminal = Terminal(manager, "top")
        await terminal.until(lambda text: "agent" in text and "#1" in text)
        terminal.press("i")
        result = await asyncio.wait_for(running, 20)
        assert (result["outcome"], result["error"]["ename"]) == ("interrupted", "KeyboardInterrupt")
        await terminal.until(lambda text: "idle" in text)
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
    assert [json.loads(line)["event"] for line in found.splitlines()] == ["operator.interrupt", "operator.kill"]


async def test_without_any_kernel_both_say_so(manager: AgentKernelManager, tmp_path: Path) -> None:
    """Nothing runs: an empty list, and no error; a dead instance's socket is told as such."""
    manager.settings.__dict__["state_dir"] = str(tmp_path / "none")
    assert "0 instances" in await cellblock(manager, "ps")
    folder = tmp_path / "none" / "i-0123456789ab"
    folder.mkdir(parents=True)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / "control.sock"))
    left.close()
    assert "0123456789ab does not answer" in await cellblock(manager, "ps")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{\n", b'{"do": "no"}\n', b'{"do": []}\n', b"[" * 100_000 + b"\n", b'{"do": "kill", "kernel": 5}\n', b""],
)  # fmt: skip
async def test_nonsense_on_the_control_socket_is_refused(manager: AgentKernelManager, line: bytes) -> None:
    """Whatever is sent there, the answer is a refusal, and the manager goes on."""
    (door,) = doors(Path(manager.settings.state_dir))
    assert door.path.stat().st_mode & 0o777 == 0o600
    reader, writer = await asyncio.open_unix_connection(door.path)
    writer.write(line)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    assert not line or "error" in json.loads(answer)
    writer.close()
    assert await door.ask({"do": "overview"}, 5)


async def test_nobody_finds_the_control_socket_after_the_end(runtime: str, tmp_path: Path) -> None:
    """Nothing of it is left once the manager has shut down."""
    async with make_manager(runtime, state_dir=str(tmp_path)) as manager:
        session: KernelSession
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert session.ended is None
        assert len(doors(tmp_path)) == 1
    assert doors(tmp_path) == []
