"""The Python programs in Markdown documents, and the environment in which tests run them."""

from __future__ import annotations

import os
import re
from pathlib import Path

_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def programs(document: Path) -> list[str]:
    """Return a document's Python programs, in order."""
    return _FENCE.findall(document.read_text())


def printed(program: str) -> list[str]:
    """Return what a program's comments ``#> text`` promise that it prints, in order."""
    return re.findall(r"#> (.+)$", program, re.MULTILINE)


def environment(data: Path, state: Path) -> dict[str, str]:
    """Return this process's environment, with folders of data and state of a user's own."""
    return os.environ | {"CELLBLOCK_DATA_DIR": str(data), "CELLBLOCK_STATE_DIR": str(state)}
