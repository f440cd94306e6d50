"""Metrics and spans by their names; logs that have every event, and no code."""

from __future__ import annotations

import io
import json
import logging
import urllib.request
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest

from orchestrator.errors import SettingsError
from orchestrator.eventfeed import EventFeed
from orchestrator.logs import JsonFormatter, TextFormatter, log_event
from orchestrator.telemetry import Telemetry

ENDED: dict[str, Any] = {
    "outcome": "oom", "runtime": "runsc", "duration_s": 0.3,
    "evidence": {"output_bytes": 12}, "truncated": {"dropped_bytes": 7},
}  # fmt: skip


def test_what_happened_is_in_the_metrics() -> None:
    """Each event and each measurement shows under its own name, with Prometheus' units and suffixes."""
    telemetry = Telemetry()
    telemetry.watch_pool(lambda: {"ready": 2, "leased": 3, "starting": 1, "ending": 0, "waiting": 4, "max": 10})
    telemetry.leased(0.02)
    telemetry.handed_out(ready=True)
    telemetry.refused("memory")
    telemetry.replaced("age")
    with telemetry.kernel_phases("runc").phase("container"):
        pass
    feed = EventFeed(telemetry.receive)
    feed.publish("cell.ended", **ENDED)
    feed.publish("cell.ended", **ENDED | {"truncated": None})
    feed.publish("session.ended", reason="oom")
    feed.publish("session.asleep", reason="idle")
    feed.publish("session.started", reason="not counted")
    feed.publish("kernel.failed", reason="no room")
    text = generate_latest(telemetry.registry).decode()
    for line in (
        'cellblock_kernels{state="leased"} 3.0',
        "cellblock_waiting_callers 4.0",
        'cellblock_cells_total{outcome="oom",runtime="runsc"} 2.0',
        'cellblock_cell_duration_seconds_count{runtime="runsc"} 2.0',
        "cellblock_lease_wait_seconds_count 1.0",
        'cellblock_leases_total{ready="yes"} 1.0',
        'cellblock_leases_total{ready="no"} 0.0',
        'cellblock_leases_refused_total{reason="memory"} 1.0',
        'cellblock_ready_kernels_replaced_total{reason="age"} 1.0',
        'cellblock_kernel_ends_total{reason="oom"} 1.0',
        'cellblock_kernel_ends_total{reason="idle"} 1.0',
        "cellblock_kernel_start_failures_total 1.0",
        'cellblock_kernel_start_seconds_count{phase="container",runtime="runc"} 1.0',
        "cellblock_output_bytes_total 24.0",
        "cellblock_output_dropped_bytes_total 7.0",
    ):
        assert f"\n{line}\n" in text
    assert "not counted" not in text


def test_prometheus_is_answered_on_a_port_of_its_own() -> None:
    """The endpoint answers while it is open; a port that is in use is an error whose remedy names the setting."""
    telemetry = Telemetry()
    port = telemetry.serve("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"cellblock_lease_wait_seconds" in answer.read()
        with pytest.raises(SettingsError, match="CELLBLOCK_METRICS_PORT"):
            Telemetry().serve("127.0.0.1", port)
    finally:
        telemetry.close()
    telemetry.close()


def test_spans_go_wherever_the_program_sends_them() -> None:
    """A span has its attributes and its parent, and says which error it ended with."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    telemetry = Telemetry()
    with trace.get_tracer("caller").start_as_current_span("outer"):
        with telemetry.span("execute_cell", runtime="runc") as span:
            span.set_attribute("cellblock.outcome", "ok")
        with pytest.raises(KeyError), telemetry.span("acquire_kernel"):
            raise KeyError
    cell, lease, outer = exporter.get_finished_spans()
    assert (cell.name, dict(cell.attributes or {})) == (
        "cellblock.execute_cell",
        {"cellblock.runtime": "runc", "cellblock.outcome": "ok"},
    )
    assert (lease.attributes or {})["error.type"] == "KeyError"
    assert (cell.status.is_ok, lease.status.is_ok) == (True, False)
    assert cell.parent is not None
    assert outer.context is not None
    assert cell.parent.span_id == outer.context.span_id


@pytest.mark.parametrize("form", [JsonFormatter(), TextFormatter("%(levelname)s %(name)s: %(message)s")])
def test_a_log_line_has_its_fields(form: logging.Formatter) -> None:
    """One line each, whatever the fields hold."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    logger = logging.getLogger("orchestrator.test")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        logger.info("cell.ended", extra={"fields": {"outcome": "ok", "path": "a\nb"}})
    finally:
        logger.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()
    if isinstance(form, JsonFormatter):
        assert json.loads(line) | {"event": "cell.ended", "outcome": "ok", "path": "a\nb"} == json.loads(line)
    else:
        assert line == "INFO orchestrator.test: cell.ended outcome='ok' path='a\\nb'"


def test_an_event_is_logged_without_its_code(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, under its name, with its fields; and not at all where that level is off."""
    with caplog.at_level(logging.INFO, "orchestrator"):
        EventFeed(log_event).publish("cell.started", kernel="k1", code_bytes=13, code="print('hidden')")
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["event"], line["kernel"], line["code_bytes"]) == ("info", "cell.started", "k1", 13)
    assert "hidden" not in json.dumps(line)
    with caplog.at_level(logging.WARNING, "orchestrator"):
        EventFeed(log_event).publish("cell.started", kernel="k2")
    assert len(caplog.records) == 1
