"""Folding events into outputs, and the result's two forms."""

from __future__ import annotations

import json

from orchestrator.limits import OutputLimits
from orchestrator.outcome import Outcome
from orchestrator.output.collector import OutputCollector
from orchestrator.output.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    ExecuteResult,
    ExecutionResult,
    OutputEvent,
    StreamOutput,
    Truncation,
    UpdateDisplayData,
)


def collect(*events: OutputEvent) -> list[dict[str, object]]:
    collector = OutputCollector(OutputLimits(10**6))
    for event in events:
        collector.add(event)
    return [output.as_dict() for output in collector.outputs()]


def test_neighbouring_pieces_of_one_stream_are_one_output() -> None:
    """Pieces join; the other stream, or a display, parts them."""
    outputs = collect(
        StreamOutput("stdout", "a"),
        StreamOutput("stdout", "b"),
        StreamOutput("stderr", "c"),
        StreamOutput("stdout", "d"),
    )
    assert [(output["name"], output["text"]) for output in outputs] == [
        ("stdout", "ab"), ("stderr", "c"), ("stdout", "d")
    ]  # fmt: skip


def test_a_display_is_updated_wherever_it_was_shown() -> None:
    """Every display of the id changes; others do not; an unknown id changes nothing."""
    outputs = collect(
        DisplayData({"text/plain": "1"}, {}, "x"), DisplayData({"text/plain": "2"}, {}, "y"),
        DisplayData({"text/plain": "3"}, {}, "x"), UpdateDisplayData("x", {"text/plain": "new"}),
        UpdateDisplayData("z", {"text/plain": "lost"}),
    )  # fmt: skip
    assert [output["data"] for output in outputs] == [
        {"text/plain": "new"}, {"text/plain": "2"}, {"text/plain": "new"}
    ]  # fmt: skip


def test_clear_output_waits_when_asked_to() -> None:
    """With ``wait`` the old outputs stay until the next one; without, they go at once."""
    assert collect(StreamOutput("stdout", "a"), ClearOutput(wait=False)) == []
    assert len(collect(StreamOutput("stdout", "a"), ClearOutput(wait=True))) == 1
    assert [o["text"] for o in collect(StreamOutput("stdout", "a"), ClearOutput(wait=True), StreamOutput("stdout", "b"))] == ["b"]  # fmt: skip  # noqa: E501


def test_the_dict_form_has_the_references_keys_and_is_json() -> None:
    """status, outputs, error and msg_id are there, and the typed result's fields beside them."""
    result = ExecutionResult(
        status="error", outcome=Outcome.ERROR,
        outputs=(StreamOutput("stdout", "x"), ExecuteResult({"text/plain": "0"}, {}, 3),
                 ExecuteResult({"text/plain": "1"}, {}, 3), ErrorOutput("E", "v")),
        error=ErrorOutput("E", "v", ("\x1b[31mE\x1b[0m: v",)), msg_id="m", execution_count=3, duration_s=0.1,
        truncated=Truncation("max_output_size_mb", 10, 5, 2), kernel_state="idle", runtime="runc",
    )  # fmt: skip
    form = json.loads(json.dumps(result.as_dict()))
    assert form["status"] == "error"
    assert [output["type"] for output in form["outputs"]] == ["stream", "execute_result", "execute_result", "error"]
    assert form["error"]["traceback_text"] == "E: v"
    assert form["msg_id"] == "m"
    assert form["result"] == "1"  # the last one's, where a cell shows several
    assert form["truncated"] == {
        "reason": "max_output_size_mb",
        "limit_bytes": 10,
        "dropped_bytes": 5,
        "dropped_messages": 2,
    }
