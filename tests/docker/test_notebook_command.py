"""`cellblock notebook run` on real kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

from tests.conftest import REPOSITORY
from tests.unit.notebookworld import form


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli.entry", "notebook", "run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CELLBLOCK_RUNTIME": "runc"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def outputs_of(path: Path) -> list[list[str]]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [
        [output.get("text") or output.get("ename") or output["data"]["text/plain"] for output in cell.outputs]
        for cell in notebook.cells
    ]


def test_a_notebook_runs_and_is_saved_with_its_outputs(tmp_path: Path) -> None:
    """To another file, with an input beside it; the notebook itself stays as it was."""
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    source = json.dumps(form("text = open('data.csv').read()", "", "print(text.splitlines()[1])\nlen(text)"))
    (tmp_path / "a.ipynb").write_text(source)
    status, out, err = run(tmp_path, "a.ipynb", "--file", "data.csv", "--output", "done.ipynb")
    assert (status, err) == (0, "saved done.ipynb\n")
    assert "0/2 ok" in out
    assert outputs_of(tmp_path / "done.ipynb") == [[], [], ["1,2\n", "8"]]
    assert (tmp_path / "a.ipynb").read_text() == source
    assert sorted(os.listdir(tmp_path)) == ["a.ipynb", "data.csv", "done.ipynb"]


def test_an_output_that_cannot_be_saved_is_refused_before_a_cell_runs(tmp_path: Path) -> None:
    """With one sentence that names the folder."""
    (tmp_path / "a.ipynb").write_text(json.dumps(form("1 / 0")))
    status, out, err = run(tmp_path, "a.ipynb", "--output", "none/b.ipynb")
    assert (status, out) == (1, "")
    assert err.startswith("cellblock: there is no folder none for b.ipynb. Nothing ran.")


def test_a_failing_cell_ends_the_run_and_is_saved(tmp_path: Path) -> None:
    """With 1; with --keep-going the others run; 124 if one exceeds its time limit."""
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(form("1 / 0", "'after'")))
    status, out, _ = run(tmp_path, "a.ipynb")
    assert status == 1
    assert "ZeroDivisionError: division by zero" in out
    assert outputs_of(path) == [["ZeroDivisionError"], []]
    assert run(tmp_path, "a.ipynb", "--keep-going")[0] == 1
    assert outputs_of(path) == [["ZeroDivisionError"], ["'after'"]]
    path.write_text(json.dumps(form("print('on', flush=True)\nwhile True: pass")))
    assert run(tmp_path, "a.ipynb", "--timeout", "1")[0] == 124
    assert outputs_of(path)[0][0] == "on\n"


def test_what_a_person_saves_during_the_run_is_merged(tmp_path: Path) -> None:
    """The person's cell and title are there beside the outputs of the run."""
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(form("print('first', flush=True)", "import time; time.sleep(4); 'second'")))
    process = start(tmp_path, "a.ipynb")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "ok" in line, line
    theirs = form("print('first', flush=True)", "import time; time.sleep(4); 'second'", "# added", person=1)
    (tmp_path / "new").write_text(json.dumps(theirs))
    os.replace(tmp_path / "new", path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert outputs_of(path) == [["first\n"], ["'second'"], []]
    merged = json.loads(path.read_text())
    assert (merged["metadata"]["person"], "".join(merged["cells"][2]["source"])) == (1, "# added")


def test_what_is_no_notebook_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("no JSON")
    status, out, err = run(tmp_path, "a.ipynb")
    assert (status, out) == (1, "")
    assert "a.ipynb: this is not a notebook" in err
