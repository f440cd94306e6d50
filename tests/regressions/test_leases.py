"""Leases and the folders that hold them: another local user can neither take them nor write there. No engine."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import AgentKernelManager, SettingsError
from orchestrator.container.folders import instance_folder
from orchestrator.container.lease import UserId, instance_lease, is_dead
from orchestrator.container.reaper import remove_free_locks
from orchestrator.sessions.owners import HostOwners
from orchestrator.settings import refuse_foreign
from tests.conftest import REPOSITORY

BASE = 320_000
NOBODY = 65534


@pytest.fixture
def squatter() -> Iterator[list[socket.socket]]:
    """A local user who binds abstract names, which needs no permission."""
    held: list[socket.socket] = []
    yield held
    for each in held:
        each.close()


def squat(held: list[socket.socket], name: str) -> None:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.bind(f"\0cellblock.{name}")
    held.append(one)


def test_a_local_user_cannot_take_user_ids(squatter: list[socket.socket], tmp_path: Path) -> None:
    """Whatever abstract names somebody else holds, every id of the range can be leased."""
    for uid in range(BASE, BASE + 5):
        squat(squatter, f"uid.{uid}")
    taken = [UserId.take(tmp_path, BASE, 5) for _ in range(5)]
    assert {user.uid for user in taken} == set(range(BASE, BASE + 5))
    for user in taken:
        assert stat.S_IMODE((tmp_path / f"uid-{user.uid}.lock").stat().st_mode) == 0o600
        user.release()
    assert list(tmp_path.iterdir()) == []


def test_a_local_user_cannot_make_a_dead_owner_seem_alive(squatter: list[socket.socket], tmp_path: Path) -> None:
    """The lock file decides. Its holder is dead, so the instance and its sessions can be taken over."""
    squat(squatter, "instance.0badc0de")
    (tmp_path / "owner-0badc0de.lock").touch()
    assert is_dead("0badc0de", [tmp_path])
    owners = HostOwners("me", (tmp_path,))
    assert owners.is_dead(owners.name.replace("me", "0badc0de"))
    lease = instance_lease("0badc0de", [tmp_path])
    assert lease is not None
    assert not is_dead("0badc0de", [tmp_path])
    assert instance_lease("0badc0de", [tmp_path]) is None
    lease.release()


def test_user_ids_of_a_killed_process_are_free_and_their_files_removed(tmp_path: Path) -> None:
    held = UserId.take(tmp_path, BASE, 1)
    (tmp_path / "uid-320001.lock").touch()
    remove_free_locks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"uid-{BASE}.lock"]
    held.release()
    free = UserId.take_over(tmp_path, BASE + 1)
    assert free is not None
    free.release()


def folders(tmp_path: Path) -> dict[str, Path]:
    """Return folders that another user owns, can write or can replace, by what is wrong with them."""
    made = {name: tmp_path / name / "cellblock" for name in ("foreign", "group", "everyone", "parent", "above")}
    for folder in made.values():
        folder.mkdir(parents=True, mode=0o700)
    os.chown(made["foreign"], NOBODY, NOBODY)
    made["group"].chmod(0o770)
    made["everyone"].chmod(0o1777)
    os.chown(made["parent"].parent, NOBODY, NOBODY)
    made["above"].parent.chmod(0o777)
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(own)
    os.lchown(tmp_path / "link", NOBODY, NOBODY)
    return made | {"link": tmp_path / "link", "below a link": tmp_path / "link" / "new"}


@pytest.mark.parametrize("setting", ["CELLBLOCK_STATE_DIR", "CELLBLOCK_DATA_DIR"])
@pytest.mark.parametrize("fault", ["foreign", "group", "everyone", "parent", "above", "link", "below a link"])
def test_a_folder_that_another_user_can_write_is_refused(
    fault: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written there. The message names the folder and says how to repair it."""
    folder = folders(tmp_path)[fault]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(tmp_path / "own" / "state"))
    monkeypatch.setenv(setting, str(folder))
    with pytest.raises(SettingsError) as caught:
        asyncio.run(AgentKernelManager(max_kernels=1).start())
    assert f"{folder} is not used" in caught.value.message
    assert "chmod go-w" in caught.value.remedy
    assert setting in caught.value.remedy
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_STATE_HOME"])
def test_the_folders_of_the_desktop_are_checked(variable: str, state: Path) -> None:
    """Another user's XDG_* folders, as `su` without a login leaves them."""
    program = (
        "import os\nfrom orchestrator.errors import SettingsError\nfrom orchestrator.settings import Settings\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try:\n    Settings.load().refuse_foreign_folders()\nexcept SettingsError as error:\n    print(error)\n"
    )
    state.chmod(0o755)
    for name, uid in (("mine", NOBODY), ("theirs", 12345)):
        (state / name).mkdir(mode=0o700)
        os.chown(state / name, uid, uid)
    own = dict.fromkeys(("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_STATE_HOME"), str(state / "mine"))
    clean = {key: text for key, text in os.environ.items() if not key.startswith("CELLBLOCK_")}
    said = []
    for changed in ({}, {variable: str(state / "theirs")}):
        environment = clean | own | {"PYTHONPATH": str(REPOSITORY)} | changed
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd="/", capture_output=True, text=True, timeout=60
        )  # fmt: skip
        said.append(done.stdout + done.stderr)
    assert said[0] == ""
    assert "belongs to uid 12345" in said[1]


def test_what_we_make_ourselves_is_ours_alone(tmp_path: Path) -> None:
    """Under any umask: the next start accepts it."""
    before = os.umask(0o002)
    try:
        UserId.take(tmp_path / "state", BASE, 1).release()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    refuse_foreign(tmp_path / "state", "CELLBLOCK_STATE_DIR")


def test_containers_of_another_user_are_left_alone(state: Path) -> None:
    """A member of the docker group sees them in the engine's list, and may not look into their folders."""
    wire = instance_folder(state, "theirs") / "kernel" / "wire"
    wire.mkdir(parents=True)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom orchestrator.container.lease import host_identity\n"
        "from orchestrator.container.reaper import orphans\nfrom tests.regressions.test_owners import Engine\n"
        "engine = Engine('/'.join((*host_identity(), 'theirs')), Path(sys.argv[1]))\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\nprint(len(orphans(engine, 'mine')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(wire)], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr
