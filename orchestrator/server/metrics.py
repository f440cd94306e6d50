"""The metrics of a server's managers as one page: a registry each, told apart by the label ``policy``."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.samples import Sample

from orchestrator.server.service import Service


def exposition(service: Service) -> bytes:
    """Return all metrics in Prometheus's text form."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(service))
    return generate_latest(registry)


class _Merged:
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        merged: dict[str, Metric] = {}
        for manager in self._service.managers:
            for metric in manager.telemetry.registry.collect():
                found = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                found.samples += [
                    Sample(name, {**labels, "policy": manager.settings.policy}, value)
                    for name, labels, value, *_ in metric.samples
                ]
        streams = Metric("cellblock_server_requests_open", "Requests and streams that are open now.", "gauge")
        streams.add_sample(streams.name, {}, self._service.slots.open)
        lag = Metric("cellblock_server_loop_lag_seconds", "The longest time that the event loop was held up.", "gauge")
        lag.add_sample(lag.name, {}, self._service.lag.longest)
        held = "The longest time that the event loop was held up by what it computed."
        busy = Metric("cellblock_server_loop_busy_seconds", held, "gauge")
        busy.add_sample(busy.name, {}, self._service.lag.computing)
        yield from (*merged.values(), streams, lag, busy)

    def describe(self) -> list[Metric]:
        """Called by prometheus_client: nothing is known before the managers are asked."""
        return []
