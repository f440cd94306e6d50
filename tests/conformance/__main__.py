"""Run the suites of other projects: ``python -m tests.conformance [NAME ...]``. ``make conformance`` does it.

Makes an environment for each suite in ``.venv-conformance/``, installs this project and the other one, and runs pytest.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SUITES = {
    "fastmcp": ("fastmcp==4.2.3",),
    "inspect": ("inspect-ai==0.3.285",),
    "jupyter": (
        "jupyterlab==4.6.6",
        "notebook==7.6.5",
        "nbclient==0.11.0",
        "nbconvert==7.17.2",
        "papermill==2.7.0",
        "nbval==0.11.0",
        "jupyter_client==8.10.0",
        "jupyter_server==2.21.1",
        "jupyter_console==6.6.3",
        "ipykernel==7.4.0",
        "ipywidgets==8.1.9",
        "matplotlib==3.11.2",
        "jupyter_kernel_test==0.7.0",
        "pytest-jupyter[client,server]==0.11.0",
        "pytest-console-scripts==1.4.1",
        "pytest-timeout==2.4.0",
        "flaky",
        "testpath",
        "xmltodict",
        "msgpack",
        "autogen-ext[docker,jupyter-executor]==0.7.5",
    ),
    "pydantic": ("pydantic-ai-slim==2.68.0", "anyio"),
}
CLIENTS = {
    "autogen": ("autogen-ext[docker-jupyter-executor]==0.7.5",),
    "gunicorn": ("gunicorn==27.0.1", "httpx==0.28.1"),
    "jupyterlab": ("jupyterlab==4.6.6", "jupyter-server==2.21.1"),
    "moto": ("moto[s3,server]==5.2.5",),
    "ray": ("ray==2.60.0",),
    "sandbox_fusion": ("sandbox-fusion==0.3.7",),
    "schemathesis": ("schemathesis==4.32.5",),
}  # whose environments tests use
EXTRAS = {"ray": "[cli,postgres,ray,server]"}  # of this project's, where an environment needs some
OPTIONS = ["-q", "-rxXs", "-p", "no:cacheprovider", "--noconftest", "-c", "/dev/null", "-o", "asyncio_mode=auto"]
TOOLS = ("pytest==9.0.2", "pytest-asyncio==1.3.0")


def environment(name: str) -> Path:
    """Return the Python of a suite's or a client's environment. One process at a time makes it, if it is missing."""
    folder = REPOSITORY / ".venv-conformance" / name
    folder.parent.mkdir(exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(folder, (*{**SUITES, **CLIENTS}[name], *TOOLS), EXTRAS.get(name, ""))


def _made(folder: Path, packages: tuple[str, ...], extras: str) -> Path:
    python, stamp = folder / "bin" / "python", folder / ".complete"
    wanted = "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"conformance: installing {', '.join(packages)}", flush=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--seed", "--clear", "--python", sys.executable, str(folder)], check=True)
        # Compiled: without bytecode each start of a kernel compiles what it imports, where Python may not write it.
        install = [*uv, "pip", "install", "-q", "--compile-bytecode", "--python", str(python)]
        subprocess.run([*install, *packages, "-e", f"{REPOSITORY}{extras}"], check=True)
        stamp.write_text(wanted)
    return python


def main(names: list[str]) -> int:
    """Run the suites of these names, or all. Returns 1 if one failed.

    Args:
        names: such as "jupyter", or "jupyter:nbclient" for a part of it.
    """
    failed = 0
    for chosen in names or list(SUITES):
        name, _, part = chosen.partition(":")
        plugin = ["-p", "no:asyncio"] if name == "pydantic" else ["-o", "asyncio_mode=auto"]  # that suite uses anyio's
        suite = REPOSITORY / "tests" / "conformance" / f"suite_{name}.py"
        print(f"conformance: {chosen}", flush=True)
        if name == "jupyter":  # takes long, and prints how far it is
            plugin += ["-s"]
        pytest = [str(environment(name)), "-m", "pytest", *OPTIONS, *plugin]
        command = [*pytest, f"--rootdir={REPOSITORY}", "-k", part, str(suite)]
        failed |= subprocess.run(command, cwd=REPOSITORY, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
