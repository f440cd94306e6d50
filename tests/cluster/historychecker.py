"""Compares what clients of a cluster were told with what its database has, and with each change that it noted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told of a cell that appends its token to a list in the kernel, and returns the list.

    Attributes:
        tokens: the list; None: the cell was not acknowledged, and may or may not have run.
        said: whether the client was told that the session continues from a checkpoint, or that it is new.
        checkpoint: made after the cell, and acknowledged; "": none.
        at: seconds since the epoch.
    """

    agent: str
    session: str
    token: str
    tokens: tuple[str, ...] | None
    said: bool = False
    checkpoint: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """A cell, as the database has it."""

    session: str
    number: int
    token: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Change:
    """A session's row, or a cell's, as a transaction has left it, in the order of the changes.

    Attributes:
        cell: its number; 0: the change was of the session's row.
        outcome: of the cell, or the session's state.
    """

    session: str
    agent: str
    fence: int
    owner: str
    cell: int
    outcome: str


def check(told: Sequence[Told], rows: Sequence[Row], changes: Sequence[Change]) -> list[str]:
    """Return what is wrong, a line each."""
    by_agent: dict[str, list[Told]] = defaultdict(list)
    for one in told:
        by_agent[one.agent].append(one)
    wrong = [line for mine in by_agent.values() for line in _kernel(mine)]
    return [*wrong, *_recorded(told, rows), *_owners(changes)]


def _kernel(told: Iterable[Told]) -> list[str]:
    """Check the lists that one agent's kernels returned."""
    wrong: list[str] = []
    before: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    for one in told:
        if one.tokens is None:
            continue
        if len(set(one.tokens)) < len(one.tokens):
            wrong.append(f"{one.token} of {one.agent}: a cell ran twice: {one.tokens}")
        if not one.tokens or one.tokens[-1] != one.token:
            wrong.append(f"{one.token} of {one.agent}: its own effect is not the last: {one.tokens}")
        if one.tokens[: len(saved)] != saved:
            wrong.append(f"{one.token} of {one.agent}: an acknowledged checkpoint is lost: {saved}, {one.tokens}")
        if one.tokens[: len(before)] != before and not one.said:
            wrong.append(f"{one.token} of {one.agent}: cells are lost, and nothing said so: {before}, {one.tokens}")
        before = one.tokens
        saved = one.tokens if one.checkpoint else saved
    return wrong


def _recorded(told: Iterable[Told], rows: Iterable[Row]) -> list[str]:
    """Check that each acknowledged cell is in the history once, in order."""
    wrong: list[str] = []
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.token].append(row)
    last: dict[str, int] = defaultdict(int)
    for one in told:
        mine = found[one.token]
        if len(mine) > 1:
            wrong.append(f"{one.token} of {one.agent}: in the history {len(mine)} times")
        if one.tokens is None:
            continue
        if not mine or mine[0].outcome != "ok" or mine[0].session != one.session:
            wrong.append(f"{one.token} of {one.agent}: acknowledged, and the history has {mine}")
            continue
        if mine[0].number <= last[one.session]:
            wrong.append(f"{one.token} of {one.agent}: out of order")
        last[one.session] = mine[0].number
    return wrong


def _owners(changes: Iterable[Change]) -> list[str]:
    """Check that fence numbers grow with each owner, and that a cell ends well only under the owner that began it."""
    wrong: list[str] = []
    fences: dict[str, tuple[int, str]] = {}
    live: dict[str, set[str]] = defaultdict(set)
    began: dict[tuple[str, int], int] = {}
    for one in changes:
        if one.cell:
            begun = began.setdefault((one.session, one.cell), one.fence)
            if one.outcome == "ok" and one.fence != begun:
                wrong.append(f"cell {one.cell} of {one.session} began under fence {begun}, and ended under {one.fence}")
            continue
        fence, owner = fences.get(one.session, (0, ""))
        if one.fence < fence:
            wrong.append(f"{one.session}: its fence went from {fence} back to {one.fence}")
        if one.owner and owner and one.owner != owner and one.fence <= fence:
            wrong.append(f"{one.session}: {one.owner} owns it beside {owner}")
        fences[one.session] = one.fence, one.owner
        (live[one.agent].add if one.outcome == "live" else live[one.agent].discard)(one.session)
        if len(live[one.agent]) > 1:
            wrong.append(f"{one.agent} has several live sessions: {sorted(live[one.agent])}")
    return wrong
