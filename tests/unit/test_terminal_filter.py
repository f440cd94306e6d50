"""What an operator's terminal gets of a sandbox's output."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.terminalfilter import TerminalFilter

CASES = {
    b"plain text\r\n": b"plain text\r\n",
    b"\x1b[31mred\x1b[0m": b"\x1b[31mred\x1b[0m",
    b"a\x1b]0;title\x07b": b"ab",
    b"a\x1b]52;c;AAAA\x1b\\b": b"ab",
    b"a\x1bPdevice\x1b\\b": b"ab",
    b"a\x1b_app\x1b\\b\x1b^private\x1b\\c\x1bXstart\x1b\\d": b"abcd",
    b"a\x1b]unfinished": b"a",
    b"\x1b(B\x1b=ok": b"\x1b(B\x1b=ok",
    b"a\x1b]0;" + b"x" * 100_000: b"a",
    b"a\x1b]0;" + b"x" * 100_000 + b"\x07b": b"ab",
}


@pytest.mark.parametrize("given_bytes", CASES, ids=lambda data: repr(data[:20]))
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_strings_for_the_terminal_itself_are_left_out(given_bytes: bytes, size: int) -> None:
    """However the bytes are cut into pieces."""
    filtered = TerminalFilter()
    pieces = [given_bytes[start : start + size] for start in range(0, len(given_bytes), size)]
    assert b"".join(map(filtered.feed, pieces)) == CASES[given_bytes]


@given(st.lists(st.binary(max_size=20)))
def test_no_such_string_ever_begins(pieces: list[bytes]) -> None:
    filtered = TerminalFilter()
    shown = b"".join(map(filtered.feed, pieces))
    assert not any(b"\x1b" + kind in shown for kind in (b"]", b"P", b"_", b"^", b"X"))
