"""Removing what a dead process left behind: its containers and its folders. Never a live neighbour's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from orchestrator.container.container import remove_by_name
from orchestrator.container.hostconfig import BOOT_LABEL, INSTANCE_LABEL, NAMESPACE_LABEL
from orchestrator.container.lease import host_identity, is_dead


def sweep_orphans(api: Any, folder: Path) -> int:
    """Remove the containers and folders of all instances that are dead. Blocks.

    Args:
        api: docker-py's low-level client.
        folder: where instances have their folders.

    Returns:
        The number of containers that were removed.

    Raises:
        DockerException: the engine does not answer.
    """
    removed = 0
    for container in api.containers(all=True, filters={"label": INSTANCE_LABEL}):
        if _is_orphan(container):
            remove_by_name(api, container["Id"])
            removed += 1
    for entry in folder.glob("i-*"):
        if is_dead(entry.name.removeprefix("i-")):
            shutil.rmtree(entry, ignore_errors=True)
    return removed


def sweep_instance(api: Any, instance: str, folder: Path) -> None:
    """Remove everything of one instance, whatever state it is in. Blocks. For the owner's last act."""
    for container in api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"}):
        remove_by_name(api, container["Id"])
    shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(container: dict[str, Any]) -> bool:
    """Judge only what can be judged from here; the rest is left alone."""
    labels = container["Labels"]
    boot, namespace = host_identity()
    if labels.get(BOOT_LABEL) != boot:
        # Made before this machine's last start, or by a process on another machine, which may be about to start it.
        return container["State"] in ("exited", "dead")
    if labels.get(NAMESPACE_LABEL) != namespace:
        return False
    return is_dead(labels[INSTANCE_LABEL])
