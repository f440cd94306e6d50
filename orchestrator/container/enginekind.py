"""Which kinds of engine cannot keep Cellblock's promises, from what the engine says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import EngineUnsupportedError

_USE_ANOTHER = (
    "Use a Docker engine that runs as root and maps no user ids: unset DOCKER_HOST, or set it to that engine's socket. "
    "As root on Debian, `cellblock engine start` sets one up."
)
_REMAP_OFF = (
    "Remove `userns-remap` from /etc/docker/daemon.json and restart Docker, or set DOCKER_HOST to a second engine "
    "without it. Each kernel has an unprivileged user id of its own, also without `userns-remap`."
)


def unsupported(info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineUnsupportedError | None:
    """Return why this engine is refused, or None if it is not.

    Args:
        info, version: the engine's answers to ``GET /info`` and ``GET /version``.
    """
    options = {str(option).partition(",")[0] for option in info.get("SecurityOptions") or ()}
    components = " ".join(str(part.get("Name")) for part in version.get("Components") or ())
    if "podman" in components.lower():
        return EngineUnsupportedError(
            "the engine is Podman. It does not say which limits and which runtimes it has: it lists runtimes that are "
            "not installed, and reports that it cannot limit CPU and swap. Nothing was started.",
            kind="podman",
            remedy=_USE_ANOTHER,
        )
    if "name=rootless" in options:
        return EngineUnsupportedError(
            "the engine is rootless Docker. It maps user ids and has 65,536 of them, but each kernel needs one of its "
            "own from CELLBLOCK_UID_BASE on, and Cellblock's promise was not verified there. Nothing was started.",
            kind="rootless",
            remedy=_USE_ANOTHER,
        )
    if "name=userns" in options:
        return EngineUnsupportedError(
            "the engine maps user ids (`userns-remap`). It has 65,536 of them for all containers, so that a kernel "
            "cannot have a user id and a work folder of its own. Nothing was started.",
            kind="userns-remap",
            remedy=_REMAP_OFF,
        )
    return None
