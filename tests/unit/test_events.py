"""Every event's dict form reads back as the same event, and a malformed form names its key."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.outcome import CellOutcome, Outcome
from orchestrator.output import events
from orchestrator.output.events import (
    CellFinished,
    ClearOutput,
    CommMessage,
    DisplayData,
    ErrorOutput,
    Event,
    Evidence,
    ExecuteResult,
    ExecutionResult,
    InputRequest,
    Output,
    OutputDropped,
    StreamOutput,
    Truncation,
    UpdateDisplayData,
    event_from_dict,
    output_from_dict,
)

TEXT = st.text(max_size=20)
COUNTS = st.integers(0, 2**70)
SECONDS = st.floats(0, allow_infinity=False, allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
BUNDLES = st.dictionaries(TEXT, VALUES, max_size=3)
ERRORS = st.builds(ErrorOutput, TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple))
OUTPUTS: st.SearchStrategy[Output] = st.one_of(
    st.builds(StreamOutput, st.sampled_from(["stdout", "stderr"]), TEXT),
    st.builds(DisplayData, BUNDLES, BUNDLES, st.none() | TEXT),
    st.builds(ExecuteResult, BUNDLES, BUNDLES, st.none() | COUNTS, st.none() | TEXT),
    ERRORS,
)
TRUNCATIONS = st.builds(Truncation, TEXT, COUNTS, COUNTS, COUNTS)
EVIDENCE = st.builds(
    Evidence, st.none() | st.integers(), st.none() | TEXT, COUNTS, COUNTS, st.none() | SECONDS, COUNTS, COUNTS,
    st.none() | SECONDS, st.none() | SECONDS,
)  # fmt: skip
RESULTS = st.builds(
    ExecutionResult,
    status=st.sampled_from(["ok", "error"]),
    outcome=st.sampled_from(get_args(CellOutcome)),
    outputs=st.lists(OUTPUTS, max_size=4).map(tuple),
    error=st.none() | ERRORS,
    msg_id=TEXT,
    execution_count=st.none() | COUNTS,
    duration_s=SECONDS,
    truncated=st.none() | TRUNCATIONS,
    kernel_state=st.sampled_from(["idle", "dead"]),
    runtime=TEXT,
    mime_dropped=st.lists(TEXT, max_size=3).map(tuple),
    evidence=EVIDENCE,
    warnings=st.lists(TEXT, max_size=3).map(tuple),
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    OUTPUTS,
    st.builds(UpdateDisplayData, TEXT, BUNDLES, BUNDLES),
    st.builds(ClearOutput, st.booleans()),
    st.builds(CommMessage, TEXT, TEXT, TEXT, BUNDLES, BUNDLES, st.lists(st.binary(max_size=9), max_size=2).map(tuple)),
    st.builds(OutputDropped, COUNTS, COUNTS),
    st.builds(CellFinished, RESULTS),
)
OTHERS = st.one_of(st.builds(InputRequest, TEXT, st.booleans()), TRUNCATIONS, EVIDENCE, RESULTS)
RESULT = ExecutionResult(
    status="error", outcome=Outcome.OOM,
    outputs=(StreamOutput("stdout", "x"), ExecuteResult({"text/plain": "1"}, {}, 1)),
    error=ErrorOutput("E", "v", ("t",)), msg_id="m", execution_count=1, duration_s=0.5,
    truncated=Truncation("output.messages", 10, 5, 2), kernel_state="dead", runtime="runc", mime_dropped=("text/html",),
    evidence=Evidence(exit_code=137, signal="SIGKILL"), warnings=("memory",),
)  # fmt: skip


def carried(value: Any) -> Any:
    """Return a dict form as it comes out of JSON."""
    return json.loads(json.dumps(value.as_dict(), allow_nan=False))


@given(EVENTS)
def test_an_event_reads_back_from_json(event: Event) -> None:
    """Each type's own ``from_dict`` returns an equal event, and so does the one for any event."""
    assert type(event).from_dict(carried(event)) == event
    assert event_from_dict(carried(event)) == event


@given(OUTPUTS)
def test_an_output_reads_back_from_json(output: Output) -> None:
    """``output_from_dict`` returns an equal output of the same type."""
    assert output_from_dict(carried(output)) == output


@given(OTHERS)
def test_what_is_no_event_reads_back_from_json(value: InputRequest | Truncation | Evidence | ExecutionResult) -> None:
    """Requests for input, results and their parts return equal to what they were."""
    assert type(value).from_dict(carried(value)) == value


def test_every_class_of_the_module_has_both_forms() -> None:
    """No event, result or part of one lacks ``as_dict`` or ``from_dict``; the strategies above have each of them."""
    classes = {cls for name in events.__all__ if isinstance(cls := getattr(events, name), type)}
    assert classes == {*get_args(Event), InputRequest, Truncation, Evidence, ExecutionResult}
    assert all(hasattr(cls, "as_dict") and hasattr(cls, "from_dict") for cls in classes)


def test_an_outcome_comes_back_as_the_enums_member() -> None:
    """A result from a dict compares with the enum and with the string."""
    found = ExecutionResult.from_dict(carried(RESULT))
    assert found.outcome == "oom"
    assert found.outcome is Outcome.OOM


def without(form: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in form.items() if name != key}


DERIVED = {"output_type", "traceback_text", "stdout", "stderr", "result", "interrupted"}
NULLABLE = {
    "display_id", "execution_count", "exit_code", "signal", "stopped_after_s", "cpu_s", "peak_memory_mb", "error",
    "truncated",
}  # fmt: skip
EXAMPLES: list[Any] = [
    *RESULT.outputs, RESULT.error, RESULT.truncated, RESULT.evidence, RESULT, CellFinished(RESULT),
    DisplayData({}, {}, "d"), UpdateDisplayData("d", {}, {}), ClearOutput(True), CommMessage("comm_msg", "c", "t", {}),
    OutputDropped(1, 1), InputRequest("?", False),
]  # fmt: skip
FIELDS = [
    (example, key)
    for example in EXAMPLES
    for key in example.as_dict()
    if (key not in DERIVED and not (isinstance(example, CellFinished) and key == "result")) or key == "type"
]


class Alien:
    """A value that JSON has no type for."""

    def __repr__(self) -> str:
        return "\x1b[31mhostile"


LATER = ("updates", "changed_files", "tool_calls", "tool_s")  # fields that results of earlier versions lack


@pytest.mark.parametrize(("example", "key"), FIELDS, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_a_wrong_or_missing_field_is_named(example: Any, key: str) -> None:
    """Whatever is wrong with a field, the error is a ValueError with its key, and without its value."""
    form = example.as_dict()
    read: Callable[[Any], Any] = type(example).from_dict
    for broken in ({**form, key: Alien()}, {**form, key: b"hostile"}, {**form, key: [{"hostile": Alien()}]}):
        with pytest.raises(ValueError, match=key) as caught:
            read(broken)
        assert "hostile" not in str(caught.value)
    if key not in NULLABLE and not (isinstance(example, ErrorOutput) and key == "type"):
        for missing in (without(form, key), {**form, key: None})[key in LATER :]:
            with pytest.raises(ValueError, match=key):
                read(missing)


def test_a_result_of_an_earlier_version_can_be_read() -> None:
    """It lacks the fields that came later; they are empty."""
    form = next(example.as_dict() for example, _ in FIELDS if isinstance(example, ExecutionResult))
    assert ExecutionResult.from_dict(without(without(form, "updates"), "changed_files")).updates == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("execution_count", True),  # Python counts it as a whole number
        ("execution_count", 1.0),
        ("duration_s", float("nan")),
        ("duration_s", float("inf")),
        ("duration_s", 10**400),
        ("duration_s", "1"),
        ("outcome", "idle"),  # an end of sessions only
        ("outcome", ["ok"]),
        ("kernel_state", "asleep"),
        ("outputs", {"type": "stream"}),
        ("outputs", "stream"),
        ("warnings", "memory"),
        ("warnings", [1]),
    ],
)
def test_a_value_that_only_looks_right_is_refused(key: str, value: object) -> None:
    """Booleans are no numbers, numbers are finite, and text is no list."""
    with pytest.raises(ValueError, match=key):
        ExecutionResult.from_dict({**RESULT.as_dict(), key: value})


def test_an_error_deep_inside_says_where() -> None:
    """The path to the field is in the message."""
    form = CellFinished(RESULT).as_dict()
    form["result"]["outputs"][1]["execution_count"] = "one"
    with pytest.raises(ValueError, match=r"^result: outputs\[1\]: 'execution_count' must be a whole number, not str$"):
        event_from_dict(form)


@pytest.mark.parametrize("form", [None, [], "stream", 1, {}, {"type": None}, {"type": "cell"}, {"type": ["stream"]}])
def test_what_is_no_event_is_a_value_error(form: Any) -> None:
    """A form that is no object, or of no known type, is refused."""
    with pytest.raises(ValueError, match=r"object|'type'"):
        event_from_dict(form)


@given(st.sampled_from(EXAMPLES), st.dictionaries(TEXT, VALUES), st.data())
def test_no_hostile_form_raises_anything_else(example: Any, more: dict[str, Any], data: st.DataObject) -> None:
    """Any JSON in place of any field is read, or is a ValueError."""
    form = {**example.as_dict(), **more}
    form[data.draw(st.sampled_from(sorted(form)))] = data.draw(VALUES)
    with contextlib.suppress(ValueError):
        assert isinstance(type(example).from_dict(form), type(example))


def test_a_bundle_with_keys_that_are_no_text_is_refused() -> None:
    """Mime types are strings."""
    with pytest.raises(ValueError, match="'data' must be an object"):
        DisplayData.from_dict({**DisplayData({}).as_dict(), "data": {1: "x"}})


def test_a_display_without_an_id_has_nbformats_form() -> None:
    """Only a display with an id has a field that nbformat does not know."""
    assert "display_id" not in DisplayData({}).as_dict()
    assert DisplayData({}, {}, "d").as_dict()["display_id"] == "d"
