"""JupyterLab in an environment of its own, with its kernels in a gateway."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.__main__ import environment

TOKEN = "of-the-notebook-server"  # noqa: S105 - of a server on loopback, for as long as a test runs
_STARTING = 90.0  # seconds


@contextlib.contextmanager
def lab_server(folder: Path, gateway: str, token: str) -> Iterator[str]:
    """Run ``jupyter lab --gateway-url`` as a user would, and yield its address."""
    home = folder / "home"
    notebooks = folder / "notebooks"
    home.mkdir()
    notebooks.mkdir()
    options = [
        f"--gateway-url={gateway}", f"--GatewayClient.auth_token={token}", "--no-browser", "--allow-root",
        "--ServerApp.port=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={notebooks}",
        "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    variables = {
        **os.environ,
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "run"),
    }
    log = folder / "lab.log"
    with log.open("w") as errors:
        command = [str(environment("jupyterlab")), "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, env=variables, stdout=errors, stderr=errors)
    try:
        yield _address(process, home / "run", log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """Wait until it answers."""
    deadline = time.monotonic() + _STARTING
    while time.monotonic() < deadline and process.poll() is None:
        for found in log.read_text().split():
            if found.startswith("http://127.0.0.1:") and "?token=" in found:
                address = found.partition("/lab")[0]
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api", timeout=5).close()  # noqa: S310 - loopback
                    return address
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-3000:]}")
