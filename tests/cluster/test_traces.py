"""One trace, from a caller's own span through the router and a server to the cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.cluster.clustermanager import ClusterKernelManager
from tests.cluster.fakedirectory import FakeDirectory, record
from tests.server.conftest import serving

SECRET = "print('agents keep secrets')"  # noqa: S105 - code


def spans(file: Path, name: str) -> list[dict[str, Any]]:
    """Return the server's spans of a name, once it has ended."""
    return [span for span in map(json.loads, file.read_text().splitlines()) if span["name"] == name]


async def test_a_trace_goes_from_the_caller_to_the_cell(tmp_path: Path) -> None:
    """Caller, request and cell have one trace id; each is the child of the one before. No span has code.

    A cell that is streamed, and one that outlives its request, are in their callers' traces too. A caller without a
    trace, or with a malformed one, begins one at the server.
    """
    exporter, provider, traces = InMemorySpanExporter(), TracerProvider(), tmp_path / "traces"
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("caller")
    traced = serving(tmp_path, module="tests.cluster.tracedserver", TRACES=str(traces))
    with traced as server:
        directory = FakeDirectory(tmp_path)
        directory.add(record("n1", server.url), server.process.pid)
        async with ClusterKernelManager(directory=directory) as manager:
            with tracer.start_as_current_span("acquires"):
                async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
                    pass
            with tracer.start_as_current_span("executes"):
                await manager.execute(session, SECRET)
            with tracer.start_as_current_span("streams"):
                events = [event async for event in manager.stream_code(session, SECRET)]
            with tracer.start_as_current_span("starts"):
                await (await manager.start_code(session, SECRET)).wait()
            await manager.execute(session, "1")
            async with httpx.AsyncClient(headers={"traceparent": "00-nonsense"}, timeout=60) as http:
                await http.post(f"{server.url}/v1/sessions/{session.session_id}/execute", json={"code": "2"})
        directory.close()
    cells = spans(traces, "cellblock.execute_cell")
    requests = {span["context"]["span_id"]: span for span in spans(traces, "cellblock.request")}
    assert events
    outer = {f"0x{span.context.span_id:016x}": span for span in exporter.get_finished_spans()}
    callers = []
    for cell in cells[:3]:
        request = requests[cell["parent_id"]]
        caller = outer[request["parent_id"]]
        callers.append(caller.name)
        trace_id = f"0x{caller.context.trace_id:032x}"
        assert cell["context"]["trace_id"] == request["context"]["trace_id"] == trace_id
        assert request["kind"] == "SpanKind.SERVER"
        assert request["attributes"]["cellblock.method"] == "POST"
        assert request["attributes"]["cellblock.status"] in (200, 201)
    assert callers == ["executes", "streams", "starts"]
    for cell in cells[3:]:
        assert requests[cell["parent_id"]]["parent_id"] is None
    assert len({cell["context"]["trace_id"] for cell in cells}) == 5
    names = {json.loads(line)["name"] for line in traces.read_text().splitlines()}
    assert all(name.startswith("cellblock.") for name in names), names
    assert "secrets" not in traces.read_text()
