"""`cellblock ps`: lists the kernels of this host, or of all nodes of a cluster."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.table import Column, Table

from orchestrator.cli.clusterview import Cluster, seen
from orchestrator.cli.kernelrows import ordered, summary
from orchestrator.cli.render import console, errors, run_async, show_table


def ps(
    as_json: Annotated[bool, typer.Option("--json", help="Print all details as JSON.")] = False,
    sort: Annotated[
        Literal["agent", "cpu", "memory", "age"],
        typer.Option(help="The order of the rows; cpu, memory and age put the highest first."),
    ] = "agent",
    cluster: Cluster = False,
) -> None:
    """List the kernels of every cellblock process on this host: agent, state, resource use and running cell.

    Shows the processes of this user; to root, those of every user. With --cluster: the kernels of all nodes, and a row
    for each node that does not answer within 2 s.

    Example: cellblock ps --sort memory
    """
    host = run_async(seen(cluster))
    if as_json:
        typer.echo(json.dumps([*host.overviews, *map(asdict, host.silent_nodes)], indent=2))
        return
    if host.rows or host.silent_nodes:
        table = Table(*(Column(name, no_wrap=name in ("kernel", "state")) for name in host.columns))
        for row in ordered(host.rows, sort):
            table.add_row(*row.cells(bars=console.is_terminal))
        for node in host.silent_nodes:
            table.add_row(*node.cells())
        show_table(table)
    console.print(summary(host))
    for instance in host.silent:
        errors.print(f"instance {instance} does not answer: it has ended or hangs", style="yellow")
