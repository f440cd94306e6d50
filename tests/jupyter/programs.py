"""Jupyter's programs in an environment of their own, and notebooks for them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from tests.conformance.__main__ import REPOSITORY, environment
from tests.jupyter.jupyterkernels import Place

_LONGEST = 300  # seconds of one program
PLOT = """\
import matplotlib.pyplot as plt
plt.plot([1, 4, 9])
plt.show()"""
STREAMS = """\
import sys
print('out')
print('err', file=sys.stderr)"""
UPDATE = """\
from IPython.display import display
handle = display('before', display_id=True)
handle.update('after')"""
WIDGET = """\
from ipywidgets import IntSlider
slider = IntSlider(value=7, description='pace')
slider"""
WIDGETS = str(REPOSITORY / "tests" / "jupyter" / "widgets.toml")  # a policy
SPECIAL = [
    "import os; 6 * 7", STREAMS, PLOT, "1 / 0", UPDATE, "from IPython.display import HTML; HTML('<b>bold</b>')",
    "from IPython.display import clear_output; print('gone'); clear_output(); print('stays')", "None", "f'{_i}'",
]  # fmt: skip


def notebook(path: Path, codes: Sequence[str], kernel: str = "sandbox") -> Path:
    """Write a notebook."""
    made = new_notebook(cells=[new_code_cell(code) for code in codes])
    made.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    nbformat.write(made, path)
    path.chmod(0o644)
    return path


def program(where: Place, *arguments: str, check: bool = True, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run a module of the environment, such as "nbconvert", in the folder of the notebooks.

    Args:
        typed: what the program reads from standard input.
    """
    done = subprocess.run(
        [str(environment("jupyter")), "-m", *arguments],
        env=dict(where.variables),
        cwd=where.notebooks,
        input=typed,
        capture_output=True,
        text=True,
        timeout=_LONGEST,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def outputs(path: Path) -> list[list[dict[str, Any]]]:
    """Return the outputs of each cell, without what differs from run to run: pictures, and paths in tracebacks.

    Text of one stream is one output: a kernel may send it in any pieces.
    """
    return [_joined(cell["outputs"]) for cell in nbformat.read(path, 4)["cells"]]


def _joined(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for output in found:
        same = {key: value for key, value in output.items() if key != "traceback"}
        if "data" in same:
            same["data"] = {kind: None if "image" in kind else text for kind, text in same["data"].items()}
        if joined and same.get("name") and joined[-1].get("name") == same["name"]:
            joined[-1]["text"] += same["text"]
        else:
            joined.append(same)
    return joined
