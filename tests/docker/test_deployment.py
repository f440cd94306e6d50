"""The parts of docs/tasks/deployment.md that a test can execute: all but the systemd unit."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import pytest

from orchestrator.image.recipe import Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings
from tests.conftest import REPOSITORY, make_manager

SCRIPTS = REPOSITORY / "examples" / "deployment"
SERVICE = 64_321  # a user id without an account
# Imports everything as root first, since the interpreter's folder may be closed to other users.
IN_THE_GROUP = """
import asyncio, os, sys
from orchestrator import AgentKernelManager

async def main():
    manager = AgentKernelManager(max_kernels=1)
    async with manager, manager.acquire_kernel("agent", timeout=60) as (_, session):
        print((await manager.execute(session, "6 * 7")).result, flush=True)

asyncio.run(main())
groups = [int(sys.argv[1])] if len(sys.argv) > 1 else []
os.setgroups(groups); os.setgid(64321); os.setuid(64321)
os.environ |= {"CELLBLOCK_STATE_DIR": os.environ["STATE"] + "/s", "CELLBLOCK_DATA_DIR": os.environ["STATE"] + "/d"}
asyncio.run(main())
"""
IN_A_CONTAINER = """
import asyncio
from orchestrator import AgentKernelManager

async def main():
    manager = AgentKernelManager(max_kernels=1)
    async with manager, manager.acquire_kernel("agent", timeout=60) as (_, session):
        await manager.execute(session, "x = 41")
        print("ready", flush=True)
        await asyncio.sleep(300)

asyncio.run(main())
"""


def environment(runtime: str = "auto", **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "CELLBLOCK_RUNTIME": runtime} | more


async def script(name: str, *arguments: str, **more: str) -> int:
    """Run a script of the page, with this environment's `cellblock`, and return its exit status."""
    process = await asyncio.create_subprocess_exec(
        str(SCRIPTS / name), *arguments, env=environment(**more), stderr=asyncio.subprocess.DEVNULL
    )
    return await asyncio.wait_for(process.wait(), 120)


async def is_healthy(state: Path) -> bool:
    """Ask as an operator's probe does, which calls a service dead after several failures: a loaded machine is slow."""
    for _ in range(6):
        if await script("health.sh", CELLBLOCK_STATE_DIR=str(state)) == 0:
            return True
    return False


def test_a_member_of_the_docker_group_runs_cells(state: Path) -> None:
    """A user who is not root, with folders of its own. Without the group, the engine's error says what to do."""
    state.chmod(0o755)
    (state / "theirs").mkdir()
    os.chown(state / "theirs", SERVICE, SERVICE)
    more = {"STATE": str(state / "theirs"), "CELLBLOCK_STATE_DIR": str(state / "s")}
    more |= {"CELLBLOCK_DATA_DIR": str(state / "d"), "CELLBLOCK_IMAGE": Recipe.of(Settings(), Image()).name}
    group = str(grp.getgrnam("docker").gr_gid)
    said = [
        subprocess.run(
            [sys.executable, "-c", IN_THE_GROUP, *groups], env=environment(**more), cwd=REPOSITORY,
            capture_output=True, text=True, timeout=120, check=False,
        )
        for groups in ([group], [])
    ]  # fmt: skip
    assert said[0].stdout == "42\n42\n", said[0].stderr
    assert said[1].stdout == "42\n"
    assert "EnginePermissionError: this user may not use the Docker engine" in said[1].stderr


@contextlib.contextmanager
def in_a_container(runtime: str, state: Path, data: Path) -> Iterator[str]:
    """Run an orchestrator in a container that has this host's programs, and yield its name. It is killed at the end.

    It has a network and a process namespace of its own, the engine's socket, and both folders at the same path.
    """
    name = f"cellblock-test-{os.getpid()}"
    shown = {"/usr", sys.prefix, os.path.realpath(sys.prefix), sys.base_prefix, str(REPOSITORY)}
    mounts = [f"--volume={path}:{path}:ro" for path in sorted(shown)]
    mounts += [f"--volume={path}:{path}" for path in ("/var/run/docker.sock", str(state), str(data))]
    settings = {"STATE_DIR": str(state), "DATA_DIR": str(data), "RUNTIME": runtime, "AUDIT_LOG": "off"}
    variables = [f"--env=CELLBLOCK_{key}={text}" for key, text in settings.items()]
    command = ["docker", "run", "--rm", "--name", name, "--network=none", "--user=0", f"--workdir={REPOSITORY}"]
    command += [*mounts, *variables, f"--env=PYTHONPATH={REPOSITORY}", f"--entrypoint={sys.executable}"]
    process = subprocess.Popen(
        [*command, Recipe.of(Settings(), Image()).name, "-c", IN_A_CONTAINER],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said == "ready\n", said + process.stdout.read()
        yield name
    finally:
        subprocess.run(["docker", "kill", name], capture_output=True, check=False)
        process.communicate()


async def test_an_orchestrator_in_a_container(runtime: str, state: Path, tmp_path: Path) -> None:
    """The host's `cellblock ps` shows its kernel. When it is killed, one on the host continues its session."""
    with in_a_container(runtime, state, tmp_path):
        command = [str(Path(sys.executable).with_name("cellblock")), "ps", "--json"]
        shown = await asyncio.to_thread(
            subprocess.run, command, env=environment(), capture_output=True, text=True, check=True
        )
        seen = {each["instance"]: [kernel["agent"] for kernel in each["kernels"]] for each in json.loads(shown.stdout)}
        (folder,) = state.glob("i-*")
        assert "agent" in seen[folder.name.removeprefix("i-")]
    async with (
        make_manager(runtime, state_dir=str(state), data_dir=str(tmp_path)) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
    ):
        assert (await manager.execute(session, "x + 1")).result == "42"


@pytest.mark.one_runtime
async def test_a_restored_backup_wakes_sessions(runtime: str, tmp_path: Path, state: Path) -> None:
    """A backup while the service runs. After the loss of the folder and a restore, the agent has all its state."""
    data, archive = tmp_path / "data", tmp_path / "backup.tar.gz"
    settings: dict[str, Any] = {"data_dir": str(data), "state_dir": str(state)}
    async with (
        make_manager(runtime, **settings) as manager,
        manager.acquire_kernel("agent", timeout=120) as (_kernel, session),
    ):
        await manager.execute(session, "x = 41\nopen('f.txt', 'w').write('kept')")
        await manager.checkpoint(session)
        assert await is_healthy(state)
        assert await script("backup.py", str(data), str(archive)) == 0
        await manager.execute(session, "x = 'after the backup'")
    assert await script("health.sh", CELLBLOCK_STATE_DIR=str(state)) == 1
    assert archive.stat().st_mode & 0o077 == 0
    assert [path.name for path in data.iterdir() if path.name.startswith(".")] == []
    assert await script("restore.sh", str(archive), str(data)) == 1  # never over a folder that is in use
    shutil.rmtree(data)
    assert await script("restore.sh", str(archive), str(data)) == 0
    async with (
        make_manager(runtime, **settings) as manager,
        manager.acquire_kernel("agent", timeout=120) as (_kernel, session),
    ):
        result = await manager.execute(session, "(x + 1, open('f.txt').read())")
    assert result.result == "(42, 'kept')"


async def test_sessions_outlive_an_upgrade_of_the_image(tmp_path: Path, state: Path) -> None:
    """The next start has another image: the session wakes in a kernel of it, with its state."""
    client = docker.from_env()
    settings: dict[str, Any] = {"data_dir": str(tmp_path), "state_dir": str(state)}
    container = client.containers.create(Recipe.of(Settings(), Image()).name, network_mode="none")
    newer = container.commit("cellblock-sandbox-test", str(os.getpid()), changes='LABEL newer="1"')
    container.remove()
    try:
        async with make_manager("auto", **settings) as manager:
            async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
                await manager.execute(session, "x = 41")
            await manager.shutdown(keep_sessions=True)
        async with (
            make_manager("auto", **settings, image=newer.tags[0]) as manager,
            manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
        ):
            assert (await manager.execute(session, "x + 1")).result == "42"
            label = f"org.cellblock.instance={manager.instance_id}"
            found = await asyncio.to_thread(client.containers.list, filters={"label": label})
            assert newer.id in [running.attrs["Image"] for running in found]
    finally:
        client.images.remove(newer.tags[0], force=True)
        client.close()


# Workers: the programs of the page under a real gunicorn and a real Celery, in a virtual environment of the tests' own


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install gunicorn and Celery, and return the folder of their programs."""
    folder = tmp_path_factory.mktemp("venv")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    install = [*uv, "pip", "install", "-q", "--python", str(folder / "bin/python")]
    subprocess.run([*install, "gunicorn>=23", "celery>=5.4"], check=True, timeout=240)
    return folder / "bin"


@contextlib.contextmanager
def serving(*command: str, state: Path, **more: str) -> Iterator[None]:
    """Run workers. SIGTERM at the end, as systemd sends it."""
    path = os.pathsep.join([str(REPOSITORY), sysconfig.get_paths()["purelib"], str(SCRIPTS)])
    folders = {"CELLBLOCK_STATE_DIR": str(state / "s"), "CELLBLOCK_DATA_DIR": str(state / "d")}
    folders |= {"CELLBLOCK_WARM_KERNELS": "0"}
    with (state / "log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment(**more) | folders | {"PYTHONPATH": path},
            stdout=log, stderr=log, start_new_session=True, cwd=state,
        )  # fmt: skip
    try:
        yield
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


Ask = Callable[[str, str], dict[str, Any]]  # an agent and a cell


def ask_until_both_answer(ask: Ask, state: Path) -> None:
    """Count in one session until two worker processes have served it: each continues where the other was.

    Meanwhile another agent keeps one worker busy, so that it is not always the same one that is free.
    """
    assert ask("agent", "x = 0")["outcome"] == "ok"
    workers = set()
    with ThreadPoolExecutor(1) as pool:
        for count in range(1, 12):
            other = pool.submit(ask, "other", "import time; time.sleep(0.7)")
            answer = ask("agent", "x += 1; x")
            assert answer["result"] == str(count), (answer, (state / "log").read_text()[-3000:])
            assert other.result()["outcome"] == "ok"
            workers.add(answer["worker"])
            if len(workers) == 2 and count > 3:
                return
    raise AssertionError(f"only {workers} answered: {(state / 'log').read_text()[-3000:]}")


async def continues(state: Path) -> None:
    """The workers have ended; their session is here, with its state."""
    settings: dict[str, Any] = {"state_dir": str(state / "s"), "data_dir": str(state / "d")}
    async with (
        make_manager("auto", **settings) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
    ):
        assert (await manager.execute(session, "x > 3")).result == "True"


class HttpOverUnix(http.client.HTTPConnection):
    """A connection to a server on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=90)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


async def test_workers_of_gunicorn_share_a_data_folder(programs: Path, state: Path) -> None:
    """Two worker processes serve one agent in turn, and their end keeps the session."""

    def ask(agent: str, code: str) -> dict[str, Any]:
        with contextlib.closing(HttpOverUnix(state / "http")) as connection:
            connection.request("POST", f"/?agent={agent}", code)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found

    program = str(programs / "gunicorn")
    gunicorn = [program, "--workers=2", f"--bind=unix:{state}/http", "--timeout=90", "--config=python:gunicorn_app"]
    with serving(*gunicorn, "gunicorn_app:application", state=state):
        deadline = time.monotonic() + 30
        while not (state / "http").exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        await asyncio.to_thread(ask_until_both_answer, ask, state)
    await continues(state)


CLIENT = """
import json, sys
from celery_app import run_task
for line in sys.stdin:
    print(json.dumps(run_task.delay(*json.loads(line)).get(timeout=90)), flush=True)
"""


def client(programs: Path, state: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(REPOSITORY), sysconfig.get_paths()["purelib"], str(SCRIPTS)])
    return subprocess.Popen(
        [str(programs / "python"), "-c", CLIENT], env=environment(QUEUE=str(state)) | {"PYTHONPATH": path},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=state,
    )  # fmt: skip


async def test_workers_of_celery_share_a_data_folder(programs: Path, state: Path) -> None:
    """Two worker processes serve one agent in turn, and their end keeps the session."""
    clients = {agent: client(programs, state) for agent in ("agent", "other")}

    def ask(agent: str, code: str) -> dict[str, Any]:
        asking, answered = clients[agent].stdin, clients[agent].stdout
        assert asking is not None
        assert answered is not None
        asking.write(json.dumps([agent, code]) + "\n")
        asking.flush()
        found: dict[str, Any] = json.loads(answered.readline())
        return found

    celery = [str(programs / "celery"), "--app=celery_app", "worker", "--concurrency=2", "--without-mingle"]
    try:
        with serving(*celery, "--loglevel=info", "--prefetch-multiplier=1", state=state, QUEUE=str(state)):
            await asyncio.to_thread(ask_until_both_answer, ask, state)
    finally:
        for process in clients.values():
            process.kill()
            process.communicate()
    await continues(state)
