"""Three agents analyse one workbook at the same time, each in its own locked kernel.

    python examples/spreadsheet_agents.py BOOK.xlsx

The formula agent analyses the formulas, the pattern agent the tables, and the picture agent draws charts. Only the
sandboxes open the workbook; the host copies the file into them, and validates the agents' findings before it shows
them. ``spreadsheet/inside/`` is the agents' code; the rest of ``spreadsheet/`` runs on the host.

With ``--notebooks`` each agent works on a living notebook: it adds its cells to it and runs them there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from spreadsheet import report
from spreadsheet.agents import AGENTS, Agent, Outcome, modules
from spreadsheet.findings import Findings, PictureFindings, UnexpectedFindingsError, checked
from spreadsheet.progress import Progress
from spreadsheet.terminal import clean

from orchestrator import (
    AgentKernelManager,
    CellblockError,
    CellType,
    Event,
    KernelResourceLimits,
    KernelSession,
    Notebooks,
)
from orchestrator.output.events import CellFinished, DisplayData, StreamOutput

LIMITS = KernelResourceLimits(max_memory_mb=2048, max_cpu_percent=100, max_execution_time=300)
Run = Callable[[AgentKernelManager, KernelSession, Agent, Progress, Path], Awaitable[Findings]]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 20 * 1024 * 1024  # bytes


class AgentFailedError(Exception):
    """A cell of the agent failed, or the agent returned something unusable."""


async def analyse(
    book: Path, out: Path, console: Console, agents: Sequence[Agent] = AGENTS, *, notebooks: bool = False
) -> tuple[str, list[Outcome]]:
    """Run the agents on the workbook; return the container runtime and the outcome of each agent."""
    run = run_in_notebook if notebooks else run_in_session
    async with AgentKernelManager(max_kernels=len(agents), resource_limits=LIMITS) as manager:
        with Progress(console, agents) as progress:
            work = [run_agent(manager, agent, book, out, progress, run) for agent in agents]
            return manager.runtime, list(await asyncio.gather(*work))


async def run_agent(
    manager: AgentKernelManager, agent: Agent, book: Path, out: Path, progress: Progress, run: Run
) -> Outcome:
    """Run one agent and return its outcome. If it fails, the other agents go on."""
    outcome, notebook = Outcome(agent), out / f"{agent.name}.ipynb"
    started = time.monotonic()
    try:
        async with manager.acquire_kernel(agent.name, timeout=120) as (_, session):
            progress.begin(agent, "copy the workbook into the sandbox")
            await manager.put_file(session, book, "book.xlsx")
            for module, place in modules():
                await manager.put_file(session, module, place)
            try:
                outcome.findings = await run(manager, session, agent, progress, notebook)
            finally:
                outcome.notebook = notebook
            if isinstance(outcome.findings, PictureFindings):
                outcome.pictures = await fetch_pictures(manager, session, outcome.findings, out)
    except (CellblockError, AgentFailedError, UnexpectedFindingsError, OSError) as error:
        outcome.failure = str(error)
    outcome.seconds = time.monotonic() - started
    progress.end(agent, failed=bool(outcome.failure))
    return outcome


async def run_in_session(
    manager: AgentKernelManager, session: KernelSession, agent: Agent, progress: Progress, path: Path
) -> Findings:
    """Run the agent's cells in order, and return the findings. The session's history is saved as a notebook."""
    try:
        return await run_cells(manager, session, agent, progress)
    finally:
        manager.save_session_as_notebook(session, path, title=agent.task)


async def run_in_notebook(
    manager: AgentKernelManager, session: KernelSession, agent: Agent, progress: Progress, path: Path
) -> Findings:
    """Do the same on a living notebook: its outputs are the findings, and it is saved as it is."""

    def listen(event: Event) -> None:
        if isinstance(event, StreamOutput) and event.name == "stdout":
            progress.say(agent, event.text)

    notebooks, displayed = Notebooks(manager, session), None
    name = await notebooks.create_notebook()
    try:
        await notebooks.add_cell(name, f"# {agent.task}", CellType.MARKDOWN)
        for cell in agent.cells():
            progress.step(agent, cell.title)
            done = await notebooks.execute_cell(name, cell.code, listen=listen)
            if done.error is not None:
                raise AgentFailedError(f"{cell.title}: {done.error.ename}: {done.error.evalue}")
            for output in done.outputs:
                displayed = output.get("data", {}).get("application/json", displayed)
        return checked(agent.shape, displayed)
    finally:
        await notebooks.save_notebook(name, str(path), overwrite=True)


async def run_cells(manager: AgentKernelManager, session: KernelSession, agent: Agent, progress: Progress) -> Findings:
    """Run the agent's cells in order, and return the validated findings that the last cell displays."""
    displayed: object = None
    for cell in agent.cells():
        progress.step(agent, cell.title)
        async with aclosing(manager.stream_code(session, cell.code)) as events:
            async for event in events:
                match event:
                    case StreamOutput(name="stdout", text=text):
                        progress.say(agent, text)
                    case DisplayData(data=data) if "application/json" in data:
                        displayed = data["application/json"]
                    case CellFinished(result=result) if result.error is not None:
                        raise AgentFailedError(f"{cell.title}: {result.error.ename}: {result.error.evalue}")
    return checked(agent.shape, displayed)


async def fetch_pictures(
    manager: AgentKernelManager, session: KernelSession, findings: PictureFindings, out: Path
) -> list[Path]:
    """Copy the pictures out of the sandbox and return their paths. A file that is not a PNG is deleted."""
    paths = []
    for picture in findings.pictures:
        path = out / picture.file
        await manager.get_file(session, picture.file, path, limit=LARGEST_PICTURE)
        with path.open("rb") as file:
            is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
        if not is_png:
            path.unlink()
            raise AgentFailedError(f"{picture.file} is not a PNG picture")
        paths.append(path)
    return paths


def save_json(path: Path, book: Path, runtime: str, outcomes: list[Outcome]) -> None:
    agents = {
        outcome.agent.name: {
            "status": "error" if outcome.failure else "ok",
            "failure": outcome.failure,
            "seconds": round(outcome.seconds, 2),
            "notebook": str(outcome.notebook) if outcome.notebook else None,
            "pictures": [str(picture) for picture in outcome.pictures],
            "findings": outcome.findings.model_dump() if outcome.findings else None,
        }
        for outcome in outcomes
    }
    path.write_text(json.dumps({"book": str(book), "runtime": runtime, "agents": agents}, indent=2) + "\n")


def mistake(options: argparse.Namespace) -> str:
    """Return what is wrong with the arguments, or an empty string."""
    if options.json is not None and not options.json.absolute().parent.is_dir():
        return f"there is no directory for {options.json}."
    return check_book(options.book) if options.book is not None else ""


def check_book(path: Path) -> str:
    """Return what is wrong with the workbook's path, or an empty string. Reads only the archive's directory."""
    if path.is_dir():
        return f"{path} is a directory; name a workbook (.xlsx)."
    if not path.exists():
        return f"there is no file {path}."
    if not path.is_file():
        return f"{path} is not a file."
    if not zipfile.is_zipfile(path):
        return f"{path} is not a workbook in the .xlsx format; an .xls or a .csv file must be saved as .xlsx first."
    return ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Three agents analyse a workbook, each in its own locked kernel.",
        epilog="example: python examples/spreadsheet_agents.py budget.xlsx --out /tmp/budget",
    )
    parser.add_argument(
        "book", nargs="?", type=Path, metavar="BOOK.xlsx", help="default: a generated workbook with planted faults"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for pictures and notebooks; default: out/<book name>"
    )
    parser.add_argument("--notebooks", action="store_true", help="let each agent work on a living notebook")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings as JSON")
    return parser.parse_args()


def prepare(book: Path | None, out: Path | None) -> tuple[Path, Path]:
    """Return the paths of the workbook and of the output folder, and create those that do not exist."""
    if book is not None:
        folder = out or Path("out") / book.stem
        folder.mkdir(parents=True, exist_ok=True)
        return book, folder
    from spreadsheet import make_workbook  # needs openpyxl, which is not needed otherwise

    folder = out or Path("out") / "planted_faults"
    folder.mkdir(parents=True, exist_ok=True)
    return make_workbook.write(folder / "planted_faults.xlsx"), folder


def main() -> int:
    """Run the example. Exit status: 0 if every agent succeeded, 1 if one failed, 2 for wrong arguments."""
    options = arguments()
    if fault := mistake(options):
        print(clean(f"error: {fault}", 400), file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        book, out = prepare(options.book, options.out)
        runtime, outcomes = asyncio.run(analyse(book, out, console, notebooks=options.notebooks))
        report.show(console, outcomes)
        console.print(f"\nRuntime: {runtime}. Pictures and notebooks are in {out}/", markup=False)
        if options.json is not None:
            save_json(options.json, book, runtime, outcomes)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (CellblockError, OSError) as error:
        print(clean(f"error: {error}", 1000), file=sys.stderr)
        return 1
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
