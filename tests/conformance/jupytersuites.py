"""The suites of Jupyter's own projects, from their source distributions, on the stock kernel and on sandboxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from orchestrator.jupyter.kernelspec import kernel_json

Way = Literal["stock", "kernelspec", "provisioner"]
DIFFERENCES = Path(__file__).with_name("jupyter_differences.toml")
_SOURCES = Path(sys.prefix) / "sources"
_LONGEST = 3600  # seconds of one suite
_POLICY = "local-dev"  # the stock kernel answers input(), has comms and shows HTML


@dataclass(frozen=True, slots=True)
class Suite:
    """The tests of one project.

    Attributes:
        tests: what pytest runs, from the source distribution's folder.
        ways: how its kernels get into sandboxes. Some suites make their own Jupyter folders, where no kernelspec of
            ours is: they have the provisioner.
        runtimes: the container runtimes. What the other suites ask does not depend on it, and they take long.
    """

    project: str
    version: str
    tests: tuple[str, ...]
    ways: tuple[Way, ...]
    runtimes: tuple[str, ...] = ("runc",)

    @property
    def folder(self) -> Path:
        """The unpacked source distribution, which is downloaded if it is missing."""
        folder = _SOURCES / f"{self.project}-{self.version}"
        if not folder.exists():
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
            wanted = ["--no-binary", self.project, f"{self.project}=={self.version}", "-d", str(_SOURCES)]
            subprocess.run([*pip, *wanted], check=True)
            with tarfile.open(f"{folder}.tar.gz") as archive:
                archive.extractall(_SOURCES, filter="data")
        return folder


SUITES = (
    Suite("jupyter_kernel_test", "0.7.0", ("test_ipykernel.py",), ("kernelspec", "provisioner"), ("runc", "runsc")),
    Suite("nbclient", "0.11.0", ("tests/test_client.py",), ("kernelspec",)),
    Suite("papermill", "2.7.0", ("papermill/tests/test_execute.py",), ("kernelspec",)),
    Suite(
        "jupyter_client",
        "8.10.0",
        tuple(f"tests/test_{name}.py" for name in ("client", "kernelmanager", "multikernelmanager")),
        ("provisioner",),
    ),
    Suite("jupyter_server", "2.21.1", ("tests/services/kernels", "tests/services/sessions"), ("provisioner",)),
)


@cache
def stock_outcomes(suite: Suite) -> dict[str, str]:
    """Run a suite on ipykernel on this host. Returns "passed", "failed" or "skipped" by test."""
    return _run(suite, {})


def sandbox_outcomes(suite: Suite, way: Way, runtime: str) -> dict[str, str]:
    """Run a suite on sandboxes. Returns the same.

    Raises:
        AssertionError: no cell ran in a sandbox.
    """
    with tempfile.TemporaryDirectory(prefix="cb-", ignore_cleanup_errors=True) as folder:
        audit = Path(folder) / "audit.jsonl"
        variables = {
            "CELLBLOCK_AUDIT_LOG": str(audit),
            "CELLBLOCK_DATA_DIR": f"{folder}/d",
            "CELLBLOCK_STATE_DIR": f"{folder}/s",
            "CELLBLOCK_POLICY": _POLICY,
            "CELLBLOCK_RUNTIME": runtime,
        }
        if way == "provisioner":
            variables["JUPYTER_DEFAULT_PROVISIONER_NAME"] = "cellblock"
        else:  # in place of the stock kernel's, which the suites name
            kernel = Path(folder) / "jupyter" / "kernels" / "python3"
            kernel.mkdir(parents=True)
            (kernel / "kernel.json").write_text(json.dumps(kernel_json(_POLICY)))
            variables["JUPYTER_PATH"] = str(kernel.parents[1])
        found = _run(suite, variables)
        assert "cell.ended" in audit.read_text(), "no cell ran in a sandbox"
    return found


def differences(suite: Suite, way: Way, runtime: str) -> dict[str, str]:
    """Return the outcome in a sandbox of every test that does not end as on the stock kernel."""
    stock, ours = stock_outcomes(suite), sandbox_outcomes(suite, way, runtime)
    return {test: ours.get(test, "missing") for test, outcome in stock.items() if ours.get(test) != outcome}


def written_differences(suite: Suite) -> dict[str, str]:
    """Return the reasons of the differences that are known, by test."""
    return dict(tomllib.loads(DIFFERENCES.read_text()).get(suite.project, {}))


def _run(suite: Suite, variables: dict[str, str]) -> dict[str, str]:
    ours = ("CELLBLOCK_", "JUPYTER_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-c", "pyproject.toml", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        limit = ["--timeout=300", "--timeout-method=signal"]  # the other method ends pytest, and there is no report
        command = [sys.executable, "-m", "pytest", *options, *limit, *suite.tests]
        done = subprocess.run(
            command, cwd=suite.folder, env=environment, check=False, timeout=_LONGEST, capture_output=True, text=True
        )
        assert report.exists(), done.stdout[-5000:] + done.stderr[-5000:]
        cases = ElementTree.parse(report).iter("testcase")  # noqa: S314 - pytest's own
        return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"
