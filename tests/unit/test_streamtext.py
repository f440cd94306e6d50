"""Carriage returns and backspaces, as a notebook shows them."""

from __future__ import annotations

import random
import re
import time

import pytest

from orchestrator.output.streamtext import StreamText


def shown(*pieces: str) -> str:
    text = StreamText()
    for piece in pieces:
        text.add(piece)
    size, whole = text.size, "".join(text.pieces())
    assert size == len(whole)
    return whole


def reference(text: str) -> str:
    """What a notebook's front end makes of carriage returns, written the slow and plain way."""
    lines = []
    for line in re.sub(r"\r\n", "\n", text).split("\n"):
        cells: list[str] = []
        for segment in line.split("\r"):
            cells[: len(segment)] = segment
        lines.append("".join(cells))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["one\n", "two"], "one\ntwo"),
        (["10%\r20%\r100%\n"], "100%\n"),
        (["10%", "\r20%", "\r", "30%\n", "done"], "30%\ndone"),
        (["longer\rshort"], "shortr"),
        (["abc\r\ndef"], "abc\ndef"),
        (["abc\r", "\ndef"], "abc\ndef"),
        (["first\nabc\rx"], "first\nxbc"),
        (["abc\r", "x", "y"], "xyc"),
        (["abc\b\bX"], "aX"),
        (["abc", "\b\b", "X"], "aX"),
        (["\b\b"], ""),
        (["a\n\bb"], "a\nb"),
        ([""], ""),
        (["tail\r"], "tail"),
    ],
)
def test_a_line_is_overwritten_in_place(pieces: list[str], expected: str) -> None:
    """However the pieces are cut, the last state of each line is what stays."""
    assert shown(*pieces) == expected


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["outer 0\n\rinner 0\x1b[A", "\router 1\n\rinner 1\x1b[A\router 2"], "outer 2\ninner 1"),
        (["before\n", "a", "\nb\x1b[A", "c", "\n", "x\nafter\n"], "before\nac\nx\nafter\n"),
        (["1\n2\n3\n", "\x1b[2A\rx", "\n", "\n", "end"], "1\nx\n3\nend"),
        (["a\n\x1b[Ab\x1b[K"], "b\n"),
        (["abc\ndef\x1b[1A\x1b[2K"], "\ndef"),
        (["\x1b[A\x1b[99Ax"], "x"),
        ([f"{number}\n" for number in range(100)] + ["\x1b[Ax\n"], "".join(f"{n}\n" for n in range(99)) + "x9\n"),
        (["red \x1b[31mword\x1b[0m\n"], "red \x1b[31mword\x1b[0m\n"),
    ],
)
def test_a_cursor_that_goes_up_overwrites_earlier_lines(pieces: list[str], expected: str) -> None:
    """As in a terminal, so nested progress bars take a line each."""
    assert shown(*pieces) == expected


def test_moves_up_do_not_hold_the_loop() -> None:
    """The worst message of one piece takes less than 100 ms."""
    for piece in ("\x1b[A" * 60_000, "\n\x1b[A" * 740, "x" * 2_000 + "\x1b[A\r" * 740, "\x1b[" * 100_000):
        text = StreamText()
        text.add("line\n" * 50_000)
        started = time.perf_counter()
        text.add(piece)
        assert time.perf_counter() - started < 0.1


def test_any_mixture_is_shown_as_the_plain_way_does() -> None:
    """1,000 random texts, cut at random places."""
    chance = random.Random(11)  # noqa: S311 - a repeatable test
    for _ in range(1000):
        text = "".join(chance.choice("ab\n\r\r") for _ in range(chance.randrange(40)))
        text = re.sub("\r\n", "\n", text)
        cuts = sorted(chance.randrange(len(text) + 1) for _ in range(3))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert shown(*pieces) == reference(text), (pieces, text)


def test_a_progress_bar_takes_one_line_however_long_it_runs() -> None:
    """A million updates keep one line in memory."""
    text = StreamText()
    for done in range(1000):
        text.add("".join(f"\r{done * 1000 + step:>8}/1000000 [{'#' * 40}]" for step in range(100)))
    text.add("".join(f"\r{done:>8}/1000000" for done in range(100_000)))  # at once, as a slow reader gets it
    assert text.size == len("".join(text.pieces())) < 100


@pytest.mark.parametrize("piece", ["\r", "\b", "a\r", "a\b", "\n\r", "\r\n", "a\rbc\n", "\ra"])
def test_no_piece_holds_the_loop(piece: str) -> None:
    """Four megabytes of nothing but control characters cost far less than a loop's stall that anybody would notice."""
    text = StreamText()
    text.add("x" * 60_000)
    begun = time.process_time()
    text.add(piece * (4_000_000 // len(piece)))
    assert time.process_time() - begun < 1
    for _ in range(200):
        text.add(piece)
    assert time.process_time() - begun < 2
