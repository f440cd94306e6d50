"""`cellblock ps`: lists the kernels of this host."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.table import Column, Table

from orchestrator.cli.kernelrows import COLUMNS, look, ordered, summary
from orchestrator.cli.render import console, errors, run_async, show_table
from orchestrator.settings import Settings


def ps(
    as_json: Annotated[bool, typer.Option("--json", help="Print all details as JSON.")] = False,
    sort: Annotated[
        Literal["agent", "cpu", "memory", "age"],
        typer.Option(help="The order of the rows; cpu, memory and age put the highest first."),
    ] = "agent",
) -> None:
    """List the kernels of every cellblock process on this host: agent, state, resource use and running cell.

    Shows the processes of this user; to root, those of every user.

    Example: cellblock ps --sort memory
    """
    host = run_async(look(Settings.load()))
    if as_json:
        typer.echo(json.dumps(list(host.overviews), indent=2))
        return
    if host.rows:
        table = Table(*(Column(name, no_wrap=name in ("kernel", "state")) for name in COLUMNS))
        for row in ordered(host.rows, sort):
            table.add_row(*row.cells(bars=console.is_terminal))
        show_table(table)
    console.print(summary(host))
    for instance in host.silent:
        errors.print(f"instance {instance} does not answer: it has ended or hangs", style="yellow")
