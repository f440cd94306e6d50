"""`cellblock engine`: installs, starts, shows and stops a Docker engine."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.console import Console
from rich.status import Status

from orchestrator.cli.render import AsJson, show_json
from orchestrator.host import bootstrap

app = typer.Typer(
    name="engine",
    help="Install, start, show and stop a Docker engine on a Debian machine. A running engine is used unchanged.",
    epilog="Example: cellblock engine start",
    no_args_is_help=True,
)


class StepDisplay:
    """Shows the steps of a long task: as a live status on a terminal, as plain lines elsewhere."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._status = Status(label, console=console) if console.is_terminal else None
        self._label = label
        self._last = ""

    def __enter__(self) -> StepDisplay:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, line: str) -> None:
        """Show one step. ``host.bootstrap`` calls it."""
        if line == self._last:
            return
        self._last = line
        if self._status:
            self._status.update(f"{self._label}: {line}")
        else:
            self._console.print(f"{self._label}: {line}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog="Example: cellblock engine start")
def start() -> None:
    """Start a Docker engine, unless one runs: install and configure it if necessary (needs root and Debian)."""
    with StepDisplay(Console(stderr=True), "engine") as display:
        found = bootstrap.start_engine(display)
    _show(found)


@app.command(epilog="Example: cellblock engine stop")
def stop() -> None:
    """Stop the engine if `cellblock engine start` started it. Any other engine keeps running."""
    with StepDisplay(Console(stderr=True), "engine") as display:
        stopped = bootstrap.stop_engine(display)
    typer.echo("engine: stopped" if stopped else "engine: cellblock started none, so nothing was stopped")


@app.command(epilog="Example: cellblock engine status")
def status(as_json: AsJson = False) -> None:
    """Show which engine answers. Exit status: 0 if one answers, 1 if none does."""
    found = bootstrap.status()
    if as_json:
        show_json(asdict(found))
    else:
        _show(found)


def _show(found: bootstrap.EngineStatus) -> None:
    origin = "started by cellblock" if found.ours else "not started by cellblock"
    typer.echo(f"engine: Docker {found.version} answers ({origin}); runtimes: {', '.join(found.runtimes)}")
    if found.offer:
        typer.echo(f"engine: {found.offer}")
