"""The suites of Jupyter's projects and AutoGen's executor, from source distributions, beside the stock kernel."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from orchestrator.jupyter.kernelspec import kernel_json
from tests.conformance.suiterun import Ending, run_suite

Way = Literal["stock", "kernelspec", "provisioner"]
DIFFERENCES = Path(__file__).with_name("jupyter_differences.toml")
_SOURCES = Path(sys.prefix) / "sources"
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
    Suite("nbclient", "0.11.0", ("tests",), ("kernelspec",)),
    Suite("papermill", "2.7.0", ("papermill/tests/test_execute.py",), ("kernelspec",)),
    Suite("jupyter_client", "8.10.0", ("tests",), ("kernelspec",)),
    Suite("jupyter_server", "2.21.1", ("tests/services/kernels", "tests/services/sessions"), ("provisioner",)),
    # Its tests of DockerJupyterCodeExecutor start an image of AutoGen's own; tests/gateway has that executor.
    Suite("autogen_ext", "0.7.5", ("tests/code_executors/test_jupyter_code_executor.py",), ("kernelspec",)),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One suite in sandboxes beside the stock kernel.

    Attributes:
        stock, ours: how each test has ended.
        rerun: the tests that had ended differently for no written reason, and were then run again by themselves.
    """

    stock: dict[str, Ending]
    ours: dict[str, Ending]
    rerun: tuple[str, ...] = ()

    @property
    def differences(self) -> list[str]:
        """The tests that end otherwise in a sandbox than on the stock kernel."""
        missing = Ending("missing")
        every = {**self.stock, **self.ours}
        return [
            test for test in every
            if self.stock.get(test, missing).outcome != self.ours.get(test, missing).outcome
        ]  # fmt: skip

    def unwritten(self, written: dict[str, str]) -> list[str]:
        """Return the differences that have no written reason."""
        return [test for test in self.differences if test not in written]


def compare(suite: Suite, way: Way, runtime: str) -> Comparison:
    """Run a suite on the stock kernel and on sandboxes.

    What differs is run once more, since the suites have deadlines of seconds, which a busy machine exceeds.
    """
    found = Comparison(_stock(suite), _in_sandboxes(suite, suite.tests, way, runtime))
    again = tuple(found.unwritten(written_differences(suite)))
    if not again:
        return found
    stock = run_suite(suite.folder, again, {}, f"{suite.project}, stock, again")
    return Comparison(found.stock | stock, found.ours | _in_sandboxes(suite, again, way, runtime), again)


def written_differences(suite: Suite) -> dict[str, str]:
    """Return the reasons of the differences that are known, by test."""
    groups = tomllib.loads(DIFFERENCES.read_text()).get(suite.project, [])
    return {test: group["reason"] for group in groups for test in group["tests"]}


@cache
def _stock(suite: Suite) -> dict[str, Ending]:
    return run_suite(suite.folder, suite.tests, {}, f"{suite.project}, stock")


def _in_sandboxes(suite: Suite, tests: tuple[str, ...], way: Way, runtime: str) -> dict[str, Ending]:
    """Run tests of a suite on sandboxes.

    Raises:
        AssertionError: none of many tests has run a cell in a sandbox.
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
        else:  # in place of what the suites name: the stock kernel, and the one that pytest-jupyter brings
            for name in ("python3", "echo"):
                kernel = Path(folder) / "jupyter" / "kernels" / name
                kernel.mkdir(parents=True)
                (kernel / "kernel.json").write_text(json.dumps(kernel_json(_POLICY)))
            variables["JUPYTER_PATH"] = f"{folder}/jupyter"
        found = run_suite(suite.folder, tests, variables, f"{suite.project}, {way}, {runtime}")
        if tests == suite.tests:
            assert "cell.ended" in audit.read_text(), "no cell ran in a sandbox"
    return found
