"""`cellblock token`: makes, lists and revokes the tokens of `cellblock serve`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.render import AsJson, console, plain, show_json, show_table
from orchestrator.errors import InvalidInputError
from orchestrator.policy.policy import Policy
from orchestrator.principal import Right, check_group
from orchestrator.server.authentication import new_token
from orchestrator.settings import Settings
from orchestrator.store.history import History, TokenRecord

app = typer.Typer(
    help="Make, list and revoke the tokens of `cellblock serve`.\n\nExample: cellblock token create ci --group ci",
    no_args_is_help=True,
)
_DAY = 86400.0


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose token it is, for the audit log.")],
    group: Annotated[str, typer.Option(help="The group whose sessions the token sees.")] = "default",
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A policy that its sessions may have; may be repeated, and the first is the default."),
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="Allow it to see and stop the kernels of all groups, and read metrics.")
    ] = False,
    days: Annotated[float | None, typer.Option(min=0.001, help="Days until it expires. Default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and show it, once: only a hash of it is kept.

    From the first token on, nobody reaches the server without one.

    Example: cellblock token create web --group web --policy default --policy full
    """
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise InvalidInputError("the name must have 1 to 100 printable characters.")
    policies = policy or [Settings.load().policy]
    for each in policies:
        Policy.load(each)
    rights: list[Right] = ["operator"] if operator else []
    expires_at = None if days is None else time.time() + days * _DAY
    token, record = new_token(name, check_group(group), policies, rights, expires_at)
    with _history() as history:
        history.add_token(record)
    if as_json:
        show_json({"token": token, **_form(record)})
        return
    console.print(f"token {record.token_id} of group {record.group}; it is shown only now:")
    typer.echo(token)


@app.command(name="list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the tokens, the newest first. The tokens themselves are not kept.

    Example: cellblock token list
    """
    with _history() as history:
        found = history.tokens()
    if as_json:
        show_json([_form(record) for record in found])
        return
    if not found:
        console.print("no tokens")
        return
    table = Table("token", "name", "group", "policies", "rights", "created (UTC)", "state")
    for record in found:
        table.add_row(
            record.token_id,
            escape(plain(record.name)),
            record.group,
            escape(", ".join(map(plain, record.policies))),
            ", ".join(sorted(record.rights)) or "-",
            datetime.fromtimestamp(record.created_at, UTC).strftime("%Y-%m-%d %H:%M"),
            _state(record),
        )
    show_table(table)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `cellblock token list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a token. Within two seconds the server refuses it, and ends its open streams. Its sessions stay.

    Example: cellblock token revoke 3f9a01b2c3d4e5f6
    """
    with _history() as history:
        revoked = history.revoke_token(token_id)
        if not revoked and history.token(token_id) is None:
            raise InvalidInputError(
                f"there is no token {token_id!r}.", remedy="`cellblock token list` shows the ids of all tokens."
            )
    if as_json:
        show_json({"token_id": token_id, "revoked": revoked})
    else:
        console.print(f"token {escape(plain(token_id))} {'is revoked' if revoked else 'was revoked before'}")


def _form(record: TokenRecord) -> dict[str, object]:
    return {
        "token_id": record.token_id,
        "name": record.name,
        "group": record.group,
        "policies": list(record.policies),
        "rights": sorted(record.rights),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
    }


def _state(record: TokenRecord) -> str:
    if record.revoked_at is not None:
        return "revoked"
    return "valid" if record.is_valid(time.time()) else "expired"


@contextlib.contextmanager
def _history() -> Iterator[History]:
    settings = Settings.load()
    settings.refuse_foreign_folders()
    history = History.of(settings)
    try:
        yield history
    finally:
        history.close()
