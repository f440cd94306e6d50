"""The `cellblock` command: one module per subcommand, joined here."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli import (
    act,
    auditlog,
    cluster,
    daemon,
    doctor,
    execute,
    image,
    kernelspeccommand,
    mcp,
    notebookcommands,
    policies,
    prune,
    ps,
    run,
    serve,
    sessions,
    tokens,
    top,
    verify,
)
from orchestrator.cli.render import complain
from orchestrator.errors import CellblockError, InvalidInputError
from orchestrator.logs import configure
from orchestrator.settings import Settings

app = typer.Typer(
    name="cellblock",
    help="Run code you do not trust: a Jupyter kernel in a locked container.\n\nExample: cellblock run analysis.py "
    "--file data.csv",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cellblock {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options of the command itself."""


app.command(name="run", context_settings={"ignore_unknown_options": True})(run.run)
app.command(name="ps")(ps.ps)
app.command(name="top")(top.top)
app.command(name="interrupt")(act.interrupt)
app.command(name="hibernate")(act.hibernate)
app.command(name="kill")(act.kill)
app.command(name="exec", context_settings={"ignore_unknown_options": True})(execute.execute)
app.command(name="shell")(execute.shell)
app.command(name="prune")(prune.prune)
app.command(name="mcp")(mcp.mcp)
app.command(name="doctor")(doctor.doctor)
app.command(name="verify")(verify.verify)
app.command(name="serve")(serve.serve)
app.add_typer(tokens.app, name="token")
app.add_typer(cluster.app, name="cluster")
app.add_typer(auditlog.app, name="audit")
app.add_typer(sessions.app, name="sessions")
app.add_typer(notebookcommands.app, name="notebook")
app.add_typer(policies.app, name="policy")
app.add_typer(image.app, name="image")
app.add_typer(kernelspeccommand.app, name="kernelspec")
app.add_typer(daemon.app, name="engine")


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    configure("warning", "text")  # for what is reported while the settings are read
    try:
        settings = Settings.load()
        configure(settings.log_level, settings.log_format)
        app()
    except CellblockError as error:
        complain(error)
        sys.exit(1)
    except OSError as error:  # a file that a command reads or writes, or .env
        if error.filename is None:
            raise
        complain(_inaccessible(error))
        sys.exit(1)


def _inaccessible(error: OSError) -> CellblockError:
    remedy = "Run the command as root, or as the user to whom the file belongs."
    denied = isinstance(error, PermissionError)
    return InvalidInputError(f"{error.filename}: {error.strerror}.", remedy=remedy if denied else "")


if __name__ == "__main__":
    main()
