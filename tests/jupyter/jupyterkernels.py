"""Kernels that Jupyter's own client starts through a kernelspec of ours, with folders of their own."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from orchestrator.container.engine import connect
from orchestrator.jupyter.kernelspec import kernel_json
from tests.conftest import REPOSITORY

_READY = 60.0  # seconds
_REPLY = 60.0  # seconds


@dataclass(frozen=True)
class Place:
    """Where relays keep what they keep, and where Jupyter finds the kernelspec ``sandbox``.

    Attributes:
        folder: has the state, data and kernelspecs; its path is short.
        notebooks: where notebooks lie.
        variables: the environment of Jupyter's programs.
    """

    folder: Path
    notebooks: Path
    variables: Mapping[str, str]

    def with_variables(self, **variables: str) -> Place:
        """Return the same place with further variables."""
        return replace(self, variables={**self.variables, **variables})

    def containers(self) -> list[str]:
        """Return the names of the containers that relays of this place have."""
        client = connect(30)
        try:
            homes = {path.name.removeprefix("i-") for path in (self.folder / "s").glob("i-*")}
            found = client.api.containers(all=True, filters={"label": "org.cellblock.instance"})
            return [each["Names"][0] for each in found if each["Labels"]["org.cellblock.instance"] in homes]
        finally:
            client.close()


@contextlib.contextmanager
def place(runtime: str = "runc", policy: str = "local-dev", **variables: str) -> Iterator[Place]:
    """Make folders and a kernelspec, and remove them."""
    with tempfile.TemporaryDirectory(prefix="cb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        spec, notebooks = folder / "j" / "kernels" / "sandbox", folder / "n"
        spec.mkdir(parents=True)
        notebooks.mkdir()
        folder.chmod(0o755)  # the sandbox's user reads the notebooks
        (spec / "kernel.json").write_text(json.dumps(kernel_json(policy)))
        ours = {
            key: value for key, value in os.environ.items() if not key.startswith(("CELLBLOCK_", "JUPYTER", "PYTEST_"))
        }
        yield Place(
            folder,
            notebooks,
            {
                **ours,
                "CELLBLOCK_AUDIT_LOG": "off",
                "CELLBLOCK_DATA_DIR": f"{folder}/d",
                "CELLBLOCK_RUNTIME": runtime,
                "CELLBLOCK_STATE_DIR": f"{folder}/s",
                "JUPYTER_CONFIG_DIR": f"{folder}/c",
                "JUPYTER_DATA_DIR": f"{folder}/u",
                "JUPYTER_PATH": f"{folder}/j",
                "JUPYTER_RUNTIME_DIR": f"{folder}/r",
                "PYTHONPATH": str(REPOSITORY),
                **variables,
            },
        )


@dataclass
class Answer:
    """What one cell put out.

    Attributes:
        status: of the reply.
        text: of both streams.
        outputs: the contents of all other messages, by their kinds.
    """

    status: str = ""
    text: str = ""
    outputs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


async def run(client: AsyncKernelClient, code: str, answer: Answer | None = None) -> Answer:
    """Run a cell as a notebook does.

    Args:
        answer: is filled while the cell runs.
    """
    answer = Answer() if answer is None else answer

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            answer.text += message["content"]["text"]
        else:
            answer.outputs.append((message["msg_type"], message["content"]))

    reply = await client.execute_interactive(code, timeout=_REPLY, output_hook=collect)
    answer.status = reply["content"]["status"]
    return answer


async def ready(client: AsyncKernelClient) -> None:
    """Wait until the kernel answers. Answers to earlier questions, which waiting for a start has left, do not count."""
    while await client.shell_channel.msg_ready():
        await client.shell_channel.get_msg(timeout=1)
    await client.wait_for_ready(timeout=_READY)


@contextlib.asynccontextmanager
async def started(where: Place, **options: Any) -> AsyncIterator[tuple[AsyncKernelManager, AsyncKernelClient]]:
    """Start a kernel, wait until it answers, and shut it down at the end.

    Args:
        options: traits of the kernel manager.
    """
    specs = KernelSpecManager(kernel_dirs=[str(where.folder / "j" / "kernels")])
    manager = AsyncKernelManager(kernel_name="sandbox", kernel_spec_manager=specs, **options)
    await manager.start_kernel(cwd=str(where.notebooks), env=dict(where.variables))
    client = manager.client()
    client.start_channels()
    try:
        await ready(client)
        yield manager, client
    finally:
        client.stop_channels()
        if manager.has_kernel:
            await manager.shutdown_kernel()
