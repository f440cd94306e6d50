"""Metrics for Prometheus, and spans for OpenTelemetry if it is installed. No other module imports either.

Every manager has a registry of its own. Nothing here contains code, outputs or agents' names.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from orchestrator.errors import SettingsError
from orchestrator.eventfeed import HostEvent

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace as otel
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # the extra `otel` is not installed
    otel = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Span(Protocol):
    """The part of an OpenTelemetry span that Cellblock uses."""

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


def trace_headers() -> dict[str, str]:
    """Return the W3C headers that name the current span; none without OpenTelemetry, or outside of a span."""
    headers: dict[str, str] = {}
    if otel is not None:
        TraceContextTextMapPropagator().inject(headers)
    return headers


@contextlib.contextmanager
def request_span(headers: Mapping[str, str], **attributes: str) -> Iterator[Span]:
    """Open a span for a request, and make it the current one: what the request does is below it.

    Args:
        headers: may have "traceparent" and "tracestate": the caller's span, which becomes the parent.
    """
    if otel is None:
        yield _NoSpan()
        return
    parent = TraceContextTextMapPropagator().extract(headers, context=otel_context.Context())
    span = otel.get_tracer("cellblock").start_span("cellblock.request", parent, kind=otel.SpanKind.SERVER)
    for key, value in attributes.items():
        span.set_attribute(f"cellblock.{key}", value)
    token = otel_context.attach(otel.set_span_in_context(span))
    try:
        yield span
    finally:
        otel_context.detach(token)
        span.end()


@dataclass(slots=True)
class Phases:
    """Measures the phases of one kernel's start.

    Attributes:
        observe: takes a phase's name and its seconds.
        current: the phase that began last.
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
    """One manager's metrics and spans. Events come from the feed; measurements have methods of their own.

    Attributes:
        registry: pass it to ``prometheus_client`` if your program has a metrics endpoint of its own.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._server: Any = None
        self._tracer = None if otel is None else otel.get_tracer("cellblock")
        counter = partial(Counter, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=_SECONDS)
        self._kernels = Gauge("cellblock_kernels", "Kernels by state.", ["state"], registry=registry)
        self._waiting = Gauge("cellblock_waiting_callers", "Callers that wait for a kernel.", registry=registry)
        self._lease = seconds("cellblock_lease_wait_seconds", "From a request for a kernel to its lease.")
        self._leases = counter(
            "cellblock_leases", "Kernels leased, by whether one was ready when the caller asked.", ["ready"]
        )
        for ready in ("yes", "no"):  # both series exist from the start, so that a rate can be computed
            self._leases.labels(ready)
        self._refused = counter(
            "cellblock_leases_refused", "Callers that got no kernel, by the scarce resource.", ["reason"]
        )
        self._replaced = counter(
            "cellblock_ready_kernels_replaced", "Kernels that ended before anyone leased them, by reason.", ["reason"]
        )
        self._start = seconds(
            "cellblock_kernel_start_seconds", "A kernel's cold start, by phase.", ["phase", "runtime"]
        )
        self._failed = counter("cellblock_kernel_start_failures", "Kernels that did not start.")
        self._cells = counter("cellblock_cells", "Cells that ended.", ["outcome", "runtime"])
        self._duration = seconds("cellblock_cell_duration_seconds", "A cell, from sending to its result.", ["runtime"])
        self._ends = counter("cellblock_kernel_ends", "Kernels of sessions that ended.", ["reason"])
        self._held_back = counter(
            "cellblock_agents_held_back", "Kernels after whose death the agent's next one has to wait."
        )
        self._output = counter("cellblock_output_bytes", "Output of cells.")
        self._dropped = counter("cellblock_output_dropped_bytes", "Output of cells that was left out.")

    def watch_pool(self, counts: Callable[[], dict[str, int]]) -> None:
        """Read the pool's counts whenever the metrics are read."""
        for state in ("ready", "leased", "starting", "ending"):
            self._kernels.labels(state).set_function(lambda state=state: counts()[state])  # type: ignore[misc]
        self._waiting.set_function(lambda: counts()["waiting"])

    def serve(self, address: str, port: int) -> int:
        """Serve the metrics on a port of this host, in a thread.

        Returns:
            The port: a free one if ``port`` is 0.

        Raises:
            SettingsError: the port is not free, or needs more rights.
        """
        try:
            self._server, _ = start_http_server(port, address, self.registry)
            return int(self._server.server_port)
        except OSError as error:
            raise SettingsError(
                f"metrics cannot be served on {address}:{port}: {error.strerror or error}.",
                remedy="Set CELLBLOCK_METRICS_PORT to a free port, or to 0 for none.",
            ) from error

    def serve_if_free(self, address: str, port: int) -> int | None:
        """Do what ``serve`` does; but if the port is in use, log a warning, serve nothing and return None.

        The port is in use when another worker of the same program serves its metrics there.

        Raises:
            SettingsError: the address is not one of this host, or the port needs more rights.
        """
        try:
            return self.serve(address, port)
        except SettingsError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
                raise
            _log.warning(
                "this process serves no metrics: %s:%d is in use, perhaps by another worker. Set "
                "CELLBLOCK_METRICS_PORT to a port of its own for each process that you want to watch.",
                address,
                port,
            )
            return None

    def close(self) -> None:
        """Stop the thread of ``serve``, if there is one. Blocks up to half a second."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def kernel_phases(self, runtime: str) -> Phases:
        """Return a clock for the phases of one kernel's start."""
        return Phases(lambda phase, seconds: self._start.labels(phase, runtime).observe(seconds))

    def receive(self, event: HostEvent) -> None:
        """Count an event. ``EventFeed`` calls it."""
        fields = event.fields
        match event.name:
            case "kernel.failed":
                self._failed.inc()
            case "session.asleep" | "session.ended":
                self._ends.labels(fields["reason"]).inc()
            case "session.held_back":
                self._held_back.inc()
            case "cell.ended":
                self._count_cell(fields)

    def leased(self, seconds: float) -> None:
        """Observe the time from a caller's request to the lease of its kernel."""
        self._lease.observe(seconds)

    def handed_out(self, *, ready: bool) -> None:
        """Count a leased kernel.

        Args:
            ready: whether a kernel was ready when the caller asked.
        """
        self._leases.labels("yes" if ready else "no").inc()

    def refused(self, reason: str) -> None:
        """Count a caller that got no kernel, by the scarce resource."""
        self._refused.labels(reason).inc()

    def replaced(self, reason: str) -> None:
        """Count a kernel that ended before anyone leased it."""
        self._replaced.labels(reason).inc()

    @contextlib.contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[Span]:
        """Open a span for a block, as a child of the caller's current span.

        The span is not made the current one: an async generator may be resumed in another context, in which a current
        span cannot be detached.
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

    def _count_cell(self, fields: Mapping[str, Any]) -> None:
        runtime = fields["runtime"]
        self._cells.labels(fields["outcome"], runtime).inc()
        self._duration.labels(runtime).observe(fields["duration_s"])
        self._output.inc(fields["evidence"]["output_bytes"])
        if fields["truncated"] is not None:
            self._dropped.inc(fields["truncated"]["dropped_bytes"])
