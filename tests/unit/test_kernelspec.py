"""Kernelspecs: what is installed, where, and whose are left alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.errors import InvalidInputError, PolicyError
from orchestrator.jupyter import kernelspec, relaystart
from orchestrator.jupyter.notebookfolder import offer_notebook_folder
from orchestrator.policy.policy import Policy


@pytest.fixture(autouse=True)
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's kernelspecs."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    return tmp_path / "user" / "kernels"


def run(*arguments: str) -> str:
    """Run `cellblock kernelspec`, and return what it prints."""
    done = CliRunner().invoke(app, ["kernelspec", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_an_installed_kernelspec_is_one_that_every_program_can_start(jupyter: Path) -> None:
    """Its interpreter's path is absolute, no module of the notebook's folder counts, interrupts are messages."""
    run("install")
    content = json.loads((jupyter / "cellblock" / "kernel.json").read_text())
    assert content["argv"][:3] == [sys.executable, "-P", relaystart.__file__]
    assert all(Path(content["argv"][number]).is_absolute() for number in (0, 2))
    assert "{connection_file}" in content["argv"]
    assert content["interrupt_mode"] == "message"
    assert "supported_encryption" not in content["metadata"]  # the broker has none
    assert (jupyter / "cellblock" / "logo-64x64.png").is_file()
    found = KernelSpecManager().get_kernel_spec("cellblock")
    assert (found.display_name, found.language) == ("Python 3 (Cellblock)", "python")


def test_the_default_policy_shows_nothing_that_runs_in_jupyters_page() -> None:
    """HTML and widgets can do what the page's user can: only other policies have them, and installing those says so."""
    assert "runs in Jupyter's page" not in run("install")
    assert "runs in Jupyter's page" in run("install", "--policy", "local-dev")
    assert "runs in Jupyter's page" in run("install", "--policy", "default")


def test_a_policy_file_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter starts the relay in another folder."""
    (tmp_path / "mine.toml").touch()
    monkeypatch.chdir(tmp_path)
    content = kernelspec.kernel_json("mine.toml")
    assert content["argv"][-1] == str(tmp_path / "mine.toml")


def test_a_data_folder_has_not_the_notebooks_name(tmp_path: Path) -> None:
    """The notebook's folder would be in its place."""
    (tmp_path / "mine.toml").write_text("[jupyter]\nfolder = 'sales'\n[data]\nsales = '.'\n")
    tmp_path.chmod(0o755)
    with pytest.raises(PolicyError, match="both named sales"):
        kernelspec.kernel_json(str(tmp_path / "mine.toml"))


def test_the_notebooks_folder_is_data_where_the_policy_allows_it(tmp_path: Path) -> None:
    """Where it cannot be offered, the kernel starts without it, and a notice says why."""
    folder = tmp_path / "notebooks"
    folder.mkdir(mode=0o755)
    policy = Policy.load("notebook")
    offered, notice = offer_notebook_folder(policy, folder)
    assert (offered.data, notice) == ({"notebook": folder}, "")
    assert offer_notebook_folder(Policy.load("default"), folder)[0].data == {}
    refused, notice = offer_notebook_folder(policy, Path.home())
    assert refused.data == {}
    assert notice.startswith("the folder of the notebook is not at /data/notebook: ")


def test_list_and_remove_know_only_our_own(jupyter: Path) -> None:
    """Another program's kernelspec is neither listed, nor replaced, nor removed."""
    foreign = jupyter / "other"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text('{"argv": ["x"], "display_name": "x", "language": "x"}')
    (jupyter / "broken").mkdir()
    (jupyter / "broken" / "kernel.json").write_text("[")
    run("install", "--name", "mine")
    assert [spec["name"] for spec in json.loads(run("list", "--json"))] == ["mine"]
    with pytest.raises(InvalidInputError, match="another program's"):
        kernelspec.install("other")
    with pytest.raises(InvalidInputError, match="no kernelspec 'other'"):
        kernelspec.remove("other")
    run("remove", "mine")
    assert sorted(os.listdir(jupyter)) == ["broken", "other"]


def test_a_kernelspec_can_be_one_environments(tmp_path: Path) -> None:
    run("install", "--prefix", str(tmp_path / "environment"))
    assert (tmp_path / "environment" / "share" / "jupyter" / "kernels" / "cellblock" / "kernel.json").is_file()
