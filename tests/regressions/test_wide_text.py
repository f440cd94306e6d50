"""A message's size in memory is counted string by string: what is wide widens its own string alone."""

from __future__ import annotations

import json

import pytest

from orchestrator.kernel.boundedjson import memory

BIG = "x" * 4_700_000


@pytest.mark.parametrize(
    "data",
    [
        {"text/html": BIG + r"/[\ud800-\udbff][\udc00-\udfff]/", "text/plain": "Figure()"},
        {"text/html": BIG + r"\u2212 \\uD83D", "text/plain": "Figure()"},
        {"text/html": BIG + '"quoted"', "text/plain": "\U0001f600"},
        {"text/html": BIG, "text/plain": "日本"},
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_script_is_not_widened_by_what_stands_beside_it(data: dict[str, str], ascii_only: bool) -> None:
    """An escape that the script itself spells is no wide character, and one in another string is none of its own."""
    content = json.dumps({"data": data}, ensure_ascii=ascii_only).encode()
    assert memory(content) < 1.05 * len(content)


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize(("wide", "factor"), [("\U0001f600", 4), ("日", 2)])
def test_a_string_that_is_widened_counts_as_such(wide: str, factor: int, ascii_only: bool) -> None:
    """The bound holds: one wide character at the end of a long string widens all of it."""
    content = json.dumps({"data": {"text/html": BIG + "\\\\" + wide}}, ensure_ascii=ascii_only).encode()
    assert memory(content) >= factor * len(BIG)
