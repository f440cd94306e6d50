"""``cellblock engine``: bring up a Docker engine on a bare machine, look at it, and end it."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.status import Status

from orchestrator.host import bootstrap

app = typer.Typer(
    name="engine",
    help="Bring up the Docker engine on a bare Debian machine; an engine that runs is used and left as it is.",
    epilog="Example: cellblock engine start",
    no_args_is_help=True,
)


class Progress:
    """Shows each step of a long piece of work: live on a terminal, as plain lines elsewhere."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._status = Status(label, console=console) if console.is_terminal else None
        self._label = label
        self._last = ""

    def __enter__(self) -> Progress:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, line: str) -> None:
        """Called by the one who works, with each step."""
        if line == self._last:
            return
        self._last = line
        if self._status:
            self._status.update(f"{self._label}: {line}")
        else:
            self._console.print(f"{self._label}: {line}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog="Example: cellblock engine start")
def start() -> None:
    """Return when an engine answers: install, configure and start it where there is none (as root, on Debian)."""
    with Progress(Console(stderr=True), "engine") as progress:
        found = bootstrap.start_engine(progress)
    _show(found)


@app.command(epilog="Example: cellblock engine stop")
def stop() -> None:
    """End the engine, if `cellblock engine start` started it; any other is left alone."""
    with Progress(Console(stderr=True), "engine") as progress:
        stopped = bootstrap.stop_engine(progress)
    typer.echo("engine: stopped" if stopped else "engine: none that was started by cellblock; nothing stopped")


@app.command(epilog="Example: cellblock engine status")
def status() -> None:
    """Say which engine answers; the exit status is 1 when none does."""
    _show(bootstrap.status())


def _show(found: bootstrap.EngineStatus) -> None:
    origin = "started by cellblock" if found.ours else "not ours: left as it is"
    typer.echo(f"engine: Docker {found.version} answers ({origin}); runtimes: {', '.join(found.runtimes)}")
    if found.offer:
        typer.echo(f"engine: {found.offer}")
