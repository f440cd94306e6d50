"""The feed: one event, published once, reaches the audit log, the metrics and the program's log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from orchestrator.eventfeed import EventFeed, HostEvent
from orchestrator.kernel.fakecell import FakeCell, printed
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.logs import log_event
from orchestrator.policy.policy import Policy
from orchestrator.policy.sections import Audit
from orchestrator.sessions.session import KernelSession
from orchestrator.store.audit import AuditLog
from orchestrator.telemetry import Telemetry


def test_every_subscriber_gets_every_event_in_order() -> None:
    """With its time, and in the thread of the publisher."""
    seen: list[tuple[str, HostEvent]] = []
    feed = EventFeed(lambda event: seen.append(("first", event)), lambda event: seen.append(("second", event)))
    feed.publish("kernel.started", kernel="k1")
    feed.publish("kernel.ended")
    assert [(who, event.name) for who, event in seen] == [
        ("first", "kernel.started"),
        ("second", "kernel.started"),
        ("first", "kernel.ended"),
        ("second", "kernel.ended"),
    ]
    assert seen[0][1] is seen[1][1]
    assert seen[0][1].fields == {"kernel": "k1"}
    assert seen[0][1].at.utcoffset() is not None


def test_text_is_cut_and_code_is_apart() -> None:
    """A field has at most 500 characters; code is whole, and in no field."""
    seen: list[HostEvent] = []
    EventFeed(seen.append).publish("cell.started", reason="r" * 10_000, limits={"cpu": 1}, code="c" * 10_000)
    (event,) = seen
    assert event.fields == {"reason": "r" * 500, "limits": {"cpu": 1}}
    assert event.code == "c" * 10_000


async def test_a_sessions_events_are_in_log_metrics_and_audit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The events as a session publishes them have all that the subscribers read."""
    kernel = FakeKernel(default=FakeCell([printed("hello")]))
    session = KernelSession.of("agent", kernel, Policy(audit=Audit(code="full")))
    async for _event in session.run("secret = 1", KernelResourceLimits()):
        pass
    await session.end("end_session")
    audit, telemetry = AuditLog(tmp_path / "audit.jsonl"), Telemetry()
    feed = EventFeed(audit.receive, telemetry.receive, log_event)
    with caplog.at_level(logging.INFO, "orchestrator.events"):
        for name, details in kernel.notes:
            feed.publish(name, kernel=kernel.kernel_id, **details)
    audit.close()
    entries = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    names = ["cell.started", "cell.ended", "session.ended"]
    assert [entry["event"] for entry in entries] == names
    assert {(entry["agent"], entry["session"]) for entry in entries} == {("agent", session.session_id)}
    assert entries[0]["code"] == "secret = 1"
    assert [record.getMessage() for record in caplog.records] == names
    assert not any("secret" in str(vars(record)) for record in caplog.records)
    text = generate_latest(telemetry.registry).decode()
    for line in (
        'cellblock_cells_total{outcome="ok",runtime="runc"} 1.0',
        'cellblock_cell_duration_seconds_count{runtime="runc"} 1.0',
        'cellblock_kernel_ends_total{reason="end_session"} 1.0',
    ):
        assert f"\n{line}\n" in text
    assert f"\ncellblock_output_bytes_total {float(entries[1]['evidence']['output_bytes'])}\n" in text
