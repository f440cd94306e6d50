"""Reap what dead instances left: their containers and folders. Never touches those of a live instance."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.container.container import remove_by_name
from orchestrator.container.folders import (
    instance_folder,
    instance_folders,
    instance_of,
    kernel_folder,
    lock_file,
    lock_files,
)
from orchestrator.container.hostconfig import (
    BOOT_LABEL,
    HOME_LABEL,
    INSTANCE_LABEL,
    KERNEL_LABEL,
    NAMESPACE_LABEL,
    RESTRICTIONS_LABEL,
    USER_LABEL,
)
from orchestrator.container.lease import Lease, host_identity, instance_name, is_dead
from orchestrator.container.lockfile import LockFile


@dataclass(frozen=True, slots=True)
class Leftover:
    """A running container of this boot, which a new owner may adopt.

    Attributes:
        uid: its user id.
        restrictions: the digest of its restrictions, from its label; see ``hostconfig``.
        namespace: its first owner's network namespace; "" if it is not known.
    """

    kernel_id: str
    instance: str
    uid: int
    restrictions: str
    namespace: str = ""


def leftovers(api: Any, kernel_ids: Collection[str]) -> list[Leftover]:
    """Return the containers of these kernels that still run. Blocks.

    Raises:
        DockerException: the engine does not answer.
    """
    found = []
    for container in api.containers(filters={"label": INSTANCE_LABEL, "status": "running"}):
        labels = container["Labels"]
        here = labels.get(BOOT_LABEL) == host_identity()[0]
        if here and labels.get(KERNEL_LABEL) in kernel_ids and labels.get(USER_LABEL, "").isdecimal():
            kernel_id, uid = labels[KERNEL_LABEL], int(labels[USER_LABEL])
            restrictions, namespace = labels.get(RESTRICTIONS_LABEL, ""), labels.get(NAMESPACE_LABEL, "")
            found.append(Leftover(kernel_id, labels[INSTANCE_LABEL], uid, restrictions, namespace))
    return found


def sweep_orphans(api: Any, folder: Path, home: str | None) -> int:
    """Remove the containers and folders of all dead instances. Blocks.

    Args:
        api: docker-py's low-level client.
        folder: the folder of all instances' folders.
        home: see ``orphans``.

    Returns:
        The number of containers that were removed.

    Raises:
        DockerException: the engine does not answer.
    """
    found, spared = _divide(api, home)
    for container in found:
        remove_by_name(api, container["Id"])
    kept = {instance_folder(folder, container["Labels"][INSTANCE_LABEL]) for container in spared}
    for entry in orphaned_folders(folder):
        if entry not in kept:
            shutil.rmtree(entry, ignore_errors=True)
    remove_free_locks(folder)
    return len(found)


def remove_free_locks(folder: Path) -> None:
    """Remove the lock files that no process holds from the state folder or the data folder."""
    for file in lock_files(folder):
        with contextlib.suppress(OSError):
            LockFile.remove_free(file)


def sweep_late(api: Any) -> int:
    """Remove the containers of dead instances that do not run, such as those created after the owner's death. Blocks.

    Running containers stay for the next start, which may adopt them.

    Returns:
        The number of containers that were removed.

    Raises:
        DockerException: the engine does not answer.
    """
    every = _ours(api)
    ended = [container for container in every if container["State"] in ("created", "exited", "dead")]
    found = [container for container in ended if _owner_is_dead(container)]
    for container in found:
        remove_by_name(api, container["Id"])
    return len(found)


def orphans(api: Any, home: str | None) -> list[dict[str, Any]]:
    """Return the containers of dead instances as the engine lists them. Blocks.

    Args:
        home: see ``ContainerSpec``. Leaves out running kernels of other homes whose sockets still exist, because the
            next start with their home may adopt them. None leaves out nothing, and looks for owners in every network
            namespace of the host, if this process can.

    Raises:
        DockerException: the engine does not answer.
    """
    return _divide(api, home)[0]


def unjudged(api: Any) -> list[dict[str, Any]]:
    """Return the containers whose owner may live in another network namespace, unseen from here. Blocks.

    Raises:
        DockerException: the engine does not answer.
    """
    unseen = [container for container in _ours(api) if _owner_is_dead(container) is None]
    return unseen if _held_by_owners(unseen) is None else []


def _ours(api: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.containers(all=True, filters={"label": INSTANCE_LABEL})
    return found


def _divide(api: Any, home: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    judged = [(container, _owner_is_dead(container)) for container in _ours(api)]
    orphaned = [container for container, dead in judged if dead]
    unseen = [container for container, dead in judged if dead is None]
    if home is None and (held := _held_by_owners(unseen)) is not None:
        orphaned += [container for container in unseen if _name(container) not in held]
    spared = [container for container in orphaned if home is not None and _may_be_adopted_elsewhere(container, home)]
    return [container for container in orphaned if container not in spared], spared


def _may_be_adopted_elsewhere(container: dict[str, Any], home: str) -> bool:
    """Return whether a start with another home may adopt a container: it runs, and the folder of its sockets exists.

    A folder that this user may not look at counts as existing.
    """
    there = any(_exists(Path(mount["Source"]), unseen=True) for mount in container["Mounts"])
    return container["State"] == "running" and there and container["Labels"].get(HOME_LABEL) != home


def orphaned_folders(folder: Path) -> list[Path]:
    """Return the folders of dead instances in ``folder``."""
    return [entry for entry in instance_folders(folder) if is_dead(instance_of(entry), [folder])]


def sweep_instance(api: Any, instance: str, folder: Path, keep: Collection[str] = ()) -> int:
    """Remove all containers and folders of one instance. The owner calls this when it shuts down. Blocks.

    Args:
        folder: the instance's folder.
        keep: ids of kernels whose containers and folders stay.

    Returns:
        The number of containers that were removed.
    """
    every = api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"})
    found = [container for container in every if container["Labels"].get(KERNEL_LABEL) not in keep]
    for container in found:
        remove_by_name(api, container["Id"])
    clear_folder(folder, keep)
    return len(found)


def clear_folder(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove an instance's folder, except the folders of kernels to keep."""
    kept = {kernel_folder(folder, kernel_id) for kernel_id in keep}
    for entry in folder.glob("*"):
        if not entry.is_dir():
            entry.unlink(missing_ok=True)
        elif entry not in kept:
            shutil.rmtree(entry, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not empty while kernels stay
        folder.rmdir()


def _held_by_owners(containers: Collection[dict[str, Any]]) -> Collection[str] | None:
    """Return which of the containers' owners hold their names, anywhere on this host; None if that cannot be known."""
    return Lease.held_on_host({_name(container) for container in containers}) if containers else ()


def _name(container: dict[str, Any]) -> str:
    return instance_name(container["Labels"][INSTANCE_LABEL])


def _owner_is_dead(container: dict[str, Any]) -> bool | None:
    """Return whether the container's owner is dead. None if only a look into other network namespaces can tell."""
    labels = container["Labels"]
    boot, namespace = host_identity()
    if labels.get(BOOT_LABEL) != boot:
        # Created before this machine's last boot, or by a process on another machine, which may be about to start it.
        return container["State"] in ("exited", "dead")
    instance = labels[INSTANCE_LABEL]
    state = _state_folder(container, instance)
    if labels.get(NAMESPACE_LABEL) != namespace and state is None:
        return None
    return is_dead(instance, [] if state is None else [state])


def _state_folder(container: dict[str, Any], instance: str) -> Path | None:
    """Return the state folder of a container's owner; None if this process does not see that folder."""
    for mount in container["Mounts"]:
        wire = Path(mount.get("Source") or "/")
        for folder in wire.parents:
            if folder.parent != folder and folder == instance_folder(folder.parent, instance):
                lock = lock_file(folder.parent, instance)
                return folder.parent if _exists(wire, unseen=False) or _exists(lock, unseen=False) else None
    return None


def _exists(path: Path, *, unseen: bool) -> bool:
    """Return whether a path exists; ``unseen`` if it is in a folder of another user that this one may not enter."""
    try:
        return path.exists()
    except PermissionError:
        return unseen
