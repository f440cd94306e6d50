"""Metrics for Prometheus, and spans for OpenTelemetry where it is installed. The one place that names either.

Every manager has a registry of its own. Nothing here holds code, outputs or agents' names.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from orchestrator.errors import SettingsError

if TYPE_CHECKING:
    from orchestrator.output.events import ExecutionResult

try:
    from opentelemetry import trace as otel
except ImportError:  # the extra `otel` is not installed
    otel = None  # type: ignore[assignment]

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Span(Protocol):
    """What is used of an OpenTelemetry span."""

    def set_attribute(self, key: str, value: Any) -> Any: ...
    def set_status(self, status: Any) -> Any: ...
    def end(self) -> Any: ...


class _NoSpan:
    def set_attribute(self, key: str, value: Any) -> None:
        return

    def set_status(self, status: Any) -> None:
        return

    def end(self) -> None:
        return


@dataclass(slots=True)
class Phases:
    """The phases of one kernel's start, observed one after another.

    Attributes:
        current: the one that was begun last.
    """

    observe: Callable[[str, float], None]
    current: str = ""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.current = name
        begun = time.monotonic()
        yield
        self.observe(name, time.monotonic() - begun)


class Telemetry:
    """One manager's metrics and spans.

    Attributes:
        registry: pass it to ``prometheus_client`` where the program around has an endpoint of its own.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._server: Any = None
        self._tracer = None if otel is None else otel.get_tracer("cellblock")
        self._kernels = Gauge("cellblock_kernels", "Kernels by state.", ["state"], registry=registry)
        self._waiting = Gauge("cellblock_waiting_callers", "Callers that wait for a kernel.", registry=registry)
        self._lease = Histogram(
            "cellblock_lease_wait_seconds",
            "From asking for a kernel to its lease.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._leases = Counter(
            "cellblock_leases",
            "Kernels that were handed out: was one ready when it was asked for.",
            ["ready"],
            registry=registry,
        )
        self._refused = Counter(
            "cellblock_leases_refused", "Callers that got no kernel, by what was scarce.", ["reason"], registry=registry
        )
        self._replaced = Counter(
            "cellblock_ready_kernels_replaced",
            "Kernels that were ended while nobody had them, by why.",
            ["reason"],
            registry=registry,
        )
        for ready in ("yes", "no"):  # a rate can be told before both have happened
            self._leases.labels(ready)
        self._start = Histogram(
            "cellblock_kernel_start_seconds", "A kernel's cold start, by phase.", ["phase", "runtime"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._failed = Counter("cellblock_kernel_start_failures", "Kernels that did not start.", registry=registry)
        self._cells = Counter("cellblock_cells", "Cells that ended.", ["outcome", "runtime"], registry=registry)
        self._duration = Histogram(
            "cellblock_cell_duration_seconds", "A cell, from sending to its result.", ["runtime"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._ends = Counter("cellblock_kernel_ends", "Kernels of sessions that ended.", ["reason"], registry=registry)
        self._output = Counter("cellblock_output_bytes", "What cells put out.", registry=registry)
        self._dropped = Counter("cellblock_output_dropped_bytes", "What of it was left out.", registry=registry)

    def watch_pool(self, counts: Callable[[], dict[str, int]]) -> None:
        """Have the pool's counts read whenever the metrics are."""
        for state in ("ready", "leased", "starting", "ending"):
            self._kernels.labels(state).set_function(lambda state=state: counts()[state])  # type: ignore[misc]
        self._waiting.set_function(lambda: counts()["waiting"])

    def serve(self, address: str, port: int) -> None:
        """Answer Prometheus on a port of this host, in a thread.

        Raises:
            SettingsError: the port cannot be had.
        """
        try:
            self._server, _ = start_http_server(port, address, self.registry)
        except OSError as error:
            raise SettingsError(
                f"metrics cannot be served on {address}:{port}: {error.strerror or error}.",
                remedy="Set CELLBLOCK_METRICS_PORT to a free port, or to 0 for none.",
            ) from error

    def close(self) -> None:
        """End the thread of ``serve``. Blocks for a moment."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def kernel_phases(self, runtime: str) -> Phases:
        return Phases(lambda phase, seconds: self._start.labels(phase, runtime).observe(seconds))

    def kernel_failed(self) -> None:
        self._failed.inc()

    def kernel_ended(self, reason: str) -> None:
        self._ends.labels(reason).inc()

    def leased(self, seconds: float) -> None:
        self._lease.observe(seconds)

    def handed_out(self, *, ready: bool) -> None:
        self._leases.labels("yes" if ready else "no").inc()

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def replaced(self, reason: str) -> None:
        self._replaced.labels(reason).inc()

    def cell_ended(self, result: ExecutionResult) -> None:
        self._cells.labels(result.outcome, result.runtime).inc()
        self._duration.labels(result.runtime).observe(result.duration_s)
        self._output.inc(result.evidence.output_bytes)
        if result.truncated is not None:
            self._dropped.inc(result.truncated.dropped_bytes)

    @contextlib.contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[Span]:
        """A span around a block; its parent is whatever span the caller is in. Not made the current one.

        An async generator may be resumed in another context, which a current span would not survive.
        """
        span: Span = _NoSpan()
        if self._tracer is not None:
            span = self._tracer.start_span(f"cellblock.{name}")
        for key, value in attributes.items():
            span.set_attribute(f"cellblock.{key}", value)
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            if otel is not None and isinstance(error, Exception):
                span.set_status(otel.StatusCode.ERROR)
            raise
        finally:
            span.end()
