"""The high-water mark of a cgroup, on files like those of cgroup v2: each cell has a peak of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.container.cgroup import _V2, Cgroup

MIB = 2**20
NOBODY = 65534


@pytest.fixture(params=["reset", "fixed"])
def cgroup(request: pytest.FixtureRequest, state: Path) -> Iterator[Cgroup]:
    """A cgroup whose mark this user may reset, and one whose mark only rises, as before Linux 6.12."""
    state.chmod(0o755)
    for name in {row[1] for row in _V2.values()}:
        (state / name).write_text("0\n")
    hold(state, now=100, mark=500)
    os.seteuid(0 if request.param == "reset" else NOBODY)
    try:
        made = Cgroup({"": state}, _V2)
    finally:
        os.seteuid(0)
    yield made
    made.close()


def hold(folder: Path, *, now: int, mark: int) -> None:
    (folder / "memory.current").write_text(f"{now * MIB}\n")
    (folder / "memory.peak").write_text(f"{mark * MIB}\n")


def peak(cgroup: Cgroup) -> float:
    usage = cgroup.read()
    assert usage is not None
    return usage.peak / MIB


def test_a_peak_before_the_cell_is_not_the_cells(cgroup: Cgroup, state: Path) -> None:
    assert peak(cgroup) == 500
    cgroup.reset_peak()
    assert peak(cgroup) == 100
    hold(state, now=120, mark=600)
    assert peak(cgroup) == 600
    cgroup.reset_peak()
    assert peak(cgroup) == 120


def test_a_host_without_a_mark_has_what_is_held_now(cgroup: Cgroup, state: Path) -> None:
    (state / "memory.peak").unlink()
    older = Cgroup({"": state}, _V2)
    older.reset_peak()
    assert peak(older) == 100
    older.close()
