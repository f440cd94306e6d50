"""Clients that are stopped, never read, or send nonsense cost the others nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.broker.zmqserving import serve_zmq
from orchestrator.broker.zmtpserver import _MOST_PEERS
from orchestrator.kernel import zmtp
from tests.broker.brokerprocess import process
from tests.broker.stockclient import connection, stock_client
from tests.conftest import one_session

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
Served = tuple[AgentKernelManager, KernelSession]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(runtime: str) -> AsyncIterator[Served]:
    async with one_session(runtime) as (manager, session):
        yield manager, session


def subscriber(info: dict[str, Any]) -> socket.socket:
    """Subscribe to all outputs, as a client does that never reads."""
    silent = socket.socket(socket.AF_UNIX)
    silent.settimeout(30)
    silent.connect(f"{info['ip']}-2")
    silent.sendall(zmtp.GREETING + zmtp.ready("SUB") + zmtp.encode([b"\x01"]))
    return silent


def read_to_end(silent: socket.socket) -> int:
    size = 0
    try:
        while data := silent.recv(MIB):
            size += len(data)
    except (ConnectionResetError, TimeoutError):
        pass
    return size


async def test_a_client_that_never_reads_is_disconnected_and_others_get_all(served: Served, state: Path) -> None:
    """At most 32 MiB wait for it; this process holds no more than that."""
    manager, session = served
    info = connection(state)
    async with (
        serve_zmq(manager, session, info, on_shutdown=lambda _restart: None),
        stock_client(info) as client,
    ):
        with subscriber(info) as silent:
            await asyncio.sleep(0.2)
            before = psutil.Process().memory_info().rss
            for _ in range(8):
                answer = await client.execute("print(('x' * 99 + chr(10)) * 80_000)", timeout=60)
                assert len(answer.text) >= 8_000_000
            assert psutil.Process().memory_info().rss - before < 200 * MIB
            assert await asyncio.to_thread(read_to_end, silent) < 40 * MIB
        assert (await client.execute("1")).reply["status"] == "ok"


async def test_many_that_never_read_share_a_bound(served: Served, state: Path) -> None:
    """A stranger may subscribe without the key: however often it does, 128 MiB wait for all of them."""
    manager, session = served
    info = connection(state)
    async with serve_zmq(manager, session, info, on_shutdown=lambda _restart: None):
        silent = [subscriber(info) for _ in range(30)]
        try:
            await asyncio.sleep(0.5)
            for _ in range(3):
                await manager.execute(session, "print(('x' * 99 + chr(10)) * 80_000)")
            for each in silent:
                each.settimeout(1)
            kept = [await asyncio.to_thread(read_to_end, each) for each in silent]
            assert sum(kept) < 320 * MIB  # 720 without the bound
        finally:
            for each in silent:
                each.close()


async def test_a_flood_and_a_stopped_client_leave_the_others_served(served: Served, state: Path) -> None:
    """One client sends nonsense as fast as it can, another is stopped: a third runs its cells, nothing is raised."""
    manager, session = served
    info = connection(state)
    file = state / "connection.json"
    file.write_text(json.dumps(info))
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
    before = session.cell_count
    try:
        async with (
            serve_zmq(manager, session, info, on_shutdown=lambda _restart: None),
            stock_client(info) as client,
        ):
            stopped, flood = process("listen", str(file)), process("flood", str(file))
            listening = await asyncio.to_thread(stopped.__enter__)
            await asyncio.to_thread(flood.__enter__)
            listening.send_signal(signal.SIGSTOP)
            try:
                for number in range(50):
                    answer = await client.execute(f"{number}", timeout=20)
                    assert answer.of("execute_result")[0]["data"]["text/plain"] == str(number)
            finally:
                listening.send_signal(signal.SIGCONT)
                await asyncio.to_thread(flood.__exit__, None, None, None)
                await asyncio.to_thread(stopped.__exit__, None, None, None)
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert session.cell_count == before + 50
    assert raised == []


async def test_connections_have_a_limit_and_strangers_send_little(served: Served, state: Path) -> None:
    """A peer without the key cannot make the host hold a large message, and connections beyond the limit are closed."""
    manager, session = served
    info = connection(state)
    async with (
        serve_zmq(manager, session, info, on_shutdown=lambda _restart: None),
        stock_client(info) as client,
    ):
        many = []
        for _ in range(_MOST_PEERS + 1):
            each = socket.socket(socket.AF_UNIX)
            each.settimeout(20)
            each.connect(f"{info['ip']}-3")
            many.append(each)
            if len(many) % 50 == 0:
                await asyncio.sleep(0.1)  # the listener's backlog is shorter
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(many[-1].recv, 1) == b""
        for each in many:
            each.close()
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(20)
            stranger.connect(f"{info['ip']}-1")
            announced = bytes([2]) + (100 * MIB).to_bytes(8, "big")  # one long frame
            stranger.sendall(zmtp.GREETING + zmtp.ready("DEALER") + announced)
            assert await asyncio.to_thread(read_to_end, stranger) < 200
        assert (await client.execute("1")).reply["status"] == "ok"
