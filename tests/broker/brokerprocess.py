"""A broker in a process of its own, and clients that misbehave, each in one too.

    python -m tests.broker.brokerprocess serve CONNECTION_FILE RUNTIME
    python -m tests.broker.brokerprocess flood CONNECTION_FILE
    python -m tests.broker.brokerprocess listen CONNECTION_FILE

Each prints "ready", and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.blocking.client import BlockingKernelClient

from orchestrator.broker.zmqserving import serve_zmq
from tests.broker.stockclient import connection
from tests.conftest import make_manager

READY = 120.0  # seconds


async def serve(info: dict[str, Any], runtime: str) -> None:
    """Serve one session until standard input ends, and say how much was refused."""
    async with (
        make_manager(runtime) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_, session),
        serve_zmq(manager, session, info, on_shutdown=lambda _restart: None),
    ):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


def flood(info: dict[str, Any]) -> None:
    """Send malformed and wrongly signed messages on three channels, as fast as they go, until standard input ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    frames = (
        [b"<IDS|MSG>", b"0" * 64, b'{"msg_id": "1", "msg_type": "execute_request"}', b"{}", b"{}", b'{"code": "1"}'],
        [b"<IDS|MSG>"],
        [b"x" * 1000] * 8,
        [b""],
    )
    sockets = []
    for number in (1, 3, 4):
        socket = context.socket(zmq.DEALER)
        socket.connect(f"ipc://{info['ip']}-{number}")
        sockets.append(socket)
    over = threading.Event()
    threading.Thread(target=_at_end_of_input, args=(over.set,), daemon=True).start()
    print("ready", flush=True)
    while not over.is_set():
        for socket in sockets:
            for message in frames:
                with contextlib.suppress(zmq.Again):
                    socket.send_multipart(message, zmq.NOBLOCK)
    for socket in sockets:
        socket.close(linger=0)
    context.term()


def _at_end_of_input(call: Callable[[], None]) -> None:
    sys.stdin.read()
    call()


def listen(info: dict[str, Any]) -> None:
    """Be a client that has subscribed and asked for something, and reads nothing."""
    client = BlockingKernelClient()
    client.load_connection_info(info)  # type: ignore[arg-type]
    client.start_channels()
    client.wait_for_ready(timeout=30)
    print("ready", flush=True)
    sys.stdin.read()
    client.stop_channels()


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run this module as a program until the context ends."""
    command = [sys.executable, "-m", "tests.broker.brokerprocess", *arguments]
    environment = os.environ | {"CELLBLOCK_DATA_DIR": str(Path(arguments[1]).parent / "data")}
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        assert running.stdout.readline() == "ready\n"
        yield running
    finally:
        running.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(30)
        running.kill()
        running.wait()
        running.stdout.close()


@contextlib.asynccontextmanager
async def broker_process(folder: Path, runtime: str) -> AsyncIterator[tuple[Path, dict[str, Any]]]:
    """Run a broker in a process of its own; yield its connection file, and that file's content."""
    info = connection(folder)
    file = folder / "connection.json"
    file.write_text(json.dumps(info))
    running = process("serve", str(file), runtime)
    await asyncio.to_thread(running.__enter__)
    try:
        yield file, info
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


if __name__ == "__main__":
    role, path, *rest = sys.argv[1:]
    content = json.loads(Path(path).read_text())
    if role == "serve":
        asyncio.run(serve(content, rest[0]))
    else:
        {"flood": flood, "listen": listen}[role](content)
