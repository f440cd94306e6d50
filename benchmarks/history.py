"""`make history`: what a cell, a wake, a list, retention and a deletion cost beside few and many cells of history.

For each of them also what a neighbour's cell costs meanwhile: its two writes, from the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from orchestrator.isolation.measure import quantile
from orchestrator.store.history import Claim, History

_CELLS_EACH = 1000  # cells of one session
_ROUNDS = 30
_NEIGHBOUR = 3.0  # seconds for which a neighbour is measured, alone and beside each operation
_TURN = 0.5  # seconds of it at once: alone and beside take turns, so that load on the machine affects both
_PAUSE = 0.005  # seconds between two cells of the neighbour, and between two operations beside it
_FILL = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :last)
INSERT INTO {table} ({names}) SELECT {columns} FROM n
"""
_SESSIONS = {
    "session_id": "printf('%032x', i)",
    "agent_id": "'agent-' || i",
    "home": ":home",
    "state": "CASE i % 10 WHEN 0 THEN 'asleep' ELSE 'ended' END",
    "created_at": "1e9 + i",
    "last_used_at": "2e9 + i",
    "kernel_id": "'k'",
    "runtime": "'runc'",
    "cells": ":each",
    "bytes": ":each * 60",
}
_CELLS = {
    "cell_id": "i + 1",
    "session_id": "printf('%032x', i / :each)",
    "number": "i % :each + 1",
    "kernel_id": "'k'",
    "code": "'print(1)'",
    "started_at": "1e9 + i",
    "ended_at": "1e9 + i",
    "outcome": "'ok'",
    "result": ":result",
    "bytes": "60",
}
_USAGE = {"home": ":home", "agent_id": "'agent-' || i", "bytes": ":each * 60"}
_RESULT = '{"status": "ok", "outcome": "ok", "outputs": []}'
_OK: dict[str, Any] = {"status": "ok", "outcome": "ok", "outputs": []}


def fill(url: str, home: str, cells: int) -> None:
    """Add sessions of 1,000 cells each to an empty SQLite history, one asleep for every nine that have ended."""
    many = cells // _CELLS_EACH
    engine = create_engine(url)
    with engine.begin() as connection:
        for table, columns, count in (
            ("sessions", _SESSIONS, many),
            ("cells", _CELLS, cells),
            ("agent_usage", _USAGE, many),
        ):
            given = {"last": count - 1, "home": home, "each": _CELLS_EACH, "result": _RESULT}
            statement = _FILL.format(table=table, names=", ".join(columns), columns=", ".join(columns.values()))
            used = {name: value for name, value in given.items() if f":{name}" in statement}
            connection.execute(text(statement), used)
        total = text("INSERT INTO home_usage SELECT home, 0, sum(bytes) FROM agent_usage GROUP BY home")
        connection.execute(total)
    engine.dispose()


@dataclass(frozen=True)
class Figure:
    """What one operation costs.

    Attributes:
        median: milliseconds.
        alone, beside: the p99 of a neighbour's cell without and with the operation, in milliseconds.
    """

    median: float
    alone: float
    beside: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms (neighbour's p99 {self.alone:.1f} -> {self.beside:.1f} ms)"


def measure(history: History, cells: int) -> dict[str, Figure]:
    """Return the figures of each operation."""
    history.add_session("live", "agent-live", owner="me", kernel_id="k", runtime="runc")
    history.add_session("next", "agent-next", owner="me", kernel_id="k", runtime="runc")
    numbers = itertools.count(1)
    current = [0]

    def begin() -> None:
        current[0] = next(numbers)
        history.begin_cell(Claim("live", 1), current[0], "print(1)", "k")

    deletable = iter(range(1, cells // _CELLS_EACH))
    operations: dict[str, Callable[[], object]] = {
        "wake": lambda: (history.sessions_of("agent-0"), history.has_running_cells(f"{0:032x}")),
        "list": lambda: history.sessions(limit=10),
        "find": lambda: history.find("0" * 30 + "05"),
        "retention": lambda: history.excess(0.0, 10**15),
        "begin": begin,
        "end": lambda: history.end_cell(Claim("live", 1), current[0], _OK),
        "delete": lambda: history.delete(f"{next(deletable):032x}"),
    }
    medians = {name: _median(work, 4 if name == "delete" else _ROUNDS) for name, work in operations.items()}
    cell = _Neighbour(history)
    return {name: Figure(medians[name], *asyncio.run(cell.measure(work))) for name, work in operations.items()}


class _Neighbour:
    """A session whose cells are measured."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._numbers = itertools.count(1)

    async def measure(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return the p99 of a cell alone, and while a thread repeats ``work``; in milliseconds."""
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(int(_NEIGHBOUR / _TURN)):
            alone += await self._cells(_TURN)
            stop = threading.Event()
            working = asyncio.create_task(asyncio.to_thread(_repeat, work, stop))
            beside += await self._cells(_TURN)
            stop.set()
            await working
        return quantile(alone, 0.99), quantile(beside, 0.99)

    async def _cells(self, seconds: float) -> list[float]:
        took = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            number, began = next(self._numbers), time.perf_counter()
            await self._history.run(History.begin_cell, Claim("next", 1), number, "print(1)", "k")
            await self._history.run(History.end_cell, Claim("next", 1), number, _OK)
            took.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(_PAUSE)
        return took


def _repeat(work: Callable[[], object], stop: threading.Event) -> None:
    while not stop.wait(_PAUSE):
        try:
            work()
        except StopIteration:  # every session is deleted
            return


def _median(work: Callable[[], object], rounds: int) -> float:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def main() -> None:
    """Print each operation beside a history of each size."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("cells", nargs="*", type=int, default=[10_000, 10_000_000])
    for cells in parser.parse_args().cells:
        with tempfile.TemporaryDirectory(prefix="cellblock-history-") as name:
            url = f"sqlite:///{name}/history.db"
            history = History.open(url, Path(name))
            fill(url, history.home, cells)
            figures = measure(history, cells)
            history.close()
        print(f"{cells:>12,} cells")
        for what, figure in figures.items():
            print(f"{what:>12}: {figure}", flush=True)


if __name__ == "__main__":
    main()
