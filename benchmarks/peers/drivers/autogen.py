"""autogen-ext's DockerJupyterCodeExecutor: a kernel gateway in a container, over one web socket.

``container`` gives each agent its own container, as in its documentation. ``kernel`` gives each agent a new kernel in
one shared container, the fastest use of its API: the kernels run as one user and see each other's files.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock
from autogen_ext.code_executors.docker_jupyter import DockerJupyterCodeExecutor, DockerJupyterServer
from docker.models.containers import ContainerCollection

from benchmarks.peers.drivers.serving import CODE, IMAGE, NETWORK, Execute, check, serve

BLOCKS = [CodeBlock(code=CODE, language="python")]
_READY = 60.0  # seconds

# DockerJupyterServer always uses the default bridge, which an engine may lack.
ContainerCollection.run = functools.partialmethod(ContainerCollection.run, network=NETWORK)  # type: ignore[assignment]


async def answering(server: DockerJupyterServer) -> None:
    """Wait for the web server in the container; ``DockerJupyterServer`` itself waits only for the container.

    Raises:
        TimeoutError: the web server did not answer in time.
    """
    info = server.connection_info
    headers = {"Authorization": f"token {info.token}"}
    async with asyncio.timeout(_READY), aiohttp.ClientSession(headers=headers) as client:
        while True:
            try:
                async with client.get(f"http://{info.host}:{info.port}/api/kernelspecs"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def kernel_in(server: DockerJupyterServer) -> AsyncIterator[Execute]:
    async with DockerJupyterCodeExecutor(jupyter_server=server) as executor:

        async def execute() -> None:
            check((await executor.execute_code_blocks(BLOCKS, CancellationToken())).output)

        yield execute


@asynccontextmanager
async def container() -> AsyncIterator[Execute]:
    async with DockerJupyterServer(custom_image_name=IMAGE) as server:
        await answering(server)
        async with kernel_in(server) as execute:
            yield execute


async def shared() -> None:
    async with DockerJupyterServer(custom_image_name=IMAGE) as server:
        await answering(server)
        await serve(functools.partial(kernel_in, server))


MODES = {"container": lambda: serve(container), "kernel": shared}

if __name__ == "__main__":
    asyncio.run(MODES[sys.argv[1]]())
