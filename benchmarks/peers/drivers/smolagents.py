"""smolagents' DockerExecutor: a kernel gateway in a container, over a new web socket for each execute.

Fastest documented settings: a prepared image (``build_new_image=False``) and nothing to install in it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import DockerExecutor

from benchmarks.peers.drivers.serving import CODE, IMAGE, NETWORK, Execute, check, serve


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def sandbox() -> AsyncIterator[Execute]:
    executor = DockerExecutor(
        additional_imports=[],
        logger=AgentLogger(level=LogLevel.OFF),
        port=free_port(),
        image_name=IMAGE,
        build_new_image=False,
        container_run_kwargs={"network": NETWORK},
    )

    async def execute() -> None:
        check(executor(CODE).logs)

    try:
        yield execute
    finally:
        executor.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(sandbox))
