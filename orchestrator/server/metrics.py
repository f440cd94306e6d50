"""The metrics of a server's managers as one page, and those of its cluster as another.

Each manager has a registry of its own; the label ``policy`` tells them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.samples import Sample

from orchestrator.server.service import Service
from orchestrator.sessions.membership import owner_node
from orchestrator.store.noderecord import NodeRecord

_CONDITIONS: Final = ("up", "draining", "lost", "down")


def exposition(service: Service) -> bytes:
    """Return all metrics in Prometheus's text form."""
    return _page(_of_managers(service))


def cluster_exposition(nodes: Sequence[NodeRecord], live: Mapping[str, int], lease_s: float) -> bytes:
    """Return the metrics of a cluster in Prometheus's text form. Every node would say the same.

    Args:
        live: how many sessions are live, by their owner's name.
        lease_s: seconds that a lease lasts.
    """
    return _page(_of_cluster(nodes, live, lease_s))


def _page(metrics: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(metrics))
    return generate_latest(registry)


class _Collected:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        return self._metrics

    def describe(self) -> list[Metric]:
        """Called by prometheus_client: nothing is known before the managers are asked."""
        return []


def _of_managers(service: Service) -> Iterator[Metric]:
    merged: dict[str, Metric] = {}
    for manager in service.managers:
        for metric in manager.telemetry.registry.collect():
            found = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            found.samples += [
                Sample(name, {**labels, "policy": manager.settings.policy}, value)
                for name, labels, value, *_ in metric.samples
            ]
    streams = Metric("cellblock_server_requests_open", "Requests and streams that are open now.", "gauge")
    streams.add_sample(streams.name, {}, service.slots.open)
    lag = Metric("cellblock_server_loop_lag_seconds", "The longest time that the event loop was held up.", "gauge")
    lag.add_sample(lag.name, {}, service.lag.longest)
    held = "The longest time that the event loop was held up by what it computed."
    busy = Metric("cellblock_server_loop_busy_seconds", held, "gauge")
    busy.add_sample(busy.name, {}, service.lag.computing)
    yield from (*merged.values(), streams, lag, busy)


def _of_cluster(nodes: Sequence[NodeRecord], live: Mapping[str, int], lease_s: float) -> Iterator[Metric]:
    by_state = Metric("cellblock_cluster_nodes", "Nodes by state; one that left or was lost counts for a day.", "gauge")
    states = Counter(node.condition for node in nodes)
    for state in _CONDITIONS:
        by_state.add_sample(by_state.name, {"state": state}, states[state])
    places = Metric("cellblock_cluster_node_places", "How many kernels a node may have at once.", "gauge")
    free = Metric("cellblock_cluster_node_places_free", "How many of them nobody has.", "gauge")
    held = Metric("cellblock_cluster_node_sessions", "Live sessions of a node.", "gauge")
    age = Metric("cellblock_cluster_node_lease_age_seconds", "Seconds since a node has renewed its lease.", "gauge")
    sessions: Counter[str] = Counter()
    for owner, number in live.items():
        sessions[(owner_node(owner) or ("", 0))[0]] += number
    for node in nodes:
        if node.is_over:
            continue
        named = {"node": node.address}
        places.add_sample(places.name, named, node.capacity.kernels)
        free.add_sample(free.name, named, node.capacity.free)
        held.add_sample(held.name, named, sessions[node.node_id])
        age.add_sample(age.name, named, max(0.0, lease_s - node.lease_left_s))
    yield from (by_state, places, free, held, age)
