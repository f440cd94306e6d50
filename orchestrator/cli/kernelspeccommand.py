"""`cellblock kernelspec`: installs, lists and removes kernelspecs, with which Jupyter's programs reach sandboxes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.policies import existing_policy
from orchestrator.cli.render import AsJson, console, errors, plain, show_json, show_table
from orchestrator.jupyter import kernelspec
from orchestrator.policy.policy import Policy

app = typer.Typer(
    help="Install, list and remove kernelspecs: JupyterLab, VS Code, papermill and others then run in sandboxes.\n\n"
    "Example: cellblock kernelspec install",
    no_args_is_help=True,
)
_ACTIVE = ("text/html", "image/svg+xml", "application/javascript")


@app.command()
def install(
    policy: Annotated[
        str, typer.Option("--policy", help="A policy's name or file.", callback=existing_policy)
    ] = kernelspec.DEFAULT_POLICY,
    name: Annotated[str, typer.Option(help="The kernelspec's name, as in --kernel NAME.")] = kernelspec.DEFAULT_NAME,
    display_name: Annotated[str, typer.Option(help="What Jupyter shows.")] = "",
    user: Annotated[bool, typer.Option("--user", help="For this user, which is the default.")] = False,
    sys_prefix: Annotated[bool, typer.Option("--sys-prefix", help="For the environment of this command.")] = False,
    prefix: Annotated[str, typer.Option(help="For the environment in this folder.")] = "",
) -> None:
    """Install a kernelspec: whatever chooses it runs its cells in a sandbox.

    The default policy, notebook, lets text and pictures through. HTML, SVG, JavaScript and widgets run in Jupyter's
    page, which can do on this machine what you can. So choose a policy that allows them for your own code only.

    Example: cellblock kernelspec install --policy local-dev --name mine
    """
    if sum((user, sys_prefix, bool(prefix))) > 1:
        raise typer.BadParameter("give one of --user, --sys-prefix and --prefix.")
    place = sys.prefix if sys_prefix else prefix or None
    folder = kernelspec.install(name, policy, display_name=display_name, user=place is None, prefix=place)
    console.print(f"installed kernelspec {escape(plain(name))} in {escape(plain(str(folder)))}", soft_wrap=True)
    chosen = Policy.load(policy)
    if chosen.channels.comms or any(map(chosen.output.passes, _ACTIVE)):
        errors.print(
            f"Policy {escape(plain(policy))} lets a cell show content that runs in Jupyter's page. That page can do on "
            "this machine what you can. Use it for your own code.",
            style="yellow",
        )


@app.command(name="list")
def list_specs(as_json: AsJson = False) -> None:
    """List the kernelspecs of Cellblock that Jupyter finds.

    Example: cellblock kernelspec list
    """
    found = kernelspec.installed()
    if as_json:
        show_json([asdict(spec) for spec in found])
        return
    if not found:
        console.print("no kernelspecs")
        return
    table = Table("name", "shown as", "policy", "folder")
    for spec in found:
        table.add_row(*(escape(plain(text)) for text in (spec.name, spec.display_name, spec.policy, str(spec.folder))))
    show_table(table)


@app.command()
def remove(name: Annotated[str, typer.Argument(help="The kernelspec's name.")] = kernelspec.DEFAULT_NAME) -> None:
    """Remove a kernelspec. Kernels that run go on.

    Example: cellblock kernelspec remove cellblock
    """
    folder = kernelspec.remove(name)
    console.print(f"removed {escape(plain(str(folder)))}", soft_wrap=True)
