"""`cellblock verify`, run as a process with real kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from orchestrator.isolation.controls import CONTROLS
from orchestrator.isolation.verification import CLAIMS

COMMAND = str(Path(sys.executable).parent / "cellblock")


def verify(*arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "verify", *arguments]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "COLUMNS": "200", "CELLBLOCK_AUDIT_LOG": "off"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=environment)


@pytest.mark.alone
def test_every_promise_is_green_in_all_outputs(tmp_path: Path) -> None:
    """The table, the JSON file and the JUnit file have the same findings. tests/isolation covers other runtimes."""
    runtime = "runc"
    to_json, to_junit = tmp_path / "verify.json", tmp_path / "verify.xml"
    done = verify("--runtime", runtime, "--json", str(to_json), "--junit", str(to_junit))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(to_json.read_text())
    assert found["green"] is True
    assert {entry["claim"] for entry in found["findings"]} == {claim.name for claim in CLAIMS}
    assert all(entry["holds"] and entry["runtime"] == runtime and entry["evidence"] for entry in found["findings"])
    suite = ET.parse(to_junit).getroot().find("testsuite")  # noqa: S314 - our own file
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == (str(len(CLAIMS)), "0")
    for claim in CLAIMS:
        assert claim.name in done.stdout


def test_a_container_that_lacks_a_defence_is_red(runtime: str) -> None:
    """`--control` shows the claims that turned red, and exits with 1."""
    done = verify("--runtime", runtime, "--control", "privileged")
    assert done.returncode == 1
    for claim in ("container_has_no_privilege", "kernel_has_no_capability", "container_paths_are_masked"):
        assert claim in done.stdout
    assert "kernel_runs_as_nobody" not in done.stdout  # this claim holds in a privileged container


def test_the_list_needs_no_engine() -> None:
    """`--list` prints every claim and every control."""
    done = verify("--list")
    assert done.returncode == 0
    names = [claim.name for claim in CLAIMS] + [control.name for control in CONTROLS]
    assert all(name in done.stdout for name in names)


def test_the_cis_items_are_checked() -> None:
    """`--cis` prints a result for all 32 items of section 5, and none fails."""
    done = verify("--cis")
    assert done.returncode == 0
    assert all(f"5.{number} " in done.stdout for number in range(1, 33))
    assert "fails" not in done.stdout


def test_mistakes_get_one_clear_message() -> None:
    """An unknown control, runtime or policy is wrong usage: exit status 2 and a message, without a traceback."""
    for arguments in (("--control", "nonsense"), ("--runtime", "nonsense"), ("--policy", "nonsense")):
        done = verify(*arguments)
        assert done.returncode == 2
        assert "nonsense" in done.stderr
        assert "Traceback" not in done.stderr
