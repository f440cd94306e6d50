"""gateway_provisioners' DockerProvisioner, under a plain ``jupyter_client`` manager: no web server in between.

``defaults`` uses the default settings. ``tuned`` uses the fastest documented settings: polling intervals far below the
defaults, with which its event loop uses a whole core. Neither encrypts, and both use a prepared image.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peers.drivers.jupyter import executing
from benchmarks.peers.drivers.serving import GATEWAY, IMAGE, NETWORK, Execute, serve

SPEC = f"cellblock_peers_{sys.argv[-1]}"  # one for each mode, because their drivers start at the same time
MODES = {
    "defaults": {},
    "tuned": {
        "GP_POLL_INTERVAL": "0.02",  # seconds; 0.5 by default
        "GP_SOCKET_TIMEOUT": "0.0001",  # seconds for which each poll blocks the event loop; 0.01 by default
    },
}
SURROUNDINGS = {
    "GP_DOCKER_NETWORK": NETWORK,  # for the provisioner
    "DOCKER_NETWORK": NETWORK,  # for its launcher
    "GP_RESPONSE_IP": GATEWAY,
    "KERNEL_USERNAME": "peer",  # it refuses to run as root
}


def install_spec() -> None:
    """Install a kernel spec for the image into this environment, as ``jupyter docker-spec`` does."""
    command = [sys.executable, "-m", "gateway_provisioners.cli.docker_specapp", "install", "--replace", "--sys-prefix"]
    subprocess.run([*command, f"--kernel-name={SPEC}", f"--image-name={IMAGE}"], check=True)


@asynccontextmanager
async def sandbox() -> AsyncIterator[Execute]:
    from jupyter_client.manager import start_new_async_kernel  # reads the settings at import

    manager, client = await start_new_async_kernel(kernel_name=SPEC)
    try:
        yield executing(client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    os.environ.update(SURROUNDINGS | MODES[sys.argv[1]])
    os.environ["PATH"] = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"  # the spec calls plain `python`
    install_spec()
    asyncio.run(serve(sandbox))
