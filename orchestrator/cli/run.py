"""`cellblock run`: runs one script in a new sandbox."""

from __future__ import annotations

import base64
import contextlib
import secrets
import sys
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, TextIO

import typer

from orchestrator.cli.prompt import Prompt
from orchestrator.cli.render import complain, errors, plain, run_async
from orchestrator.cli.verdict import gap, needs_verdict, verdict
from orchestrator.errors import CellblockError, InvalidCodeError, InvalidInputError, KernelTimeoutError
from orchestrator.limits import KernelResourceLimits
from orchestrator.manager import AgentKernelManager
from orchestrator.output.events import (
    CellFinished,
    DisplayData,
    ErrorOutput,
    Event,
    ExecutionResult,
    OutputDropped,
    StreamOutput,
)
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings

_AGENT = "cellblock-run"  # followed by a random number, so that two runs are two agents
_MOST_PICTURES = 1000


def run(
    script: Annotated[Path, typer.Argument(metavar="FILE.py", help="The script to run.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="The script's arguments, as in sys.argv[1:].")] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", help="A file to copy beside the script; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder in which to save the pictures (PNG) that the script shows.")
    ] = None,
    policy: Annotated[str, typer.Option(help="A policy's name or file. Default: CELLBLOCK_POLICY.")] = "",
    timeout: Annotated[
        float | None, typer.Option(help="The script's time limit in seconds. Default: the policy's.")
    ] = None,
) -> None:
    """Run a Python script in a locked container: no network, a read-only root file system, resource limits.

    Prints the script's output as it arrives. If the policy enables channels.stdin, input() reads standard input.

    Exit status: 0 on success, n after sys.exit(n), 1 if the script failed, 124 if it exceeded its time limit.

    Example: cellblock run analysis.py --file sales.xlsx --out pictures
    """
    settings = Settings.load()
    if policy:
        settings = settings.model_copy(update={"policy": policy})
    limits = None if timeout is None else _limits(settings, timeout)
    raise typer.Exit(run_async(_run(script, arguments or [], file or [], out, settings, limits)))


async def _run(
    script: Path,
    arguments: list[str],
    files: list[Path],
    out: Path | None,
    settings: Settings,
    limits: KernelResourceLimits | None,
) -> int:
    inputs = _inputs([script, *files])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # do not fail on a character that the terminal cannot show
    manager = AgentKernelManager(max_kernels=1, resource_limits=limits, settings=settings)
    async with manager, manager.acquire_kernel(f"{_AGENT}-{secrets.token_hex(4)}") as (_kernel, session):
        for path in inputs:
            await manager.put_file(session, path, path.name)
        printer = _Printer(out)
        try:
            code, answer = _launch(script.name, arguments), Prompt().answer
            async with contextlib.aclosing(manager.stream_code(session, code, answer=answer)) as events:
                async for event in events:
                    printer.show(event)
        except KernelTimeoutError as error:
            errors.print(verdict(error.result))
            complain(error)
            return 124
        return printer.status


def _limits(settings: Settings, timeout: float) -> KernelResourceLimits:
    try:
        return replace(Policy.load(settings.policy).resource_limits(), max_execution_time=timeout)
    except CellblockError:
        raise
    except ValueError as error:
        raise InvalidInputError(f"--timeout: {error}.") from error


def _inputs(paths: list[Path]) -> list[Path]:
    """Check the files before anything starts, and return them without repetitions.

    Raises:
        InvalidInputError: a file does not exist or is not a regular file, or two files have the same name.
        InvalidCodeError: the script cannot be read, or is not UTF-8 text.
    """
    names: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            kind = "is a directory" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
            raise InvalidInputError(f"{path} {kind}.")
        if path.name in names and names[path.name] != path:
            raise InvalidInputError(f"{names[path.name]} and {path} would both be named {path.name} in the sandbox.")
        names[path.name] = path
    try:
        paths[0].read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCodeError(f"{paths[0]} is not a Python script: {error}.") from error
    return list(names.values())


def _launch(name: str, arguments: list[str]) -> str:
    argv = ascii([name, *arguments])
    return f"import runpy, sys\nsys.argv = {argv}\n_ = runpy.run_path(sys.argv[0], run_name='__main__')"


class _Printer:
    """Prints events, saves pictures, and keeps the exit status."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._pictures = 0
        self.status = 0

    def show(self, event: Event) -> None:
        match event:
            case StreamOutput():
                _write(sys.stdout if event.name == "stdout" else sys.stderr, event.text)
            case DisplayData():
                self._display(event)
            case OutputDropped():
                errors.print(gap(event))
            case CellFinished():
                self._finish(event.result)

    def _display(self, event: DisplayData) -> None:
        picture = event.data.get("image/png")
        if self._out is not None and isinstance(picture, str) and self._pictures < _MOST_PICTURES:
            try:
                content = base64.b64decode(picture)
            except ValueError:  # the sandbox may send text that is not base64
                return
            self._pictures += 1
            path = self._out / f"picture-{self._pictures}.png"
            try:
                self._out.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError as error:
                raise InvalidInputError(f"{path} cannot be written: {error.strerror}.") from error
            errors.print(f"saved {path}", style="dim")
            return
        _write(sys.stdout, str(event.data.get("text/plain", "")) + "\n")

    def _finish(self, result: ExecutionResult) -> None:
        if result.error is not None:
            self.status = _exit_status(result.error)
            if result.outcome == "error" and result.error.ename != "SystemExit":
                said = result.error.traceback_text or f"{result.error.ename}: {result.error.evalue}"
                _write(sys.stderr, said.rstrip("\n") + "\n")
        if needs_verdict(result):
            errors.print(verdict(result))


def _exit_status(error: ErrorOutput) -> int:
    if error.ename == "SystemExit":
        if error.evalue in ("", "None"):
            return 0
        return int(error.evalue) & 0xFF if error.evalue.isdecimal() and len(error.evalue) < 6 else 1
    return 1


def _write(stream: TextIO, text: str) -> None:
    stream.write(plain(text) if stream.isatty() else text)
    stream.flush()
