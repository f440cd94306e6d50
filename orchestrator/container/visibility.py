"""Whether the engine sees a folder of this process. One on another machine, or outside this container, may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docker.errors import APIError

_UNSEEN = "bind source path does not exist"


def engine_sees(api: Any, folder: Path) -> bool:
    """Return whether the engine finds ``folder`` at the same path. Blocks; creates nothing.

    The request mounts the folder, and then an entry of it that does not exist. The engine refuses the request because
    of the first path that it does not find, and names that path. An engine that says something else counts as seeing
    the folder: the first kernel then shows whether it does.

    Raises:
        DockerException: the engine does not answer.
    """
    mounts = [_bind(folder, "/seen"), _bind(folder / "missing", "/missing")]
    try:
        api.create_container_from_config({"Image": "missing", "HostConfig": {"Mounts": mounts}})
    except APIError as error:
        said = str(error.explanation or "").strip()
        return not (_UNSEEN in said and said.endswith(f": {folder}"))
    return True


def _bind(source: Path, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}
