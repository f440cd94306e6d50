"""`cellblock notebook`: runs, shows and compares .ipynb files. Their code runs in a sandbox only."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.syntax import Syntax

from orchestrator.cli.policies import PolicyName
from orchestrator.cli.render import console, errors, plain, run_async
from orchestrator.cli.run import limits_with
from orchestrator.errors import InvalidInputError, NotebookCreationError
from orchestrator.manager import AgentKernelManager
from orchestrator.notebooks import ipynb
from orchestrator.notebooks.cell import Cell, CellType
from orchestrator.notebooks.cellexecutionresult import CellExecutionResult
from orchestrator.notebooks.cellselector import CellSelector
from orchestrator.notebooks.cellview import outputs_view
from orchestrator.notebooks.comparing import CellChange, compare
from orchestrator.notebooks.notebookdocument import NotebookDocument
from orchestrator.notebooks.notebooks import Notebooks
from orchestrator.settings import Settings

_AGENT = "cellblock-notebook"  # followed by a random number, so that two runs are two agents
_TIMED_OUT = 124  # as of `timeout` in coreutils
_SHOWN = 2000  # tokens of the outputs of one cell
_LINE = 60  # characters of a cell's first line

app = typer.Typer(
    name="notebook",
    help="Run, show and compare notebooks.\n\nExample: cellblock notebook run analysis.ipynb",
    no_args_is_help=True,
)
File = Annotated[Path, typer.Argument(metavar="FILE.ipynb", help="The notebook.")]


@app.command()
def run(
    file: File,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to save it; replaced if it exists. Default: FILE.ipynb."),
    ] = None,
    inputs: Annotated[
        list[Path] | None, typer.Option("--file", help="A file to copy beside the notebook; repeatable.")
    ] = None,
    policy: PolicyName = "",
    timeout: Annotated[
        float | None, typer.Option(help="Each cell's time limit in seconds. Default: the policy's.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Run the other cells after one that failed.")
    ] = False,
) -> None:
    """Run all code of a notebook in a new sandbox, and save it with its outputs.

    The file is replaced as a whole. What others save in it meanwhile is merged.

    Exit status: 0 on success, 1 if a cell failed, 124 if one exceeded its time limit. It is saved in either case.

    Example: cellblock notebook run analysis.ipynb --file sales.csv --output done.ipynb
    """
    settings = Settings.load()
    if policy:
        settings = settings.model_copy(update={"policy": policy})
    for path in inputs or []:
        if not path.is_file():
            raise InvalidInputError(f"{path} is not a file. Nothing ran.")
    if output is not None and not output.parent.is_dir():
        raise InvalidInputError(
            f"there is no folder {output.parent} for {output.name}. Nothing ran.",
            remedy="Make the folder, or choose another --output.",
        )
    raise typer.Exit(run_async(_run(file, output, inputs or [], settings, timeout, keep_going=keep_going)))


@app.command()
def show(
    file: File,
    outputs: Annotated[bool, typer.Option("--outputs/--no-outputs", help="Whether to show outputs.")] = True,
) -> None:
    """Show a notebook's cells as text. Nothing of it is run or rendered; pictures are named.

    Example: cellblock notebook show analysis.ipynb
    """
    for index, cell in enumerate(_read(file).cells):
        count = "" if cell.execution_count is None else f" [{cell.execution_count}]"
        console.print(f"[bold]{index}[/] [dim]{cell.id} {cell.cell_type.value}{escape(count)}[/]")
        _show_source(cell)
        if outputs:
            _show_outputs(cell.outputs)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A.ipynb", help="The first notebook.")],
    second: Annotated[Path, typer.Argument(metavar="B.ipynb", help="The second notebook.")],
) -> None:
    """Compare two notebooks cell by cell: what was added, removed, moved and edited, and which outputs differ.

    Run times and execution counts are not compared.

    Exit status: 0 if they are the same, 1 if they differ or cannot be read.

    Example: cellblock notebook diff before.ipynb after.ipynb
    """
    changes = compare(_read(first), _read(second))
    for change in changes:
        _show_change(change)
    raise typer.Exit(1 if changes else 0)


async def _run(
    file: Path,
    output: Path | None,
    inputs: Sequence[Path],
    settings: Settings,
    timeout: float | None,
    *,
    keep_going: bool,
) -> int:
    limits = None if timeout is None else limits_with(settings, timeout)
    _read(file)  # says what is wrong with it before a kernel starts
    manager = AgentKernelManager(max_kernels=1, resource_limits=limits, settings=settings)
    async with manager, manager.acquire_kernel(f"{_AGENT}-{secrets.token_hex(4)}") as (_kernel, session):
        for path in inputs:
            await manager.put_file(session, path, path.name)
        notebooks = Notebooks(manager, session)
        name = await notebooks.open_notebook(str(file))
        try:
            return await _run_cells(notebooks, name, keep_going=keep_going)
        finally:
            target = file if output is None else output
            await notebooks.save_notebook(name, str(target), overwrite=output is not None)
            errors.print(f"saved {escape(plain(str(target)))}", style="dim", soft_wrap=True)


async def _run_cells(notebooks: Notebooks, name: str, *, keep_going: bool) -> int:
    status = 0
    cells = (await notebooks.get_notebook(name)).cells
    for index, cell in enumerate(cells):
        if not cell.is_runnable:
            continue
        (done,) = await notebooks.execute_cells(name, CellSelector([cell.id]))
        _report(index, len(cells), cell, done)
        if not done.success:
            assert done.result is not None
            status = _TIMED_OUT if done.result.outcome == "timeout" else 1
            _show_outputs(done.outputs[-1:])
            if not keep_going or done.result.kernel_state == "dead":
                break
    return status


def _report(index: int, total: int, cell: Cell, done: CellExecutionResult) -> None:
    sign = "[green]ok[/]" if done.success else f"[red]{done.result.outcome if done.result else 'error'}[/]"
    line = escape(_first_line(cell.source))
    console.print(f"{index:>{len(str(total))}}/{total - 1} {sign} {done.execution_time_ms / 1000:6.2f} s  {line}")


def _show_source(cell: Cell) -> None:
    source = plain(cell.source)
    if console.is_terminal and cell.cell_type is CellType.CODE:
        console.print(Syntax(source, "python", theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        console.print(source, markup=False)


def _show_outputs(outputs: Sequence[Mapping[str, Any]]) -> None:
    for view in outputs_view(outputs, _SHOWN):
        style = "red" if view["type"] == "error" else "dim"
        console.print(indent(plain(view["text"]), "  "), style=style, markup=False)


def _show_change(change: CellChange) -> None:
    cell = change.after or change.before
    assert cell is not None
    console.print(f"[bold]{change.kind}[/] {change.index} [dim]{cell.id}[/]  {escape(_first_line(cell.source))}")
    if change.kind in ("added", "removed", "edited"):
        for line in change.lines():
            style = {"-": "red", "+": "green"}.get(line[:1], "dim")
            console.print(f"  {plain(line)}", style=style, markup=False)


def _first_line(source: str) -> str:
    line = next((line for line in source.splitlines() if line.strip()), "")
    return plain(line if len(line) <= _LINE else f"{line[: _LINE - 1]}…")


def _read(path: Path) -> NotebookDocument:
    """Return the notebook in a file.

    Raises:
        NotebookCreationError: there is no such file, or it is no notebook.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return ipynb.parse(file.read(ipynb.LARGEST_FILE + 1), path.name)
    except FileNotFoundError:
        raise NotebookCreationError(f"there is no file {path}.") from None
    except NotebookCreationError as error:
        raise NotebookCreationError(f"{path}: {error.message}", remedy=error.remedy) from None
