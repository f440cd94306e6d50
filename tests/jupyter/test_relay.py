"""The relay: a kernel's life as Jupyter's own client sees it, and what is left when something ends it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from orchestrator.jupyter.kernelspec import relay_argv
from tests.jupyter.jupyterkernels import Answer, Place, place, ready, run, started

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def where() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel(where: Place) -> AsyncIterator[tuple[AsyncKernelManager, AsyncKernelClient]]:
    """One kernel, beside a notebook's data and what a hostile folder may have."""
    (where.notebooks / "sales.csv").write_text("1,2\n")
    (where.notebooks / ".env").write_text("CELLBLOCK_IMAGE=cellblock-missing:1\n")
    for module in ("orchestrator", "docker", "zmq", "json"):
        (where.notebooks / f"{module}.py").write_text("raise SystemExit('a module of the notebook ran on the host')")
    async with started(where) as both:
        yield both


async def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def test_a_cell_runs_in_a_sandbox(kernel: tuple[AsyncKernelManager, AsyncKernelClient], where: Place) -> None:
    """Its process is none of this host's, and nothing in the notebook's folder configured it."""
    answer = await run(kernel[1], "import os; print(os.getcwd(), os.getuid() >= 200000); 6 * 7")
    assert answer.text == "/work True\n"
    assert ("execute_result", "42") in [
        (kind, each["data"]["text/plain"]) for kind, each in answer.outputs if "data" in each
    ]
    assert len(where.containers()) == 1


async def test_the_notebooks_folder_is_data(kernel: tuple[AsyncKernelManager, AsyncKernelClient]) -> None:
    """The policy local-dev offers it, and the sandbox cannot write it."""
    read = await run(kernel[1], "print(open('/data/notebook/sales.csv').read())")
    assert read.text == "1,2\n\n"
    written = await run(kernel[1], "open('/data/notebook/more', 'w')")
    assert [each["ename"] for kind, each in written.outputs if kind == "error"] == ["OSError"]


async def test_a_restart_keeps_files_alone(kernel: tuple[AsyncKernelManager, AsyncKernelClient]) -> None:
    """The connection stays, the variables go, and the files of /work stay."""
    manager, client = kernel
    await run(client, "x = 1; import os; os.makedirs('deep'); open('deep/kept', 'w').write('kept')")
    await manager.restart_kernel()
    await ready(client)
    answer = await run(client, "print(open('deep/kept').read(), 'x' in globals())")
    assert answer.text == "kept False\n"


async def test_files_of_any_size_do_not_fill_the_host(tmp_path: Path) -> None:
    """A sparse file claims 1 GiB of a /work of 1 MiB: the restart goes on without the files, and says so."""
    (tmp_path / "small.toml").write_text("[tmpfs]\nwork_mb = 1\n")
    with place(policy=str(tmp_path / "small.toml")) as small:
        async with started(small) as (manager, client):
            await run(client, "open('big', 'wb').truncate(2**30)")
            await manager.restart_kernel()
            await ready(client)
            answer = await run(client, "import os; print(os.listdir())")
            assert answer.text.startswith("[]\n[cellblock] the files of /work could not be kept")
            assert list((small.folder / "d" / "jupyter").glob("*.tar")) == []


_PAGE = """
bundle = {"text/html": "<script>alert(1)</script>", "text/plain": "safe"}
kernel = get_ipython().kernel
kernel.do_inspect = lambda *args, **options: {"status": "ok", "found": True, "data": bundle, "metadata": {}}
kernel.shell.payload_manager.write_payload({"source": "page", "data": bundle, "start": 0})
class Shown:
    def _repr_html_(self):
        return bundle["text/html"]
shown = Shown()
shown
"""


async def test_nothing_that_runs_in_a_page_passes_by_default() -> None:
    """Under the policy notebook: no HTML in outputs, and none in what a hostile kernel replies."""
    with place(policy="notebook") as where:
        async with started(where) as (_manager, client):
            replies: list[dict[str, Any]] = []
            reply = await client.execute_interactive(
                _PAGE, timeout=60, output_hook=replies.append, user_expressions={"it": "shown"}
            )
            replies += [reply, await client.inspect("bundle", 3, reply=True, timeout=60)]
            replies.append(await client.kernel_info(reply=True, timeout=60))
    said = json.dumps([each["content"] for each in replies if each["msg_type"] != "execute_input"])
    assert "safe" in said
    assert "<script>" not in said
    assert '"help_links": []' in said


async def test_an_interrupt_stops_the_cell(kernel: tuple[AsyncKernelManager, AsyncKernelClient]) -> None:
    """By a message, as the kernelspec says, and by SIGINT, as other programs do."""
    manager, client = kernel
    for message in (True, False):
        answer = Answer()
        cell = asyncio.create_task(run(client, "import time; print('on', flush=True); time.sleep(300)", answer))
        await until(lambda: answer.text.startswith("on"), "the cell has not begun")  # noqa: B023 - awaited here
        if message:
            await manager.interrupt_kernel()
        else:
            assert manager.provisioner is not None
            await manager.provisioner.send_signal(signal.SIGINT)
        await cell
        assert [each["ename"] for kind, each in answer.outputs if kind == "error"] == ["KeyboardInterrupt"]
    assert (await run(client, "print('goes on')")).text == "goes on\n"


async def test_a_kernel_that_ends_itself_is_dead_to_jupyter(
    kernel: tuple[AsyncKernelManager, AsyncKernelClient], where: Place
) -> None:
    """Jupyter sees a dead process, and its restart has a new kernel, whose first cell says what was lost."""
    manager, client = kernel
    client.execute("import os; os._exit(7)")
    deadline = time.monotonic() + 30
    while await manager.is_alive():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await until(lambda: not where.containers(), "the container of a dead kernel is left")
    await manager.restart_kernel(now=True)
    await ready(client)
    answer = await run(client, "print('anew')")
    assert answer.text.startswith("anew\n[cellblock] this agent's last kernel ended (kernel_died)")


async def test_two_kernels_at_once(kernel: tuple[AsyncKernelManager, AsyncKernelClient], where: Place) -> None:
    """Each has its own sandbox; one's end is not the other's. Encryption that may be left out is left out."""
    async with started(where, transport_encryption="auto") as (_manager, other):
        await run(other, "mine = 1")
        assert (await run(kernel[1], "print('mine' in globals())")).text == "False\n"
        assert len(where.containers()) == 2
    await until(lambda: len(where.containers()) == 1, "a kernel was shut down, and its container is left")
    assert (await run(kernel[1], "print('goes on')")).text == "goes on\n"


async def test_a_killed_relay_leaves_nothing(where: Place) -> None:
    """SIGKILL of what Jupyter started, with its process group, ends the sandbox; a restart begins after that."""
    before = len(where.containers())
    async with started(where) as (manager, client):
        await manager.restart_kernel(now=True)
        await ready(client)
        assert len(where.containers()) == before + 1
        await manager.shutdown_kernel(now=True)
        await until(lambda: len(where.containers()) == before, "the relay was killed, and its container is left")


_ORPHAN = """
import sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="sandbox", startup_timeout=60, cwd=sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


async def test_the_end_of_jupyter_ends_its_kernels(where: Place) -> None:
    """SIGKILL of the program that has the kernels leaves no container and no process."""
    before = len(where.containers())
    command = [sys.executable, "-c", _ORPHAN, str(where.notebooks)]
    program = await asyncio.create_subprocess_exec(
        *command, env=dict(where.variables), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert program.stdout is not None
        assert await program.stdout.readline() == b"ready\n"
        assert len(where.containers()) == before + 1
    finally:
        program.kill()
        await program.wait()
    await until(lambda: len(where.containers()) == before, "Jupyter was killed, and its kernel's container is left")


@pytest.mark.parametrize(
    ("variables", "more", "words"),
    [
        ({"DOCKER_HOST": "unix:///nowhere/docker.sock"}, {}, "engine"),
        ({"CELLBLOCK_IMAGE": "cellblock-missing:1"}, {}, "cellblock-missing:1"),
        ({"CELLBLOCK_POLICY": "none-such"}, {}, "none-such"),
        ({}, {"curve_publickey": "p", "curve_secretkey": "s"}, "encryption"),
        ({}, {"transport": "ipc", "ip": "x"}, "cannot be served"),
    ],
)
async def test_what_keeps_a_kernel_from_starting_is_said(
    where: Place, tmp_path: Path, variables: dict[str, str], more: dict[str, str], words: str
) -> None:
    """One plain sentence on stderr, and a status that is not 0."""
    file = tmp_path / "kernel.json"
    file.write_text(json.dumps({"key": "k"} | more))
    done = await asyncio.to_thread(
        subprocess.run,
        relay_argv(str(file)),
        env={**where.variables, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cellblock: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
