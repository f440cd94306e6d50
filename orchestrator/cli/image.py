"""`cellblock image`: builds the sandbox image, and shows whether the engine has a current one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from orchestrator.cli.render import AsJson, show_json
from orchestrator.container import engine
from orchestrator.container.engineimages import EngineImages
from orchestrator.image.build import BuildStep, BuiltImage, build_image, find_current_image, find_image, image_name
from orchestrator.settings import Settings

app = typer.Typer(
    name="image",
    help="Build and show the image that every sandbox runs.",
    epilog="Example: cellblock image build",
    no_args_is_help=True,
)

Force = Annotated[bool, typer.Option("--force", help="Rebuild the image and its base even if they are current.")]


class BuildDisplay:
    """Shows a build: as one bar per part on a terminal, as one line per step elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: dict[str, TaskID] = {}
        self._said = ""
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> BuildDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, step: BuildStep) -> None:
        """Show one step. ``build_image`` calls it."""
        if self._console.is_terminal:
            self._draw(step)
        else:
            self._say(step)

    def _draw(self, step: BuildStep) -> None:
        total = step.total or None
        for name, task in self._parts.items():
            if name != step.name and not self._bars.tasks[task].finished:
                self._bars.update(task, total=1, completed=1, detail="done")
        if step.name not in self._parts:
            self._parts[step.name] = self._bars.add_task(step.name, total=total, detail=step.detail)
        self._bars.update(self._parts[step.name], total=total, completed=step.done, detail=step.detail)

    def _say(self, step: BuildStep) -> None:
        count = f" {step.done}/{step.total}" if step.total else ""
        line = f"image: {step.name}{count}: {step.detail}"
        if line != self._said:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._said = line


@app.command(epilog="Example: cellblock image build")
def build(force: Force = False) -> None:
    """Build the sandbox image, unless the engine has one that matches the sources."""
    settings = Settings.load()
    client = engine.connect(settings.engine_timeout)
    try:
        with BuildDisplay(Console(stderr=True)) as display:
            image = build_image(EngineImages(client), settings, display, force)
    finally:
        client.close()
    _show(image, "built" if image.built else "is current")


@app.command(epilog="Example: cellblock image show")
def show(as_json: AsJson = False) -> None:
    """Show which image new kernels use. Exit status: 0 if it is current, 1 if it is missing or out of date."""
    settings = Settings.load()
    client = engine.connect(settings.engine_timeout)
    try:
        image = find_image(EngineImages(client), image_name(settings))
        current = find_current_image(EngineImages(client), settings)
    finally:
        client.close()
    if image is None:
        raise engine.image_missing(image_name(settings))
    if as_json:
        show_json({"name": image.name, "image_id": image.image_id, "bytes": image.size, "current": current is not None})
        raise typer.Exit(0 if current else 1)
    _show(image, "matches its sources" if current else "does not match its sources: run `cellblock image build`")
    if current is None:
        raise typer.Exit(1)


def _show(image: BuiltImage, state: str) -> None:
    typer.echo(f"image: {image.name} {state}; {image.size / 1e6:.0f} MB, {image.image_id.removeprefix('sha256:')[:12]}")
