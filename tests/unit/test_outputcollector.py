"""Head and tail of too much output, and how the gap between them is reported."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from orchestrator.limits import OutputLimits
from orchestrator.output.amounts import memory_of
from orchestrator.output.collector import OutputCollector
from orchestrator.output.events import (
    ClearOutput,
    DisplayData,
    ErrorOutput,
    Output,
    OutputDropped,
    OutputEvent,
    StreamOutput,
    UpdateDisplayData,
)

KIB = 1024


def finish(collector: OutputCollector) -> tuple[list[OutputEvent], tuple[Output, ...]]:
    late = list(collector.finish())
    return late, collector.outputs()


def text_of(outputs: tuple[Output, ...], name: str = "stdout") -> str:
    return "".join(output.text for output in outputs if isinstance(output, StreamOutput) and output.name == name)


def test_all_that_fits_stays_as_it_is() -> None:
    """Up to its limit a cell's output is whole, without a truncation."""
    collector = OutputCollector(OutputLimits(100 * KIB))
    assert all(collector.add(StreamOutput("stdout", "x" * KIB)) for _ in range(99))
    late, outputs = finish(collector)
    assert (late, collector.truncation) == ([], None)
    assert text_of(outputs) == "x" * 99 * KIB
    assert (collector.bytes_seen, collector.messages_seen) == (99 * KIB, 99)


def test_past_the_limit_head_and_tail_stay_and_the_cut_is_marked_in_place() -> None:
    """The first third, a mark that says how much is missing, and the end; the sum of all is what came."""
    collector = OutputCollector(OutputLimits(100 * KIB))
    for number in range(10_000):
        collector.add(StreamOutput("stdout", f"line {number:>6}\n"))
    _, outputs = finish(collector)
    (output,) = outputs
    assert isinstance(output, StreamOutput)
    head, rest = output.text.split("\n[...")
    mark, tail = rest.split("...]\n")
    truncation = collector.truncation
    assert truncation is not None
    assert head.startswith("line      0\nline      1\n")
    assert 30 * KIB < len(head) < 34 * KIB
    assert tail.endswith("line   9998\nline   9999\n")
    assert len(tail) > len(head)
    assert len(head) + len(tail) + 1 + truncation.dropped_bytes == pytest.approx(10_000 * 12, abs=3)
    assert f"{truncation.dropped_messages:,} messages" in mark
    assert memory_of(output.text) < 101 * KIB


def test_a_consumer_hears_of_the_cut_and_then_gets_the_tail() -> None:
    """Output past the limit is not streamed; at the end the consumer receives the size of the gap, and the tail."""
    collector = OutputCollector(OutputLimits(100 * KIB))
    streamed = [
        event
        for event in (StreamOutput("stdout", f"{number:>1023}\n") for number in range(500))
        if collector.add(event)
    ]
    late, outputs = finish(collector)
    assert isinstance(late[0], OutputDropped)
    last = late[-1]
    assert isinstance(last, StreamOutput)
    assert last.text.endswith(f"{499:>1023}\n")
    assert len(streamed) in range(90, 101)
    assert text_of(outputs).endswith(f"{499:>1023}\n")


def test_the_error_at_the_end_is_never_lost() -> None:
    """A traceback after a flood is in the tail."""
    collector = OutputCollector(OutputLimits(100 * KIB))
    for _ in range(1000):
        collector.add(StreamOutput("stderr", "x" * KIB))
    collector.add(ErrorOutput("ValueError", "boom", ("Traceback", "ValueError: boom")))
    assert finish(collector)[1][-1] == ErrorOutput("ValueError", "boom", ("Traceback", "ValueError: boom"))


def test_one_output_may_take_most_of_the_limit() -> None:
    """A picture of nine tenths of the limit is kept whole; once output is left out, such a one is not read."""
    collector = OutputCollector(OutputLimits(1000 * KIB))
    assert collector.wants(900 * KIB)
    collector.add(DisplayData({"image/png": "x" * 900 * KIB}))
    assert collector.truncation is None
    collector.add(StreamOutput("stdout", "x" * 200 * KIB))
    assert not collector.wants(900 * KIB)
    collector.refuse(900 * KIB)
    assert collector.truncation is not None
    assert collector.truncation.dropped_bytes == 1800 * KIB


@pytest.mark.parametrize(("what", "reason"), [("messages", "output.messages"), ("displays", "output.displays")])
def test_messages_and_displays_have_limits_of_their_own(what: str, reason: str) -> None:
    """Of 1,000 displays the first and the last stay, under a limit on either, with a mark between them."""
    collector = OutputCollector(OutputLimits(1000 * KIB, **{what: 20}))
    for number in range(1000):
        collector.add(DisplayData({"text/plain": str(number)}))
    _, outputs = finish(collector)
    shown = [output.data["text/plain"] for output in outputs if isinstance(output, DisplayData)]
    assert shown.pop(10) == "[... 2.8 KiB of output left out here, in 980 messages ...]"
    assert shown == [str(number) for number in (*range(10), *range(990, 1000))]
    assert collector.truncation is not None
    assert (collector.truncation.reason, collector.truncation.dropped_messages) == (reason, 980)


def test_cleared_output_makes_room() -> None:
    """Cleared output no longer counts, and the remaining output is complete."""
    collector = OutputCollector(OutputLimits(100 * KIB))
    for number in range(50):
        collector.add(StreamOutput("stdout", "x" * 90 * KIB))
        collector.add(ClearOutput(wait=number % 2 == 0))
    collector.add(StreamOutput("stdout", "end"))
    assert text_of(finish(collector)[1]) == "end"
    assert collector.truncation is None


def test_a_display_that_is_updated_for_ever_takes_the_room_of_one() -> None:
    """Ten thousand updates of one display cost no more than the last."""
    collector = OutputCollector(OutputLimits(100 * KIB))
    collector.add(DisplayData({"text/plain": "0"}, {}, "bar"))
    for number in range(10_000):
        collector.add(UpdateDisplayData("bar", {"text/plain": str(number), "text/html": "x" * KIB}))
    (output,) = finish(collector)[1]
    assert isinstance(output, DisplayData)
    assert output.data["text/plain"] == "9999"
    assert collector.truncation is None


def test_a_display_in_the_tail_is_updated_too() -> None:
    """An update reaches its display wherever it stands; a later display of the same id keeps its own content."""
    collector = OutputCollector(OutputLimits(100 * KIB))
    for _ in range(200):
        collector.add(StreamOutput("stdout", "x" * KIB))
    collector.add(DisplayData({"text/plain": "a"}, {}, "id"))
    collector.add(UpdateDisplayData("id", {"text/plain": "b"}))
    collector.add(DisplayData({"text/plain": "c"}, {}, "id"))
    shown = [output.data["text/plain"] for output in finish(collector)[1] if isinstance(output, DisplayData)]
    assert shown == ["b", "c"]


def test_one_wide_character_does_not_widen_past_the_limit() -> None:
    """A text of one byte each that ends in an emoji takes four bytes each: what is kept still fits the limit."""
    collector = OutputCollector(OutputLimits(300 * KIB))
    for _ in range(250):
        collector.add(StreamOutput("stdout", "x" * KIB))
    collector.add(StreamOutput("stdout", "\U0001f600"))
    text = text_of(finish(collector)[1])
    assert text.startswith("xxx")
    assert text.endswith("\U0001f600")
    assert memory_of(text) < 310 * KIB


def test_pieces_that_are_larger_than_the_limit_have_a_head_and_a_tail() -> None:
    """With room for 3 KiB, a kernel's pieces of 64 KiB are read all the same, and cut to fit."""
    collector = OutputCollector(OutputLimits(3 * KIB))
    for number in range(5):
        text = f"begin {number}\n" + "x" * 64 * KIB + f"\nend {number}"
        assert collector.wants(memory_of(text))
        collector.add(StreamOutput("stdout", text))
    text = text_of(finish(collector)[1])
    assert collector.truncation is not None
    assert collector.truncation.dropped_messages == 5  # each lost a part, and counts once
    assert text.startswith("begin 0\nxxx")
    assert text.endswith("xxx\nend 4")
    assert 2 * KIB < len(text) < 4 * KIB


def test_a_consumer_of_the_stream_has_all_that_the_result_has() -> None:
    """300 random cells: the result's head is how the stream began, its tail how it ended, and a mark is in between."""
    chance = random.Random(8)  # noqa: S311 - a repeatable test
    for _ in range(300):
        collector = OutputCollector(OutputLimits(chance.choice([2, 20, 200]) * KIB, messages=chance.choice([7, 1000])))
        streamed: list[OutputEvent] = []
        for number in range(chance.randrange(1, 40)):
            text = f"<{number}>" + chance.choice(["x", "é", "\n"]) * chance.choice([1, 100, 5_000, 70_000])
            if (shown := collector.add(StreamOutput("stdout", text))) is not None:
                streamed.append(shown)
        truncation = collector.truncation
        late, outputs = finish(collector)
        seen = "".join(event.text for event in [*streamed, *late] if isinstance(event, StreamOutput))
        kept = text_of(outputs)
        if truncation is None:
            assert seen == kept
            continue
        head, tail = re.split(r"\n\[\.\.\. .* left out here, .* \.\.\.\]\n", kept)
        assert seen.startswith(head)
        assert seen.endswith(tail)
        assert head or truncation.reason == "output.messages"
        assert tail
        assert 0 < truncation.dropped_messages <= number + 1


def test_whatever_comes_the_outputs_stay_within_the_limit() -> None:
    """300 random cells: memory of the outputs, and both streams joined, keeps to the limit, but for a mark."""
    chance = random.Random(7)  # noqa: S311 - a repeatable test
    for _ in range(300):
        limit = chance.choice([5, 50, 500]) * KIB
        collector = OutputCollector(
            OutputLimits(limit, messages=chance.choice([10, 1000]), displays=chance.choice([2, 50]))
        )
        for _ in range(chance.randrange(300)):
            text = chance.choice(["x", "é", "€", "\U0001f600", "a\rb", "\n"]) * chance.choice([1, 10, 1000, 30_000])
            event: OutputEvent = chance.choice([
                StreamOutput("stdout", text), StreamOutput("stderr", text), DisplayData({"text/plain": text}),
                DisplayData({"text/html": text}, {}, "id"), UpdateDisplayData("id", {"text/html": text}),
                ErrorOutput("E", text), ClearOutput(wait=chance.random() < 0.5) if chance.random() < 0.1
                else StreamOutput("stdout", "y"),
            ])  # fmt: skip
            if collector.wants(memory_of(text)):
                collector.add(event)
            else:
                collector.refuse(len(text))
        _, outputs = finish(collector)
        # Displays of one id share what they were updated to.
        parts = {
            id(part): part
            for o in outputs
            for part in (getattr(o, "text", ""), getattr(o, "data", ""), getattr(o, "evalue", ""))
        }
        held = sum(map(memory_of, parts.values()))
        joined = sum(
            memory_of(text_of(outputs, name))
            for name in ("stdout", "stderr")
            if sum(isinstance(o, StreamOutput) and o.name == name for o in outputs) > 1
        )
        assert held + joined < limit + 6 * KIB + 800 * len(outputs)


@pytest.mark.parametrize("seed", range(8))
def test_looking_at_the_outputs_so_far_changes_nothing(seed: int) -> None:
    """A collector that is looked at after each event ends as one that is not; in between it shows what that would."""
    chance = random.Random(seed)  # noqa: S311 - seeded
    looked, plain = OutputCollector(OutputLimits(100 * KIB)), OutputCollector(OutputLimits(100 * KIB))
    makers: list[Callable[[], OutputEvent]] = [
        lambda: StreamOutput("stdout", chance.choice(["a\n", "50%\r", "b\b\bc", "up\n\x1b[A", "\x1b[Bdown\n"])),
        lambda: StreamOutput("stderr", "e\n"),
        lambda: DisplayData({"text/plain": "1"}, {}, chance.choice(["id", None])),
        lambda: UpdateDisplayData("id", {"text/plain": "2"}, {}),
        lambda: ClearOutput(chance.random() < 0.5),
    ]  # fmt: skip
    events = [chance.choice(makers)() for _ in range(40)]
    for count, event in enumerate(events, start=1):
        looked.add(event)
        plain.add(event)
        so_far = OutputCollector(OutputLimits(100 * KIB))
        for each in events[:count]:
            so_far.add(each)
        expected = finish(so_far)[1]
        assert looked.so_far(1000) == (list(expected), len(expected))
        assert looked.so_far(1) == (list(expected[:1]), len(expected))
    assert finish(looked) == finish(plain)
