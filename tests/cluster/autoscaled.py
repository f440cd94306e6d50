"""A cluster that Ray's own autoscaler makes larger and smaller: ``python -m tests.cluster.autoscaled``, where Ray is.

Ray's provider for tests starts and ends the nodes as processes of this machine, which are to end with it: run it where
processes are a machine's own (``Machine``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.autoscaling import Autoscaling, RayAutoscaler
from orchestrator.cluster.demand import Demand
from orchestrator.store.noderecord import NodeRecord
from tests.cluster.fakedirectory import ROOMY, record

_LONGEST = 150.0  # seconds
_IDLE = 6.0  # seconds after which Ray's autoscaler ends a node
_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # the id that the provider gives to its head
_EMPTY = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip
_TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "node": {"resources": {"cellblock_node": 1}, "node_config": {}, "min_workers": 0, "max_workers": 4},
}


class _Unread:
    """A directory that nobody reads."""

    async def nodes(self) -> list[NodeRecord]:
        return []

    async def owner_of(self, agent_id: str) -> None:
        return None


def _start(folder: Path, version: str) -> None:
    """Start Ray's head, with its autoscaler of this version."""
    config = {
        "cluster_name": "autoscaled",
        "max_workers": 8,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            **({"launch_multiple": True, "head_node_id": _HEAD} if version == "2" else {}),
        },
        "available_node_types": _TYPES,
        "head_node_type": "ray.head.default",
        "auth": {},
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": _IDLE / 60,
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in _EMPTY},
    }
    file = folder / "autoscaler.json"
    file.write_text(json.dumps(config))
    own = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": str(int(version == "2")),
        **({"RAY_CLOUD_INSTANCE_ID": _HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD} if version == "2" else {}),
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=0"]
    subprocess.run(
        [*command, "--include-dashboard=false", f"--autoscaling-config={file}"], env={**os.environ, **own}, check=True
    )


def _nodes() -> set[str]:
    """Return the ids of the Ray nodes that live and may be nodes of Cellblock."""
    found: list[dict[str, Any]] = ray.nodes()
    return {each["NodeID"] for each in found if each["Alive"] and "cellblock_node" in each["Resources"]}


def _until(said: str, reached: Callable[[], bool], look: Callable[[], None]) -> None:
    end = time.monotonic() + _LONGEST
    while not reached():
        look()
        assert time.monotonic() < end, f"not reached: {said}; the nodes are {_nodes()}"
        time.sleep(0.5)
    print(said, flush=True)


def main(folder: str, version: str) -> None:
    """Have callers wait, and stop to wait; keep a node, and let it go."""
    _start(Path(folder), version)
    ray.init("auto", log_to_driver=False)
    demand = Demand(3, patience=2, idle=4)
    scaling = Autoscaling(_Unread(), "http://a", demand, RayAutoscaler("none"), kept=-1)  # it keeps no node
    quiet = record("a", "http://a")
    waits = replace(quiet, capacity=replace(ROOMY, waiting=35))
    scaling.look([quiet], time.monotonic())
    assert _nodes() == set()
    _until("three nodes have come", lambda: len(_nodes()) == 3, lambda: scaling.look([waits], time.monotonic()))
    kept = min(_nodes())
    holding = RayAutoscaler(kept)
    holding.hold()
    _until("one is kept", lambda: _nodes() == {kept}, lambda: scaling.look([quiet], time.monotonic()))
    end = time.monotonic() + 3 * _IDLE
    while time.monotonic() < end:
        assert _nodes() == {kept}
        time.sleep(0.5)
    holding.release()
    _until("it is let go", lambda: not _nodes(), lambda: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
