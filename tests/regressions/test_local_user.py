"""Another local user beside a running manager and a running server can read, write and connect to nothing of theirs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.container.engine import connect
from orchestrator.container.hostconfig import INSTANCE_LABEL
from tests.conftest import REPOSITORY
from tests.server.conftest import serving

_MANAGER = """
import asyncio, sys
from orchestrator import AgentKernelManager

async def main():
    manager = AgentKernelManager(max_kernels=2)
    async with manager, manager.acquire_kernel("agent", timeout=60) as (kernel, session):
        await manager.execute(session, "secret = 'of the agent'; open('file', 'w').write(secret); print('y' * 300_000)")
        await manager.checkpoint(session)
        client = kernel.client()
        client.start_channels()
        await client.wait_for_ready(timeout=60)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print((await manager.execute(session, "secret")).result, flush=True)
        client.stop_channels()

asyncio.run(main())
"""


@dataclass
class Beside:
    """What runs beside the other user.

    Attributes:
        folder: open to everyone, with all folders of Cellblock in it.
        processes: the manager, the server, and their children.
    """

    folder: Path
    manager: subprocess.Popen[str]
    processes: list[int] = field(default_factory=list)

    def files(self) -> list[str]:
        """Return every path below the folder, and every other file and socket that the processes have open."""
        tests_own = {self.folder / "tmp", self.folder / "server", self.folder / "server" / "log"}
        found = {str(path) for path in self.folder.rglob("*") if path not in tests_own}
        for pid in self.processes:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found |= {text for text in [str(entry.readlink())] if is_data(text)}
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            found |= {words[5] for line in lines if len(words := line.split(None, 5)) == 6 and is_data(words[5])}
        found |= {path for path in self.sockets() if not path.startswith("@")}
        return sorted(found - {str(path) for path in tests_own})

    def sockets(self) -> list[str]:
        """Return the names of the unix sockets of the processes."""
        inodes = self._inodes()
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        return sorted({words[7] for words in lines if len(words) == 8 and words[6] in inodes})

    def ports(self) -> list[str]:
        """Return the addresses at which the processes listen on TCP."""
        inodes = self._inodes()
        lines = [
            line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()
        ]
        return [words[1] for words in lines if words[3] == "0A" and words[9] in inodes]

    def _inodes(self) -> set[str]:
        found: set[str] = set()
        for pid in self.processes:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found |= set(re.findall(r"^socket:\[(\d+)\]$", str(entry.readlink())))
        return found


def is_data(path: str) -> bool:
    """Return whether an open file is one that the program has made: no library, device or memory."""
    return path.startswith(("/tmp/", "/var/tmp/", "/run/", "/var/lib/", "/var/log/", "/dev/shm/"))


@pytest.fixture(scope="module")
def user() -> Iterator[int]:
    """A user of this host without any right, for as long as these tests run. Yields its id."""
    name = f"cb-test-{os.getpid()}"
    subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/bin/false", name], check=True)
    try:
        yield int(subprocess.run(["id", "-u", name], check=True, capture_output=True, text=True).stdout)
    finally:
        subprocess.run(["userdel", name], check=True)


@pytest.fixture(scope="module")
def beside() -> Iterator[Beside]:
    """A manager with a session, a checkpoint and a Jupyter client, and a server with a token. Their umask is 0."""
    before = os.umask(0)
    try:
        with tempfile.TemporaryDirectory(prefix="cb-") as made, pytest.MonkeyPatch.context() as patch:
            folder = Path(made)
            folder.chmod(0o755)
            for name in ("STATE_DIR", "DATA_DIR"):
                patch.setenv(f"CELLBLOCK_{name}", str(folder / name))
            patch.setenv("CELLBLOCK_AUDIT_LOG", str(folder / "audit" / "audit.jsonl"))
            (folder / "tmp").mkdir(mode=0o1777)
            patch.setenv("TMPDIR", str(folder / "tmp"))
            patch.setenv("CELLBLOCK_RUNTIME", "runc")
            patch.setenv("CELLBLOCK_WARM_KERNELS", "0")
            with running(folder) as found:
                yield found
    finally:
        os.umask(before)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Beside]:
    (folder / "server").mkdir(mode=0o755)
    manager = subprocess.Popen(
        [sys.executable, "-c", _MANAGER], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert manager.stdout is not None
        assert manager.stdout.readline() == "ready\n"
        uds = str(folder / "serve.sock")
        with serving(folder / "server", "--uds", uds, tokens=1) as server:
            own = [manager.pid, server.process.pid]
            yield Beside(folder, manager, [*own, *(child for pid in own for child in children(pid))])
    finally:
        manager.kill()
        manager.communicate()


def children(pid: int) -> list[int]:
    lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    found = [int(each) for each in " ".join(lists).split()]
    return found + [each for child in found for each in children(child)]


def sandboxes(state: Path) -> list[int]:
    """Return the first process of each container whose sockets are below the state folder."""
    client = connect(30)
    try:
        every = client.api.containers(filters={"label": INSTANCE_LABEL})
        ours = [each["Id"] for each in every if each["Mounts"][0]["Source"].startswith(f"{state}/")]
        return [client.api.inspect_container(each)["State"]["Pid"] for each in ours]
    finally:
        client.close()


def probe(user: int, **plan: object) -> set[tuple[str, str]]:
    """Return what the user can do with what."""
    whole = {"files": [], "abstract": [], "processes": []} | plan
    done = subprocess.run(
        [sys.executable, "-m", "tests.regressions.localprobe", str(user)],
        cwd=REPOSITORY, input=json.dumps(whole), capture_output=True, text=True, timeout=120, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {(what, subject) for what, subject in json.loads(done.stdout)}


def test_the_probe_finds_what_is_open(user: int) -> None:
    """The control: files, folders, sockets and processes that are this user's to use are found."""
    with tempfile.TemporaryDirectory(prefix="cb-") as made, contextlib.ExitStack() as open_sockets:
        folder = Path(made)
        folder.chmod(0o777)
        (folder / "readable").touch(0o644)
        (folder / "writable").touch()
        (folder / "writable").chmod(0o666)
        named, abstract = (open_sockets.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        named.bind(f"{made}/socket")
        (folder / "socket").chmod(0o666)
        abstract.bind(f"\0{made}")
        named.listen()
        abstract.listen()
        asleep = open_sockets.enter_context(subprocess.Popen(["sleep", "300"], user=user, group=user))
        open_sockets.callback(asleep.kill)
        paths = [f"{made}/{name}" for name in ("readable", "writable", "socket")]
        found = probe(user, files=[*paths, made], abstract=[made, f"{made}-free"], processes=[asleep.pid])
    assert {("read", paths[0]), ("lock", paths[0]), ("read", paths[1]), ("write", paths[1])} <= found
    assert {("connect to", paths[2]), ("list", made), ("create in", made), ("link into", made)} <= found
    assert {("connect to", made), ("bind", f"{made}-free")} <= found
    process = [f"/proc/{asleep.pid}/{name}" for name in ("environ", "maps", "mem", "fd", "root")]
    assert {("read", path) for path in process} <= found
    assert {(what, str(asleep.pid)) for what in ("signal", "trace", "take a descriptor of")} <= found
    assert ("write", paths[0]) not in found


def test_another_user_reaches_no_file_or_socket(user: int, beside: Beside) -> None:
    """State, data, history, keys, checkpoints, locks, audit log, and the sockets of operators, clients and kernels."""
    files = beside.files()
    names = "\n".join(files)
    folders = ("/checkpoints/", "/owner-", "/uid-", "/b-")
    for needed in (*folders, "/history.db", "/key", "/audit.jsonl", "/control.sock", "/serve.sock", "/wire/k-1"):
        assert needed in names, f"nothing named {needed} was there to try"
    assert probe(user, files=files) == set()


def test_another_user_connects_to_no_abstract_socket_or_port(user: int, beside: Beside) -> None:
    """The only abstract sockets are the leases, which nobody reads; no process listens on TCP."""
    names = [name[1:] for name in beside.sockets() if name.startswith("@")]
    assert names
    assert all(re.fullmatch(r"cellblock\.instance\.[0-9a-f]{12}", name) for name in names)
    assert probe(user, abstract=names) == set()
    assert beside.ports() == []


def test_another_user_learns_nothing_from_the_processes(user: int, beside: Beside) -> None:
    """Neither their memory, environment nor descriptors. What everyone may read, their command lines, has no secret."""
    processes = [*beside.processes, *sandboxes(beside.folder / "STATE_DIR")]
    assert len(processes) > len(beside.processes)
    assert probe(user, processes=processes) == set()
    secrets = [path.read_bytes() for path in beside.folder.rglob("key")]
    secrets += [json.loads(path.read_bytes())["key"].encode() for path in beside.folder.rglob("connection.json")]
    assert len(secrets) == 3
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes]
    assert not any(secret in line for secret in secrets for line in lines)


def test_the_session_goes_on_after_all_of_this(user: int, beside: Beside) -> None:
    """Datagrams to a lease, and names that the user takes, change nothing."""
    (lease, *_) = [name[1:] for name in beside.sockets() if name.startswith("@")]
    flood = (
        "import os, socket, sys\nos.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))\n"
        "to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); to.setblocking(False)\n"
        "to.connect('\\0' + sys.argv[2])\ntry:\n    while True: to.send(b'x' * 1000)\nexcept BlockingIOError: pass\n"
    )
    subprocess.run([sys.executable, "-c", flood, str(user), lease], check=True, timeout=60)
    assert beside.manager.stdin is not None
    assert beside.manager.stdout is not None
    beside.manager.stdin.write("\n")
    beside.manager.stdin.flush()
    assert beside.manager.stdout.readline() == "'of the agent'\n"
