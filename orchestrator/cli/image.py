"""`cellblock image`: builds the sandbox image, and shows whether the engine has a current one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from orchestrator.cli.policies import PolicyName
from orchestrator.cli.render import AsJson, errors, plain, show_json, show_table
from orchestrator.container import engine
from orchestrator.container.engineimages import EngineImages
from orchestrator.image.build import BuildStep, BuiltImage, build_image, find_current_image, find_image
from orchestrator.image.inventory import ListedImage, list_images, remove_images, remove_unused, unused
from orchestrator.image.locking import locked
from orchestrator.image.recipe import Recipe
from orchestrator.policy.packagelock import SHIPPED
from orchestrator.policy.policy import Policy
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings

app = typer.Typer(
    name="image",
    help="Build, show and remove the images that sandboxes run.",
    epilog="Example: cellblock image build",
    no_args_is_help=True,
)

Force = Annotated[bool, typer.Option("--force", help="Rebuild the image and its base even if they are current.")]
Requirements = Annotated[
    str | None,
    typer.Option(
        "--requirements", "-r", metavar="FILE", help='More packages: names or a lock file; or "full", the shipped one.'
    ),
]
PythonVersion = Annotated[
    Literal["", "3.11", "3.12", "3.13"],
    typer.Option("--python", help="The sandbox's Python. Default: the policy's, else that of the host's Debian."),
]


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


@app.command(epilog="Example: cellblock image build --requirements packages.txt")
def build(
    policy: PolicyName = "",
    requirements: Requirements = None,
    python: PythonVersion = "",
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Choose the newest versions of the names again.")] = False,
    force: Force = False,
) -> None:
    """Build the image of a policy, unless the engine has one that matches its sources.

    With --requirements, the image has the packages of that file too: names, which are locked into NAME.lock.txt beside
    the file, or a lock file with hashes. In a policy, image.requirements then names the lock file.
    """
    if requirements == "":
        raise typer.BadParameter("the name of the file is empty.", param_hint="--requirements")
    settings = Settings.load()
    wanted = _wanted(settings, policy, python, without_lock=requirements is not None)
    if requirements is not None:
        recipe = Recipe.of(settings, wanted.model_copy(update={"requirements": ""}))
        lock = requirements if requirements == SHIPPED else _lock(Path(requirements), recipe, upgrade)
        wanted = wanted.model_copy(update={"requirements": lock})
    with _images() as (images, settings), BuildDisplay(Console(stderr=True)) as display:
        image = build_image(images, Recipe.of(settings, wanted), display, force)
    _show(image, "built" if image.built else "is current")


@app.command(epilog="Example: cellblock image show")
def show(policy: PolicyName = "", as_json: AsJson = False) -> None:
    """Show which image a policy's kernels use. Exit status: 0 if it is current, 1 if it is missing or out of date."""
    with _images() as (images, settings):
        recipe = Recipe.of(settings, _wanted(settings, policy, ""))
        image = find_image(images, recipe.name)
        current = find_current_image(images, recipe)
    if image is None:
        raise engine.image_missing(recipe.name)
    if as_json:
        show_json({"name": image.name, "image_id": image.image_id, "bytes": image.size, "current": current is not None})
        raise typer.Exit(0 if current else 1)
    _show(image, "matches its sources" if current else "does not match its sources: run `cellblock image build`")
    if current is None:
        raise typer.Exit(1)


@app.command("list", epilog="Example: cellblock image list")
def list_command(as_json: AsJson = False) -> None:
    """List the images that Cellblock has made in this engine, and which of them are in use."""
    with _images() as (images, settings):
        found = list_images(images, settings)
    if as_json:
        show_json([asdict(each) for each in found])
        return
    table = Table("name", "kind", "Python", Column("packages", justify="right"), Column("MB", justify="right"),
                  "made (UTC)", "state")  # fmt: skip
    for each in found:
        table.add_row(escape(each.name), *_columns(each))
    show_table(table)


@app.command(epilog="Example: cellblock image rm cellblock-sandbox:0123456789ab-0123456789ab")
def rm(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names, tags or identifiers.")]) -> None:
    """Remove images of Cellblock. One that a kernel runs from, or another is built on, is refused."""
    with _images() as (images, settings):
        removed = remove_images(images, list_images(images, settings), names)
    for each in removed:
        typer.echo(f"image: {each.name} removed")


@app.command(epilog="Example: cellblock image prune --dry-run")
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also remove current images with more packages.")] = False,
) -> None:
    """Remove the images that no kernel runs from and that this version of Cellblock would not use."""
    with _images() as (images, settings):
        listed = list_images(images, settings)
        found = unused(listed, everything)
        kept = [] if dry_run else remove_unused(images, listed, found)
    for each in found:
        if each not in kept:
            typer.echo(f"image: {each.name} {'would be removed' if dry_run else 'removed'}")
    for each in kept:
        typer.echo(f"image: {each.name} is still in use, and stays")
    if not found:
        typer.echo("image: there is nothing to remove")


def _wanted(settings: Settings, policy: str, python: str, *, without_lock: bool = False) -> Image:
    image = Policy.load(policy or settings.policy, without_lock=without_lock).image
    return image.model_copy(update={"python": python}) if python else image


def _lock(listed: Path, recipe: Recipe, upgrade: bool) -> str:
    """Return the path of the lock file of requirements, after writing it if they are names."""
    with errors.status("choosing versions"):
        path = locked(listed, recipe, upgrade).absolute()
    if path != listed.absolute():
        errors.print(f"image: {escape(plain(listed.name))} is locked in {escape(plain(str(path)))}")
        errors.print(f'  A policy uses it with: \\[image] requirements = "{escape(plain(path.name))}"')
    return str(path)


@contextlib.contextmanager
def _images() -> Iterator[tuple[EngineImages, Settings]]:
    settings = Settings.load()
    with contextlib.closing(engine.connect(settings.engine_timeout)) as client:
        yield EngineImages(client), settings


def _columns(image: ListedImage) -> tuple[str, ...]:
    made = datetime.fromtimestamp(image.created, UTC).strftime("%Y-%m-%d %H:%M")
    used = f"{image.containers} containers" if image.containers else ""
    state = ", ".join(filter(None, ["current" if image.is_current else "", used])) or "unused"
    return image.kind, image.python, str(image.packages or ""), f"{image.size / 1e6:.0f}", made, state


def _show(image: BuiltImage, state: str) -> None:
    typer.echo(f"image: {image.name} {state}; {image.size / 1e6:.0f} MB, {image.image_id.removeprefix('sha256:')[:12]}")
