"""Whether an owner lives is known in every network namespace that shares one of its folders. No engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.container.folders import instance_folder
from orchestrator.container.hostconfig import BOOT_LABEL, INSTANCE_LABEL, NAMESPACE_LABEL
from orchestrator.container.lease import holder_of, host_identity, instance_lease, is_dead
from orchestrator.container.lockfile import LockFile
from orchestrator.container.reaper import orphaned_folders, orphans, remove_free_locks, sweep_late
from orchestrator.sessions.owners import HostOwners
from tests.conftest import REPOSITORY

_OWNER = """
import sys
from pathlib import Path
from orchestrator.container.folders import instance_folder
from orchestrator.container.lease import host_identity, instance_lease
state, data = map(Path, sys.argv[1:3])
lease = instance_lease("abroad", (state, data))
instance_folder(state, "abroad").mkdir(parents=True)
print("/".join((*host_identity(), "abroad")), flush=True)
sys.stdin.read()
"""


class Abroad:
    """An owner in a network namespace of its own.

    Attributes:
        name: its name in the store.
    """

    def __init__(self, state: Path, data: Path) -> None:
        self.process = subprocess.Popen(
            ["unshare", "-n", sys.executable, "-c", _OWNER, str(state), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            text=True,
        )
        assert self.process.stdout is not None
        self.name = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def abroad(state: Path, tmp_path: Path) -> Iterator[Abroad]:
    owner = Abroad(state, tmp_path)
    yield owner
    owner.kill()


class Engine:
    """Lists one container, as docker-py does."""

    def __init__(self, owner: str, wire: Path, status: str = "running") -> None:
        boot, namespace, instance = owner.split("/")
        labels: dict[str, object] = {BOOT_LABEL: boot, NAMESPACE_LABEL: namespace, INSTANCE_LABEL: instance}
        self.listed: dict[str, object] = {
            "Id": "1",
            "State": status,
            "Labels": labels,
            "Mounts": [{"Source": str(wire)}],
        }

    def containers(self, **_options: object) -> list[dict[str, object]]:
        return [self.listed]


def test_a_live_owner_of_another_network_namespace_keeps_its_folder_and_containers(
    abroad: Abroad, state: Path, tmp_path: Path
) -> None:
    """And when it is killed, both are found, and its sessions are free."""
    wire = instance_folder(state, "abroad") / "kernel" / "wire"
    wire.mkdir(parents=True)
    engine = Engine(abroad.name, wire)
    owners = HostOwners("me", (state, tmp_path))
    assert abroad.name.split("/")[1] != host_identity()[1]
    assert not orphaned_folders(state)
    assert not orphans(engine, None)
    assert not owners.is_dead(abroad.name)
    assert owners.holder(abroad.name) == (abroad.process.pid, socket.gethostname())
    remove_free_locks(state)
    assert instance_lease("abroad", (state, tmp_path)) is None
    abroad.kill()
    assert orphaned_folders(state) == [instance_folder(state, "abroad")]
    assert orphans(engine, None) == [engine.listed]
    assert owners.is_dead(abroad.name)


@pytest.mark.parametrize("shared", ["state", "data"])
def test_one_shared_folder_is_enough_to_see_an_owner(abroad: Abroad, state: Path, tmp_path: Path, shared: str) -> None:
    folder = state if shared == "state" else tmp_path
    assert not HostOwners("me", (folder, tmp_path / "mine")).is_dead(abroad.name)


def test_a_container_whose_state_folder_is_not_visible_is_left_to_prune_all(state: Path) -> None:
    """Nothing here says whether its owner lives, so a start leaves it alone, and so does the sweep of a manager."""
    engine = Engine(f"{host_identity()[0]}/1/unseen", state / "i-unseen" / "kernel" / "wire", "exited")
    assert orphans(engine, "mine") == []
    assert sweep_late(engine) == 0
    assert orphans(engine, None) == [engine.listed]


def test_an_owner_lives_that_holds_its_name_in_any_network_namespace(abroad: Abroad, tmp_path: Path) -> None:
    """Even in another one than the container's label names: it has taken the container over from there."""
    engine = Engine(f"{host_identity()[0]}/1/abroad", tmp_path / "unseen" / "i-abroad" / "kernel" / "wire")
    assert orphans(engine, None) == []
    abroad.kill()
    assert orphans(engine, None) == [engine.listed]


@pytest.mark.parametrize(
    ("user", "view", "said"),
    [(0, [], "1 0\n"), (0, ["unshare", "-p", "--fork", "--mount-proc"], "0 1\n"), (65534, [], "0 1\n")],
    ids=["root", "a container", "another user"],
)
def test_who_cannot_see_every_network_namespace_judges_no_owner(user: int, view: list[str], said: str) -> None:
    """In a container, or as another user, such a container stays, and is named."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom orchestrator.container.lease import host_identity\n"
        "from orchestrator.container.reaper import orphans, unjudged\n"
        "from tests.regressions.test_owners import Engine\n"
        "engine = Engine(f'{host_identity()[0]}/1/unseen', Path('/nonexistent/i-unseen/kernel/wire'))\n"
        f"os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
        "print(len(orphans(engine, None)), len(unjudged(engine)))"
    )
    done = subprocess.run(
        [*view, sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == said, done.stderr


def test_an_owner_without_a_lock_file_lives_while_its_control_socket_answers(state: Path) -> None:
    """An earlier version of Cellblock has no lock file."""
    folder = instance_folder(state, "old")
    folder.mkdir()
    owner = f"{host_identity()[0]}/1/old"
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(folder / "control.sock"))
        control.listen()
        assert orphaned_folders(state) == []
        assert not HostOwners("me", (state,)).is_dead(owner)
    assert orphaned_folders(state) == [folder]
    assert HostOwners("me", (state,)).is_dead(owner)
    assert not HostOwners("me").is_dead(owner)


def test_a_lock_file_has_one_holder_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "new" / "owner-1.lock"
    assert not LockFile.is_held(path)
    lock = LockFile.take(path, "text")
    assert lock is not None
    assert LockFile.is_held(path)
    assert LockFile.take(path) is None
    assert path.read_text() == "text"
    lock.release()
    assert not path.exists()


def test_an_instance_whose_folders_are_one_takes_one_lock(tmp_path: Path) -> None:
    lease = instance_lease("one", (tmp_path, tmp_path))
    assert lease is not None
    assert not is_dead("one", [tmp_path])
    assert holder_of("one", [tmp_path]) == (os.getpid(), socket.gethostname())
    lease.release()
    assert holder_of("one", [tmp_path]) == (None, None)
    assert list(tmp_path.iterdir()) == []
