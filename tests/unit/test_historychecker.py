"""The checker of a cluster's history finds each kind of fault in made-up histories, and none in a true one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cluster.historychecker import Change, Row, Told, check

TOLD = [
    Told("a", "s", "1", ("1",), said=True, checkpoint="c"),
    Told("a", "s", "2", None),
    Told("a", "s", "3", ("1", "2", "3")),
    Told("a", "s", "4", ("1", "4"), said=True),  # after a takeover
]
ROWS = [Row("s", 1, "1", "ok"), Row("s", 2, "2", "interrupted"), Row("s", 3, "3", "ok"), Row("s", 4, "4", "ok")]
CHANGES = [
    Change("s", "a", 1, "n1", 0, "live"),
    Change("s", "a", 1, "n1", 1, "running"),
    Change("s", "a", 1, "n1", 1, "ok"),
    Change("s", "a", 1, "n1", 2, "running"),
    Change("s", "a", 2, "n2", 0, "live"),
    Change("s", "a", 2, "n2", 2, "interrupted"),
]


def test_a_true_history_has_no_findings() -> None:
    assert check(TOLD, ROWS, CHANGES) == []


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (replace(TOLD[3], tokens=("1", "4", "4")), "ran twice"),
        (replace(TOLD[3], tokens=("1",)), "not the last"),
        (replace(TOLD[3], tokens=("4",)), "checkpoint is lost"),
        (replace(TOLD[3], said=False), "nothing said so"),
    ],
)
def test_a_false_list_of_a_kernel_is_found(told: Told, found: str) -> None:
    assert any(found in line for line in check([*TOLD[:3], told], ROWS, CHANGES))


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (ROWS[:-1], "the history has"),
        ([*ROWS[:-1], replace(ROWS[3], outcome="interrupted")], "the history has"),
        ([*ROWS, replace(ROWS[3], number=5)], "2 times"),
        ([*ROWS[:2], replace(ROWS[2], number=4), replace(ROWS[3], number=3)], "out of order"),
    ],
)
def test_a_false_row_is_found(rows: list[Row], found: str) -> None:
    assert any(found in line for line in check(TOLD, rows, CHANGES))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (Change("s", "a", 1, "n1", 0, "live"), "back to 1"),
        (Change("s", "a", 2, "n1", 0, "live"), "beside"),
        (Change("s", "a", 2, "n1", 2, "ok"), "began under fence 1"),
        (Change("t", "a", 1, "n1", 0, "live"), "several live sessions"),
    ],
)
def test_a_false_change_of_an_owner_is_found(change: Change, found: str) -> None:
    assert any(found in line for line in check(TOLD, ROWS, [*CHANGES, change]))
