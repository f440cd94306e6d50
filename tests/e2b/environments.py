"""The environments in which E2B's SDKs, and what others made with them, run against a server: pinned, and made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGES = {
    "e2b-new": ("e2b==2.63.0", "e2b-code-interpreter==2.11.5"),
    "e2b-old": ("e2b==2.31.0", "e2b-code-interpreter==2.9.0"),
    "e2b-users": ("e2b==2.63.0", "e2b-code-interpreter==2.11.5", "smolagents==1.26.0", "langchain-e2b==0.0.6"),
}
_TOOLS = ("pytest==9.0.2", "pytest-asyncio==1.3.0")


def environment(name: str) -> Path:
    """Return the Python of an environment, which is made if it is missing."""
    folder = REPOSITORY / ".venv-conformance" / name
    python, stamp = folder / "bin" / "python", folder / ".complete"
    wanted = "\n".join((*PACKAGES[name], *_TOOLS))
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--clear", "--python", "3.11", str(folder)], check=True)
        subprocess.run([*uv, "pip", "install", "-q", "--python", str(python), *PACKAGES[name], *_TOOLS], check=True)
        stamp.write_text(wanted)
    return python
