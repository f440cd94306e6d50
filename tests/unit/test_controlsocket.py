"""The control socket and `cellblock ps`, without an engine: the kernels are invented."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.container.folders import instance_folder
from orchestrator.errors import InvalidInputError, SettingsError
from orchestrator.operator.controlsocket import ControlClient, ControlSocket, control_clients

COMMAND = str(Path(sys.executable).with_name("cellblock"))
USAGE = {
    "cpu_percent": 79.0, "cpu_limit_percent": 80.0, "memory_mb": 64.0, "memory_limit_mb": 512, "tmpfs_mb": None,
    "pids": 7,
}  # fmt: skip
KERNEL = {
    "kernel_id": "0123456789abcdef", "agent": "\x1b[2Jann", "session": None, "runtime": "runc", "state": "busy",
    "cells": 3, "cell": {"number": 3, "age_s": 65.0}, "age_s": 7200.0, "usage": USAGE,
}  # fmt: skip
POOL = {"max": 3, "ready": 1, "leased": 1, "starting": 0, "ending": 0, "waiting": 2}


async def overview(_request: dict[str, Any]) -> dict[str, Any]:
    return {"instance": "one", "pool": POOL, "kernels": [KERNEL]}


async def refuse(_request: dict[str, Any]) -> dict[str, Any]:
    raise InvalidInputError("no session has this kernel.")


@pytest_asyncio.fixture
async def client(state: Path) -> AsyncIterator[ControlClient]:
    """Serve an invented overview, and return a client of it."""
    folder = instance_folder(state, "one")
    folder.mkdir()
    server = ControlSocket({"overview": overview, "kill": refuse})
    await server.listen(folder)
    (found,) = control_clients(state)
    yield found
    await server.close()


async def test_a_command_is_answered(client: ControlClient) -> None:
    """A request gets what its command returns, through a socket that only its user may open."""
    assert client.instance == "one"
    assert client.path.stat().st_mode & 0o777 == 0o600
    assert await client.ask({"do": "overview"}, 5) == {"instance": "one", "pool": POOL, "kernels": [KERNEL]}


async def test_a_refused_command_says_why(client: ControlClient) -> None:
    """A command that raises ValueError is answered with its message."""
    assert await client.ask({"do": "kill"}, 5) == {"error": "no session has this kernel."}


@pytest.mark.parametrize("line", [b"\n", b"{\n", b'{"do": "no"}\n', b'{"do": []}\n', b"[" * 100_000 + b"\n", b"\xff\n"])
async def test_an_invalid_request_gets_an_error_with_the_commands(client: ControlClient, line: bytes) -> None:
    """A line that is not a request gets an error that lists the commands, and the socket keeps serving."""
    reader, writer = await asyncio.open_unix_connection(client.path)
    writer.write(line)
    answer = json.loads(await asyncio.wait_for(reader.read(), 5))
    writer.close()
    assert answer["error"].endswith("with one of: overview, kill")
    assert await client.ask({"do": "overview"}, 5)


async def test_a_silent_instance_gives_no_reply(state: Path) -> None:
    """A socket that nobody serves, or that never answers, gives None."""
    assert await ControlClient("none", state / "none.sock").ask({"do": "overview"}, 5) is None
    with socket.socket(socket.AF_UNIX) as mute:  # accepts nothing, so that a request is never read
        mute.bind(str(state / "mute.sock"))
        mute.listen()
        assert await ControlClient("mute", state / "mute.sock").ask({"do": "overview"}, 0.1) is None


async def test_a_socket_that_cannot_be_created_is_an_error(state: Path) -> None:
    """A path that is too long gives an error that names the setting to change."""
    with pytest.raises(SettingsError, match="CELLBLOCK_STATE_DIR"):
        await ControlSocket({}).listen(state / ("x" * 120))


async def test_ps_shows_the_kernels_and_silent_instances(client: ControlClient, state: Path) -> None:
    """`cellblock ps` prints a row per kernel without control characters, a summary, and instances without a reply."""
    dead = instance_folder(state, "two")
    dead.mkdir()
    (dead / client.path.name).touch()
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        "ps",
        env=os.environ | {"CELLBLOCK_STATE_DIR": str(state), "COLUMNS": "160"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 30)
    shown = printed.decode()
    assert process.returncode == 0, shown
    for text in ("0123456789ab ", "[2Jann", "busy", "79/80", "64/512", "#3 1m05s", "2h00m"):
        assert text in shown
    assert "\x1b" not in shown
    assert "1 instance (1 more: no answer), 1 of 3 kernels: 1 leased, 1 ready, 0 starting; 2 callers waiting" in shown
    assert "instance two does not answer: it has ended or hangs" in shown
