"""The law of the layout, and that documents and code tell the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from orchestrator.policy import Limits, Policy, Tmpfs
from orchestrator.settings import Settings


def test_imports_point_down_only(repository: Path) -> None:
    """import-linter's contracts hold."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


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
    text = (repository / "policies" / "default.toml").read_text()
    shown = set(re.findall(r"^(\w+) =", text, re.MULTILINE))
    assert shown == {"runtime", *Limits.model_fields, *Tmpfs.model_fields}
    assert Policy.load("default") == Policy()


def test_every_test_named_in_the_threat_model_exists(repository: Path) -> None:
    """docs/threat-model.md names tests; each is there under that name."""
    text = (
        (repository / "docs" / "threat-model.md")
        .read_text()
        .replace("isolation/…", "isolation/test_locked_container.py")
    )
    named = re.findall(r"`([a-z]+/test_\w+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 15
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
