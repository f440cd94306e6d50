"""JupyterLab's own client library, which VS Code uses too, in Node. ``make conformance`` runs it; it needs npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.conformance.__main__ import REPOSITORY
from tests.gateway.conftest import Gateway

PACKAGES = ("@jupyterlab/services@7.6.6", "ws@8.18.3")


def test_jupyterlab_services(gateway: Gateway, tmp_path: Path) -> None:
    """Kernelspecs, a notebook's session, cells, input, interrupt, restart, a change of the kernel, and the end."""
    subprocess.run(["npm", "install", "--silent", "--prefix", str(tmp_path), *PACKAGES], check=True, timeout=300)
    script = shutil.copy(REPOSITORY / "tests" / "gateway" / "labservices.cjs", tmp_path)
    command = ["node", script, f"{gateway.url}/", gateway.mine]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("saw ")]
    assert json.loads(line.removeprefix("saw ")) == {
        "specs": ["python3", "default"],
        "language": "python",
        "cell": ["ok", "out\n42"],
        "input": ["ok", "'Ada'"],
        "interrupted": ["error", "KeyboardInterrupt"],
        "restarted": ["ok", "False"],
        "sessions": ["a-1.ipynb"],
        "changed": ["b.ipynb", "default", "ok"],
        "left": 0,
    }
