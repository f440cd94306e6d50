"""The rules of the layout, and that documents and code say the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from orchestrator.cli.policies import MEANINGS
from orchestrator.isolation.verification import CLAIMS
from orchestrator.policy.policy import Policy, keys
from orchestrator.settings import Settings

ROWS = {
    *(f"O{number}" for number in range(1, 8)), *(f"H{number}" for number in range(1, 7)),
    "T1", "T2", "T3", "D1", "D2", "D3", "X1", "X2",
}  # fmt: skip


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=120)


def copy_packages(repository: Path, folder: Path) -> None:
    for name in ("orchestrator", "cellblock"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", folder)


def test_imports_point_down_only(repository: Path) -> None:
    """import-linter's contracts hold."""
    done = lint_imports(repository)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("orchestrator/pool/hostload.py", "import docker", "only container/ and host/ import docker"),
        ("orchestrator/sessions/retention.py", "import sqlalchemy", "only store/ imports sqlalchemy"),
        (
            "orchestrator/store/audit.py",
            "import jupyter_client",
            "only kernel/, broker/, jupyter/ import jupyter_client",
        ),
        ("orchestrator/cli/prune.py", "import mcp", "only mcp/ imports the MCP SDK"),
        ("orchestrator/cli/prune.py", "import ray", "only cluster/ imports ray"),
        ("orchestrator/container/lease.py", "import zmq", "nobody imports zmq"),
        ("orchestrator/limits.py", "import orchestrator.pool", "imports point down only"),
        ("orchestrator/logs.py", "import cellblock", "cellblock/ imports orchestrator, not the other way round"),
    ],
)
def test_a_planted_import_breaks_its_contract(
    repository: Path, tmp_path: Path, module: str, planted: str, contract: str
) -> None:
    """One line in a room that must not have it: import-linter fails, and names the contract."""
    copy_packages(repository, tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{planted}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout
    assert f"{contract} BROKEN" in done.stdout


def test_a_module_without_a_layer_breaks_the_contract(repository: Path, tmp_path: Path) -> None:
    copy_packages(repository, tmp_path)
    (tmp_path / "orchestrator" / "stray.py").touch()
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "not listed as layers:\n\n- orchestrator.stray" in done.stdout


def test_no_two_modules_share_a_name(repository: Path) -> None:
    """A newcomer who has read a module's name knows which one it is."""
    names = [path.stem for path in (repository / "orchestrator").rglob("*.py") if path.stem != "__init__"]
    assert sorted(names) == sorted(set(names))
    assert not {"utils", "helpers", "common", "base"} & set(names)


def test_every_setting_is_documented(repository: Path) -> None:
    """Each CELLBLOCK_* variable is in docs/settings.md, and no other."""
    text = (repository / "docs" / "settings.md").read_text()
    documented = set(re.findall(r"`CELLBLOCK_([A-Z_]+)`", text))
    assert documented == {name.upper() for name in Settings.model_fields}


def test_every_policy_key_is_in_the_default_policy(repository: Path) -> None:
    """policies/default.toml shows every key, with its default."""
    shown = tomllib.loads((repository / "policies" / "default.toml").read_text())
    flat = {key for key, value in shown.items() if not isinstance(value, dict)}
    flat |= {f"{table}.{key}" for table, rows in shown.items() if isinstance(rows, dict) for key in rows}
    assert flat | {table for table, rows in shown.items() if rows == {}} == {key for key, _ in keys()}
    assert Policy.load("default") == Policy()


def test_every_policy_key_is_explained() -> None:
    """`cellblock policy explain` knows what each one does, and in which row of the threat model."""
    assert MEANINGS.keys() == {key for key, _ in keys()}
    assert {meaning.row for meaning in MEANINGS.values()} <= ROWS


def _claims_by_row(text: str) -> dict[str, set[str]]:
    rows = re.findall(r"^\| ([A-Z]\d) \|(.*)$", text, re.MULTILINE)
    return {row: set(re.findall(r"`([a-z_]+)`", cells.rpartition("|")[0].rpartition("|")[2])) for row, cells in rows}


def test_every_claim_stands_in_its_row_of_the_threat_model(repository: Path) -> None:
    """docs/threat-model.md has every row, each claim in its own, and names no claim that is not there."""
    found = _claims_by_row((repository / "docs" / "threat-model.md").read_text())
    assert found.keys() == ROWS
    named = {(row, name) for row, names in found.items() for name in names}
    assert named == {(claim.row, claim.name) for claim in CLAIMS}


def test_every_promise_of_the_security_policy_has_a_probe(repository: Path) -> None:
    """Each line of SECURITY.md's table links a promise to claims that exist."""
    lines = re.findall(r"^\| (?!promise|-)(.+?) \| (.+?) \|$", (repository / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(lines) >= 9
    known = {claim.name for claim in CLAIMS}
    for promise, probes in lines:
        named = set(re.findall(r"`(\w+)`", probes))
        assert named, promise
        assert named <= known, promise


def test_every_test_named_in_the_threat_model_exists(repository: Path) -> None:
    """Where no claim can tell, the table names a test; each is there under that name."""
    named = re.findall(
        r"`tests/(\w+/test_\w+\.py)(?:::(test_\w+))?`", (repository / "docs" / "threat-model.md").read_text()
    )
    assert len(named) > 9
    for file, test in named:
        path = repository / "tests" / file
        assert path.is_file(), file
        assert not test or f"def {test}(" in path.read_text(), test


def test_no_file_names_a_registry_or_a_machines_path(repository: Path) -> None:
    """Lock files carry versions and hashes, no addresses."""
    tracked = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|deb\.debian\.org|registry\.npmjs")
    for name in tracked.split():
        path = repository / name
        if path.is_file() and path != Path(__file__):
            assert not hosts.search(path.read_text(errors="replace")), name
