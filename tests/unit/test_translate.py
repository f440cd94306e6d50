"""Messages of hostile kernels, translated or dropped, never believed and never fatal."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.kernel.translate import Reply, clean, count, text, to_event
from orchestrator.limits import OutputLimits
from orchestrator.output.collector import OutputCollector
from orchestrator.output.events import DisplayData, ErrorOutput, StreamOutput

KINDS = ["stream", "display_data", "update_display_data", "execute_result", "error", "clear_output", "status", "x"]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
keys = st.sampled_from(
    ["name", "text", "data", "metadata", "transient", "execution_count", "ename", "evalue", "traceback", "wait"]
)


# The first run on a machine builds a table of all characters, which takes seconds.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(KINDS), st.dictionaries(keys, anything))
def test_any_content_gives_an_event_that_can_be_encoded_or_none(kind: str, content: dict[str, Any]) -> None:
    """Whatever a kernel puts into a message, the outputs are JSON in UTF-8."""
    event = to_event(kind, content)
    if event is None:
        return
    collector = OutputCollector(OutputLimits(10**6))
    collector.add(event)
    json.dumps([output.as_dict() for output in collector.outputs()], allow_nan=False, ensure_ascii=False).encode()


def test_deep_nesting_is_cut() -> None:
    """A thousand levels, which JSON's parser takes, do not reach the recursion limit later on."""
    deep: Any = "bottom"
    for _ in range(900):
        deep = [deep]
    event = to_event("display_data", {"data": {"application/json": deep}})
    assert isinstance(event, DisplayData)
    json.dumps(event.as_dict())


@pytest.mark.parametrize(("value", "expected"), [("a\ud800b", "a?b"), ("é", "é"), (5, ""), (None, "")])
def test_text_is_always_encodable(value: object, expected: str) -> None:
    """Lone surrogates become question marks, anything that is no text becomes empty."""
    assert text(value) == expected


def test_nan_and_infinity_are_nothing() -> None:
    """JSON has no such numbers; strict encoders refuse them."""
    assert clean([math.nan, math.inf, 1.5]) == [None, None, 1.5]


@pytest.mark.parametrize("value", [True, -1, 2**60, "1", 1.0, None])
def test_an_execution_count_is_a_small_natural_number(value: object) -> None:
    """Anything else is no count."""
    assert count(value) is None
    assert count(3) == 3


def test_ordinary_messages() -> None:
    """The fields of well-formed messages arrive."""
    assert to_event("stream", {"name": "stderr", "text": "x"}) == StreamOutput("stderr", "x")
    assert to_event("stream", {"name": "stdin", "text": "x"}) is None
    assert to_event("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}) == ErrorOutput("E", "v", ("t",))


def test_a_reply_s_warnings_are_few_short_lines() -> None:
    """Everything else in their place is dropped."""
    claimed = ["one", "two\nlines\x0b", 3, "", "x" * 10_000, *["more"] * 100]
    warnings = Reply.of({"status": "ok", "warnings": claimed}).warnings
    assert warnings == ("one", "two lines", "x" * 300, "more", "more", "more")
    assert Reply.of({"status": "ok", "warnings": "text"}).warnings == ()


def test_a_reply_s_warnings_are_printable() -> None:
    """A terminal or a log that shows them obeys nothing in them."""
    (warning,) = Reply.of({"status": "ok", "warnings": ["a\x1b]0;title\x07\u202eb\x00"]}).warnings
    assert warning == "a\\x1b]0;title\\x07\\u202eb\\x00"
