"""`make history`: what one cell, a wake, a list and a retention cost beside a history of few and of many cells."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import create_engine, text

from orchestrator.store.history import History

_CELLS_EACH = 1000  # cells of one session
_ROUNDS = 30
_FILL = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :last)
INSERT INTO {table} SELECT {columns} FROM n
"""
_RESULT = '{"status": "ok", "outcome": "ok", "outputs": []}'


def fill(url: str, home: str, cells: int) -> None:
    """Add sessions of 1,000 cells each to an empty SQLite history, one live for every nine that have ended."""
    many = cells // _CELLS_EACH
    sessions = (
        "printf('%032x', i), 'agent-' || i, NULL, :home, NULL, CASE i % 10 WHEN 0 THEN 'asleep' ELSE 'ended' "
        "END, NULL, 1e9 + i, 2e9 + i, 'k', 'runc', :each, :each * 60"
    )
    rows = "i + 1, printf('%032x', i / :each), i % :each + 1, 'k', 'print(1)', 1e9 + i, 1e9 + i, 'ok', :result, 60"
    engine = create_engine(url)
    with engine.begin() as connection:
        given = {"home": home, "each": _CELLS_EACH, "result": _RESULT}
        fill_sessions = text(_FILL.format(table="sessions", columns=sessions))
        connection.execute(fill_sessions, {"last": many - 1, "home": home, "each": _CELLS_EACH})
        del given["home"]
        connection.execute(text(_FILL.format(table="cells", columns=rows)), {"last": cells - 1, **given})
    engine.dispose()


def measure(history: History, cells: int) -> dict[str, float]:
    """Return the median of each operation in milliseconds."""
    many = cells // _CELLS_EACH
    history.add_session("live", "agent-live", owner="me", kernel_id="k", runtime="runc")
    numbers = iter(range(1, 10**6))
    current = [0]

    def begin() -> None:
        current[0] = next(numbers)
        history.begin_cell("live", current[0], "print(1)", "k")

    deletable = iter(range(1, many))
    operations: dict[str, Callable[[], object]] = {
        "wake": lambda: (history.sessions_of("agent-0"), history.has_running_cells(f"{0:032x}")),
        "list": lambda: history.sessions(limit=10),
        "find": lambda: history.find("0" * 30 + "05"),
        "retention": lambda: history.excess(0.0, 10**15),
        "begin": begin,
        "end": lambda: history.end_cell("live", current[0], {"status": "ok", "outcome": "ok", "outputs": []}),
        "delete": lambda: history.delete(f"{next(deletable):032x}"),
    }
    return {name: _median(work, 5 if name == "delete" else _ROUNDS) for name, work in operations.items()}


def _median(work: Callable[[], object], rounds: int) -> float:
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def main() -> None:
    """Print a table: each operation beside a history of each size."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("cells", nargs="*", type=int, default=[10_000, 10_000_000])
    for cells in parser.parse_args().cells:
        with tempfile.TemporaryDirectory(prefix="cellblock-history-") as name:
            url = f"sqlite:///{name}/history.db"
            history = History.open(url, Path(name))
            fill(url, history.home, cells)
            figures = measure(history, cells)
            history.close()
        print(f"{cells:>12,} cells: " + ", ".join(f"{what} {took:.2f} ms" for what, took in figures.items()))


if __name__ == "__main__":
    main()
