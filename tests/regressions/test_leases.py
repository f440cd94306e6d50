"""Leases and the folders that hold them: another local user can neither take them nor write there. No engine."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.container.lease import UserId, instance_lease, is_dead
from orchestrator.container.reaper import remove_free_locks
from orchestrator.sessions.owners import HostOwners

BASE = 320_000


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
