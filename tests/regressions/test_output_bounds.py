"""What one cell puts out costs bounded memory and time, whatever it clears, replaces and names."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from orchestrator.limits import MIB, OutputLimits
from orchestrator.output.cellfacts import CellFacts
from orchestrator.output.collector import OutputCollector
from orchestrator.output.events import (
    ClearOutput,
    CommMessage,
    DisplayData,
    ErrorOutput,
    OutputEvent,
    StreamOutput,
    UpdateDisplayData,
)
from orchestrator.output.judgement import judge
from orchestrator.output.sizes import cost
from orchestrator.sessions.notebook import notebook_outputs


def cleared(wait: bool) -> Iterator[OutputEvent]:
    for _ in range(4000):
        yield StreamOutput("stdout", "x" * 10_000)
        yield ClearOutput(wait)


def clears() -> Iterator[OutputEvent]:
    for _ in range(200_000):
        yield ClearOutput(False)


def updates(data: str, metadata: str) -> Iterator[OutputEvent]:
    yield DisplayData({"text/plain": "x"}, {}, "d")
    for number in range(2000):
        yield UpdateDisplayData("d", {"text/plain": f"{number} {data}"}, {"x": metadata})


def returns() -> Iterator[OutputEvent]:
    for _ in range(4000):
        yield StreamOutput("stderr", "\r" + "x" * 10_000)


def comms() -> Iterator[OutputEvent]:
    for _ in range(400):
        yield CommMessage("comm_msg", "c", "t", {"x": "x" * 100_000})


def foreign_updates() -> Iterator[OutputEvent]:
    for number in range(2000):
        yield UpdateDisplayData(f"other-{number}", {"text/plain": "x" * 20_000})


@pytest.mark.parametrize(
    "events",
    [
        lambda: cleared(False),
        lambda: cleared(True),
        clears,
        lambda: updates("x" * 20_000, ""),
        lambda: updates("", "x" * 20_000),
        returns,
        comms,
        foreign_updates,
    ],
    ids=["clear", "clear and wait", "clear alone", "updates", "metadata", "returns", "comms", "foreign updates"],
)
def test_a_cell_has_a_total_that_nothing_resets(events: Callable[[], Iterator[OutputEvent]]) -> None:
    """Of 40 MB under a limit of 1 MB the consumer gets 15 at most, and a policy that stops the cell is triggered."""
    collector = OutputCollector(OutputLimits(MIB))
    streamed = sum(cost(shown) for event in events() if (shown := collector.add(event)) is not None)
    streamed += sum(map(cost, collector.finish()))
    assert streamed < 16 * MIB
    assert collector.is_past_limit


def test_the_newest_of_what_is_cleared_stays_past_the_total() -> None:
    """A progress display that redraws itself for long still ends with its last picture."""
    collector = OutputCollector(OutputLimits(MIB))
    for number in range(4000):
        collector.add(ClearOutput(True))
        collector.add(StreamOutput("stdout", f"{number} " + "x" * 10_000))
    list(collector.finish())
    last = collector.outputs()[-1]
    assert isinstance(last, StreamOutput)
    assert "3999 xxx" in last.text


def test_ids_of_displays_that_are_left_out_take_no_memory() -> None:
    """40,000 displays with ids of 255 characters hold less than 3 MB; 159,000 held 188 MB before."""
    collector = OutputCollector(OutputLimits(MIB))
    tracemalloc.start()
    for number in range(40_000):
        collector.add(DisplayData({"text/plain": "x"}, {}, f"{number:0255d}"))
        if number % 50 == 0:
            collector.add(UpdateDisplayData(f"{number:0255d}", {"text/plain": "y"}))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3 * MIB
    list(collector.finish())
    assert len(collector.outputs()) == 201


def test_an_update_never_reaches_a_later_display_of_a_forgotten_id() -> None:
    """A display that was left out is gone with its update; one that is shown again begins anew."""
    collector = OutputCollector(OutputLimits(MIB, displays=2))
    collector.add(DisplayData({"text/plain": "old"}, {}, "d"))
    collector.add(UpdateDisplayData("d", {"text/plain": "updated"}))
    collector.add(DisplayData({"text/plain": "new"}, {}, "d"))
    list(collector.finish())
    assert [dict(output.data) for output in collector.outputs() if isinstance(output, DisplayData)] == [
        {"text/plain": "updated"},
        {"text/plain": "new"},
    ]


def stalls(*steps: Callable[[], object]) -> float:
    """Return the seconds of the longest step."""
    longest = 0.0
    for step in steps:
        started = time.thread_time()
        step()
        longest = max(longest, time.thread_time() - started)
    return longest


def test_tiny_outputs_in_turn_stall_nobody() -> None:
    """52,000 outputs of both streams in turn: the result, its dict and the notebook's form take 100 ms at most each."""
    best = 9.0
    for _ in range(3):
        collector = OutputCollector(OutputLimits(10 * MIB))
        for number in range(52_000):
            collector.add(StreamOutput("stdout" if number % 2 else "stderr", "x"))
        started = time.thread_time()
        list(collector.finish())
        outputs = collector.outputs()
        ended = time.thread_time() - started
        result = judge(CellFacts(outputs=outputs))
        form = result.as_dict()
        best = min(best, max(ended, stalls(result.as_dict, partial(notebook_outputs, form))))
        assert 4000 < len(outputs) <= 5002
        assert collector.truncation is not None
        assert collector.truncation.reason == "outputs"
    assert best < 0.1


@pytest.mark.parametrize("piece", ["\x1b[0m", "x\x1b[31m", "\x1b]0;t\x07", "\x1b[", "\x1b[0;"])
def test_codes_in_a_traceback_stall_nobody(piece: str) -> None:
    """A traceback of 4 MB of ANSI codes is stripped in 100 ms at most, and has no escape afterwards."""
    error = ErrorOutput("E", "v", (piece * (4_000_000 // len(piece)),))
    assert "\x1b" not in error.traceback_text
    assert min(stalls(lambda: error.traceback_text) for _ in range(3)) < 0.1
    assert ErrorOutput("E", "v", ("\x1b[31mred\x1b[0m", "b")).traceback_text == "red\nb"
