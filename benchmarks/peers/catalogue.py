"""The peers that are measured, with their modes and settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DRIVERS = Path(__file__).with_name("drivers")


@dataclass(frozen=True)
class Peer:
    """A peer in one of its modes.

    Attributes:
        name: the name in the table.
        driver: its module in ``drivers/``, next to the lock file of its environment.
        package: its name in the lock file.
        mode: the driver's argument, or empty.
        settings: a description of its settings for the reader of the table.
        close: why it is less than ``report.BEHIND`` times slower, if it is.
    """

    name: str
    driver: str
    package: str
    mode: str
    settings: str
    close: str = ""

    @property
    def lock(self) -> Path:
        """The lock file of its environment."""
        return DRIVERS / f"{self.driver}.txt"

    @property
    def version(self) -> str:
        """The version that the lock file pins.

        Raises:
            ValueError: the lock file does not pin the package.
        """
        pinned = re.search(rf"^{re.escape(self.package)}==(\S+)", self.lock.read_text(), re.MULTILINE)
        if pinned is None:
            raise ValueError(f"{self.lock} does not pin {self.package}")
        return pinned[1]


# With TCP_NODELAY set in the gateway, an execute took 23 ms instead of 56 ms on a busy machine.
_NAGLE = (
    "it keeps a kernel alive too; more than half of its time is a delayed TCP acknowledgement, which load on the "
    "machine does not lengthen"
)

PEERS = (
    Peer(
        "llm-sandbox, one-shot",
        "llm_sandbox",
        "llm-sandbox",
        "session",
        "an open SandboxSession, a new process for each execute; skip_environment_setup, no network",
    ),
    Peer(
        "llm-sandbox, interactive",
        "llm_sandbox",
        "llm-sandbox",
        "interactive",
        "InteractiveSandboxSession; skip_environment_setup, no network, poll_interval 0.01",
    ),
    Peer(
        "llm-sandbox, pool",
        "llm_sandbox",
        "llm-sandbox",
        "pool",
        "two containers started in advance, which serve one agent after the other; a new process for each execute",
    ),
    Peer(
        "smolagents, Docker",
        "smolagents",
        "smolagents",
        "",
        "DockerExecutor on a prepared image; nothing to install",
        _NAGLE,
    ),
    Peer(
        "autogen-ext, Jupyter in Docker",
        "autogen",
        "autogen-ext",
        "container",
        "a DockerJupyterServer and a DockerJupyterCodeExecutor for each agent, on a prepared image",
        _NAGLE,
    ),
    Peer(
        "autogen-ext, shared container",
        "autogen",
        "autogen-ext",
        "kernel",
        "a DockerJupyterCodeExecutor for each agent, all in one container: no sandbox between agents",
        _NAGLE,
    ),
    Peer(
        "gateway_provisioners, defaults",
        "gateway_provisioners",
        "gateway-provisioners",
        "defaults",
        "DockerProvisioner under jupyter_client, no web server, no encryption",
    ),
    Peer(
        "gateway_provisioners, tuned",
        "gateway_provisioners",
        "gateway-provisioners",
        "tuned",
        "the same with GP_POLL_INTERVAL 0.02 and GP_SOCKET_TIMEOUT 0.0001, with which its event loop uses a whole core",
        "there is no web server and no polling: its client connects directly to a stock ipykernel over TCP",
    ),
)
