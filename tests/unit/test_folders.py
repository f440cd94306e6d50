"""Where instances and kernels have their folders, and that what lies elsewhere is not taken for one."""

from __future__ import annotations

from pathlib import Path

from orchestrator.container.folders import instance_folder, instance_folders, instance_of, kernel_folder, wire_folder


def test_a_wire_lies_in_its_kernels_folder_in_its_instances_folder(tmp_path: Path) -> None:
    folder = instance_folder(tmp_path, "0123456789ab")
    wire = wire_folder(kernel_folder(folder, "abcdef0123456789" * 2))
    assert wire == tmp_path / "i-0123456789ab" / "abcdef012345" / "wire"
    assert instance_of(folder) == "0123456789ab"


def test_only_instances_are_found(tmp_path: Path) -> None:
    """The state folder may hold other things."""
    for name in ("i-bb", "i-aa", "data", "k-1"):
        (tmp_path / name).mkdir()
    assert [instance_of(folder) for folder in instance_folders(tmp_path)] == ["aa", "bb"]
    assert instance_folders(tmp_path / "missing") == []
