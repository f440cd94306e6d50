"""The table of audit entries that `cellblock audit tail` and `search` print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.render import plain, shorten, show_table

_LONGEST = 100  # characters of details in a table row
_SHOWN_ELSEWHERE = (
    "seq", "time", "event", "agent", "kernel", "instance", "prev", "hash", "caller", "session", "log_of"
)  # fmt: skip


def number_of(entry: dict[str, Any]) -> int:
    """Return an entry's number in its chain; 0 if it has none."""
    number = entry.get("seq")
    return number if isinstance(number, int) else 0


def show_entries(entries: Sequence[dict[str, Any]], as_json: bool, *, of_nodes: bool = False) -> None:
    """Print entries as a table, or each as a line of JSON.

    Args:
        of_nodes: each has the node whose log it is of in "log_of".
    """
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry))
        return
    if not entries:
        return
    table = Table(*["node"] * of_nodes, "entry", "time (UTC)", "event", "agent", "kernel", "details")
    for column in table.columns[: 3 + of_nodes]:
        column.no_wrap = True
    for entry in entries:
        details = {key: value for key, value in entry.items() if key not in _SHOWN_ELSEWHERE}
        said = ", ".join(f"{key}={value}" for key, value in _flat(details) if value not in (None, [], {}))
        cells = (
            *[str(entry.get("log_of", ""))] * of_nodes,
            str(number_of(entry)),
            str(entry.get("time", ""))[:19].replace("T", " "),
            str(entry.get("event", "")),
            str(entry.get("agent", "")),
            str(entry.get("kernel", ""))[:12],
            shorten(said, _LONGEST),
        )
        table.add_row(*(escape(plain(cell)) for cell in cells))
    show_table(table)


def _flat(details: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in details.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value
