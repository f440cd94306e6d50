"""llm-sandbox in its three modes: ``session`` (a process for each execute), ``interactive`` and ``pool``.

Fastest documented settings: a prepared image (``skip_environment_setup``), no network, containers started in advance
(``PoolConfig``), and an interactive session that polls more often than by default.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from llm_sandbox import InteractiveSandboxSession, SandboxSession
from llm_sandbox.pool import PoolConfig, create_pool_manager

from benchmarks.peers.drivers.serving import CODE, IMAGE, Execute, check, serve

# A shell on a terminal waits for ever at no cost, as in the images that llm-sandbox uses by default.
CONTAINER = {"network_mode": "none", "command": "sh"}
POLL = 0.01  # seconds between two polls for a result, in the sandbox and on the host; the default is 0.1
WARM = 2  # containers in the pool


def executing(session: object) -> Execute:
    async def execute() -> None:
        check(session.run(CODE).stdout)  # type: ignore[attr-defined]

    return execute


@asynccontextmanager
async def session() -> AsyncIterator[Execute]:
    with SandboxSession(lang="python", image=IMAGE, runtime_configs=CONTAINER, skip_environment_setup=True) as opened:
        yield executing(opened)


@asynccontextmanager
async def interactive() -> AsyncIterator[Execute]:
    prepared = InteractiveSandboxSession(image=IMAGE, runtime_configs=CONTAINER, skip_environment_setup=True)
    prepared.settings.poll_interval = POLL
    with prepared as opened:
        yield executing(opened)


async def pooled() -> None:
    """Serve from a pool that starts its containers before the first order."""
    manager = create_pool_manager(
        backend="docker",
        config=PoolConfig(min_pool_size=WARM, max_pool_size=WARM),
        lang="python",
        image=IMAGE,
        runtime_configs=CONTAINER,
        skip_environment_setup=True,
    )

    @asynccontextmanager
    async def sandbox() -> AsyncIterator[Execute]:
        with SandboxSession(pool=manager) as opened:
            yield executing(opened)

    with ExitStack() as stack:
        stack.callback(manager.close)
        await serve(sandbox)


MODES = {"session": lambda: serve(session), "interactive": lambda: serve(interactive), "pool": pooled}

if __name__ == "__main__":
    asyncio.run(MODES[sys.argv[1]]())
