"""Where an instance and its kernels have their folders. The one place that spells them. Pure.

    <state>/owner-<instance>.lock     held by one orchestrator while it lives; there is one in the data folder too
    <state>/uid-<user id>.lock        held by the orchestrator whose container has that user id
    <state>/i-<instance>/             that orchestrator's
    <state>/i-<instance>/<kernel>/    one kernel's, named by the first 12 digits of its id
    <state>/i-<instance>/b-<name>/    the sockets of one broker's clients
    …/<kernel>/wire/                  what its sandbox sees: the sockets and the connection file

The names are short, since the path of a unix socket has 107 bytes at most.
"""

from __future__ import annotations

from pathlib import Path

_PREFIX = "i-"
_KERNEL_DIGITS = 12


def instance_folder(state: Path, instance: str) -> Path:
    """Return an instance's folder in the folder of all states."""
    return state / f"{_PREFIX}{instance}"


def instance_of(folder: Path) -> str:
    """Return the instance that a folder belongs to."""
    return folder.name.removeprefix(_PREFIX)


def instance_folders(state: Path) -> list[Path]:
    """Find the folders of all instances."""
    return sorted(state.glob(f"{_PREFIX}*"))


def lock_file(folder: Path, instance: str) -> Path:
    """Return an instance's lock file in the state folder or in the data folder."""
    return folder / f"owner-{instance}.lock"


def user_lock_file(folder: Path, uid: int) -> Path:
    """Return a user id's lock file in the state folder."""
    return folder / f"uid-{uid}.lock"


def lock_files(folder: Path) -> list[Path]:
    """Find the lock files of all instances and user ids."""
    return sorted([*folder.glob("owner-*.lock"), *folder.glob("uid-*.lock")])


def kernel_folder(folder: Path, kernel_id: str) -> Path:
    """Return a kernel's folder in the folder of its instance."""
    return folder / kernel_id[:_KERNEL_DIGITS]


def broker_folder(folder: Path, name: str) -> Path:
    """Return the folder of one broker's sockets in the folder of its instance."""
    return folder / f"b-{name}"


def wire_folder(kernel: Path) -> Path:
    """Return the folder in a kernel's folder that its sandbox sees."""
    return kernel / "wire"
