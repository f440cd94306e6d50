"""The calls to Ray, in a process of their own: ``python -m orchestrator.cluster.raydriver VERB ARGUMENTS``.

``RayCluster`` starts it, with a deadline. Ray's client may end its process (SIGABRT) if something else answers at the
head's port, and waits for a minute for a head that is gone. The last line on standard output is the result, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.cluster.nodeactor import NodeActor

NAMESPACE = "cellblock"
_PREFIX = "node-"
_ANSWER = 5.0  # seconds in which an actor must answer


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    import ray
    import ray.util.scheduling_strategies

    ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    try:
        yield ray
    finally:
        ray.shutdown()


def place(ray: Any, name: str, folder: str) -> str:
    """Have one actor supervise the node of this host. Return the id of its Ray node."""
    here: str = ray.get_runtime_context().get_node_id()
    _remove_elsewhere(ray, name, here)
    pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    options = {
        "name": f"{_PREFIX}{name}",
        "lifetime": "detached",
        "max_restarts": -1,
        "num_cpus": 0,
        "scheduling_strategy": pinned,
        "get_if_exists": True,
    }
    actor = ray.remote(NodeActor).options(**options).remote(folder, here)
    placed: str = ray.get(actor.place.remote(), timeout=60)
    return placed


def _remove_elsewhere(ray: Any, name: str, here: str) -> None:
    """Remove an actor of this name that belongs to another Ray node: this host's, before it was started again."""
    with contextlib.suppress(ValueError):  # there is none
        actor = ray.get_actor(f"{_PREFIX}{name}")
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.get(actor.place.remote(), timeout=_ANSWER) == here:
                return
        ray.kill(actor, no_restart=True)


def states(ray: Any) -> list[dict[str, Any]]:
    """Return each node's state, and for one that does not answer its name and "error"."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    asked = {}
    for name in sorted(name for name in names if name.startswith(_PREFIX)):
        with contextlib.suppress(ValueError):  # it has ended since
            asked[ray.get_actor(name).state.remote()] = name.removeprefix(_PREFIX)
    if asked:
        ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER)
    return [_answer(ray, reference, name) for reference, name in asked.items()]


def _answer(ray: Any, reference: Any, name: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = ray.get(reference, timeout=0)
    except ray.exceptions.RayError as error:
        return {"name": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return state


def remove(ray: Any, name: str) -> bool:
    """End the supervision of a node. Return whether there was any."""
    try:
        ray.kill(ray.get_actor(f"{_PREFIX}{name}"), no_restart=True)
    except ValueError:
        return False
    return True


_VERBS: dict[str, Callable[..., Any]] = {"place": place, "states": states, "remove": remove}


def main(address: str, verb: str, *arguments: str) -> None:
    """Do one call."""
    with _connected(address) as ray:
        result = _VERBS[verb](ray, *arguments)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
