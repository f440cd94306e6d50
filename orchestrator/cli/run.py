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
from rich.markup import escape

from orchestrator.cli.policies import PolicyName
from orchestrator.cli.prompt import Prompt
from orchestrator.cli.render import complain, errors, plain, run_async
from orchestrator.cli.verdict import gap, needs_verdict, verdict
from orchestrator.cli.workfiles import Listing, failure, fetch_changed, list_work
from orchestrator.errors import (
    CellblockError,
    FileTransferError,
    InvalidCodeError,
    InvalidInputError,
    KernelDiedError,
    KernelTimeoutError,
    SessionEndedError,
)
from orchestrator.limits import MIB, KernelResourceLimits
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
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings

_AGENT = "cellblock-run"  # followed by a random number, so that two runs are two agents
_MOST_PICTURES = 1000
_STDIN = Path("-")
_LONGEST_SCRIPT = 16 * MIB  # bytes of a script from standard input
_EXIT = "ScriptExit"  # the error with which _LAUNCH reports an exit status

# As the interpreter does: None is 0, a number is the status, and anything else is printed. An exception of its own
# carries the status, because IPython answers SystemExit with advice on how to leave IPython.
_LAUNCH = """\
import runpy, sys
class ScriptExit(Exception):
    pass
sys.argv = {argv}
_status = 0
try:
    _ = runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as _stop:
    if isinstance(_stop.code, int):
        _status = _stop.code & 0xFF
    elif _stop.code is not None:
        print(_stop.code, file=sys.stderr)
        _status = 1
if _status:
    raise ScriptExit(_status) from None
"""


def run(
    script: Annotated[Path, typer.Argument(metavar="FILE.py", help="The script to run; - reads it from stdin.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="The script's arguments and options, as in sys.argv[1:].")
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", help="A file to copy beside the script; repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder for files that the script makes and pictures that it shows."),
    ] = None,
    policy: PolicyName = "",
    timeout: Annotated[
        float | None, typer.Option(help="The script's time limit in seconds. Default: the policy's.")
    ] = None,
) -> None:
    """Run a Python script in a locked container: no network, a read-only root file system, resource limits.

    Prints the script's output as it arrives. If the policy enables channels.stdin, input() reads standard input.

    Options after the script that are not of this command go to the script, and so does everything after "--":
    cellblock run train.py --epochs 3 -- --timeout 5. Without "--", the options listed below are this command's own
    wherever they stand.

    With --out, files in /work that are new or changed are copied: at most 1000 files and 1 GiB, no links, no hidden
    names. Files in the folder are replaced, except the script and its --file inputs. Use a folder for nothing else.

    Exit status: 0 on success, n after sys.exit(n), 1 if the script failed, 124 if it exceeded its time limit.

    Example: cellblock run analysis.py --file sales.xlsx --out pictures
    """
    if str(script).startswith("-") and script != _STDIN:
        raise typer.BadParameter(f"there is no option {plain(str(script))}, and no script was named before it.")
    settings = Settings.load()
    if policy:
        settings = settings.model_copy(update={"policy": policy})
    limits = None if timeout is None else limits_with(settings, timeout)
    inputs = _inputs(script, file or [])
    raise typer.Exit(run_async(_run(inputs, [str(script.name), *(arguments or [])], out, settings, limits)))


async def _run(
    inputs: dict[str, Path | bytes],
    argv: list[str],
    out: Path | None,
    settings: Settings,
    limits: KernelResourceLimits | None,
) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # do not fail on a character that the terminal cannot show
    manager = AgentKernelManager(max_kernels=1, resource_limits=limits, settings=settings)
    async with manager, manager.acquire_kernel(f"{_AGENT}-{secrets.token_hex(4)}") as (_kernel, session):
        for name, content in inputs.items():
            await manager.put_file(session, content, name)
        before = None if out is None else await list_work(manager, session)
        printer = _Printer(out)
        try:
            code, answer = _launch(argv), Prompt().answer
            async with contextlib.aclosing(manager.stream_code(session, code, answer=answer)) as events:
                async for event in events:
                    printer.show(event)
        except KernelTimeoutError as error:
            errors.print(verdict(error.result))
            complain(error)
            printer.status = 124
        if out is not None and before is not None:
            keep = [path for path in inputs.values() if isinstance(path, Path)]
            printer.status = await _fetch(manager, session, before, out, keep) or printer.status
        return printer.status


async def _fetch(
    manager: AgentKernelManager, session: KernelSession, before: Listing, out: Path, keep: list[Path]
) -> int:
    """Copy the files that the script made. Return 1 if none can be copied, else 0."""
    try:
        written, left = await fetch_changed(manager, session, before, out, keep)
    except (FileTransferError, KernelDiedError, SessionEndedError) as error:
        errors.print(escape(plain(failure(error))), style="yellow")
        return 0 if isinstance(error, KernelDiedError | SessionEndedError) else 1
    for path in written:
        errors.print(f"saved {escape(plain(str(path)))}", style="dim", soft_wrap=True)
    for said in left:
        errors.print(f"not saved: {escape(plain(said))}", style="yellow", soft_wrap=True)
    return 0


def limits_with(settings: Settings, timeout: float) -> KernelResourceLimits:
    """Return the policy's limits with another time limit, in seconds.

    Raises:
        typer.BadParameter: it is not above 0.
    """
    try:
        return replace(Policy.load(settings.policy).resource_limits(), max_execution_time=timeout)
    except CellblockError:
        raise
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--timeout") from error


def _inputs(script: Path, files: list[Path]) -> dict[str, Path | bytes]:
    """Check the files before anything starts, and return them by their names in the sandbox, the script first.

    Raises:
        InvalidInputError: a file does not exist or is not a regular file, or two files have the same name.
        InvalidCodeError: the script cannot be read, or is not UTF-8 text.
    """
    names: dict[str, Path] = {}
    for path in files if script == _STDIN else [script, *files]:
        if not path.is_file():
            kind = "is a directory" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
            raise InvalidInputError(f"{path} {kind}.")
        if path.name in names and names[path.name] != path:
            raise InvalidInputError(f"{names[path.name]} and {path} would both be named {path.name} in the sandbox.")
        names[path.name] = path
    try:
        source = _standard_input() if script == _STDIN else script.read_bytes()
        source.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCodeError(f"{script} is not a Python script: {error}.") from error
    return {script.name: source, **names} if script == _STDIN else dict(names)


def _standard_input() -> bytes:
    source = b"" if sys.stdin is None else sys.stdin.buffer.read(_LONGEST_SCRIPT + 1)
    if len(source) > _LONGEST_SCRIPT:
        raise InvalidCodeError(f"the script from standard input has more than {_LONGEST_SCRIPT // MIB} MiB.")
    return source


def _launch(argv: list[str]) -> str:
    return _LAUNCH.format(argv=ascii(argv))


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
            if result.outcome == "error" and result.error.ename != _EXIT:
                said = result.error.traceback_text or f"{result.error.ename}: {result.error.evalue}"
                _write(sys.stderr, said.rstrip("\n") + "\n")
        if needs_verdict(result):
            errors.print(verdict(result))


def _exit_status(error: ErrorOutput) -> int:
    if error.ename == _EXIT and error.evalue.isdecimal() and len(error.evalue) <= 3:
        return int(error.evalue) & 0xFF
    return 1


def _write(stream: TextIO, text: str) -> None:
    stream.write(plain(text) if stream.isatty() else text)
    stream.flush()
