"""The help text of every command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from orchestrator.cli.app import app


def paths(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the words of a command and of every command below it."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from paths(child, (*path, name))


COMMANDS = list(paths(get_command(app)))


def test_every_command_is_found() -> None:
    """The walk below the root reaches the nested commands."""
    assert {("run",), ("audit", "verify"), ("sessions", "export"), ("policy", "explain")} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_of_the_command(command: tuple[str, ...]) -> None:
    """`--help` exits with 0 and shows an example of the command itself."""
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert f"Example: {' '.join(('cellblock', *command))}" in shown.stdout
