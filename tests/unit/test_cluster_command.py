"""`cellblock cluster` where Ray is not installed, and the names of nodes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cluster.nodeconfig import check_name
from orchestrator.errors import InvalidInputError, RayMissingError


@pytest.mark.parametrize("command", ["up", "join", "status", "drain node", "down"])
def test_without_ray_each_command_names_the_extra(command: str) -> None:
    """Tests have no Ray in their own environment."""
    done = CliRunner().invoke(app, ["cluster", *command.split()])
    assert isinstance(done.exception, RayMissingError)
    assert 'pip install "cellblock[ray]"' in done.exception.remedy


def test_nothing_of_a_cluster_is_imported_before_it_is_used() -> None:
    """The command line starts without Ray, aiohttp and the server's libraries."""
    shown = "import sys, orchestrator.cli.app; print({'ray', 'aiohttp', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a b", "a" * 64, "é", "a\n"])
def test_a_name_that_a_path_or_a_terminal_could_misread_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="not the name of a node"):
        check_name(name)


@pytest.mark.parametrize("name", ["h1", "host-2.example.org", "A_b"])
def test_a_host_name_is_a_node_name(name: str) -> None:
    assert check_name(name) == name
