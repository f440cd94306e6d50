"""`cellblock notebook show` and `diff`, and what differs between two notebooks. No engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from orchestrator import NotebookDocument
from orchestrator.cli.app import app
from orchestrator.notebooks import ipynb
from orchestrator.notebooks.comparing import compare
from tests.unit.notebookworld import document, form


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["notebook", *arguments], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout


def changes(first: NotebookDocument, second: NotebookDocument) -> list[tuple[str, str]]:
    return [(change.kind, (change.after or change.before or first.cells[0]).id) for change in compare(first, second)]


def test_what_differs_is_told_by_cell() -> None:
    """Added, removed, moved, edited, metadata and outputs; nothing for run times and counts."""
    base = document("a", "b", "c", "d")
    a, b, c, d = base.cells
    ran = replace(a, execution_count=7, metadata={"execution": {"iopub.status.busy": "now"}})
    assert changes(base, replace(base, cells=(ran, b, c, d))) == []
    edited = replace(b, source="B", outputs=({"output_type": "stream", "name": "stdout", "text": "x"},))
    new = replace(c, id="new", source="new")
    other = replace(base, cells=(d, a, edited, new, replace(c, metadata={"tags": ["t"]})))
    assert changes(base, other) == [
        ("moved", "c3"), ("edited", "c1"), ("outputs", "c1"), ("added", "new"), ("metadata", "c2"),
    ]  # fmt: skip
    assert changes(other, base)[-1] == ("removed", "new")
    assert compare(base, other)[1].lines() == ["-b", "+B"]


def test_cells_without_common_ids_are_found_again() -> None:
    """As after a tool that gives new ids: what is left is the edit."""
    first = ipynb.from_form(form("a", "b", "c", ids=False), "")
    second = ipynb.from_form(form("a", "B", "c", ids=False), "")
    assert [kind for kind, _ in changes(first, second)] == ["edited"]


def write(path: Path, content: dict[str, Any]) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_show_is_text_that_a_terminal_does_not_obey(tmp_path: Path) -> None:
    """Sources, markdown and outputs of a hostile file: no control character, no markup of rich, no picture."""
    hostile = form("print('\x1b]0;owned\x07')\n# [bold]no markup[/]", "x")
    hostile["cells"][1] |= {"cell_type": "markdown", "source": "# [link=http://x]click[/link] \u202e"}
    del hostile["cells"][1]["outputs"], hostile["cells"][1]["execution_count"]
    hostile["cells"][0]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": "\x1b[2J[red]text[/]"},
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBORw0K", "text/plain": "<Figure>"}},
    ]
    path = write(tmp_path / "a.ipynb", hostile)
    status, text = command("show", path)
    assert status == 0
    assert text.replace("\n", "").isprintable()
    for words in ("[bold]no markup[/]", "[link=http://x]", "[red]text[/]", "[picture: image/png"):
        assert words in text
    assert "[red]text[/]" not in command("show", path, "--no-outputs")[1]


def test_diff_shows_changed_lines_and_its_exit_status_says_whether_there_are_any(tmp_path: Path) -> None:
    first = write(tmp_path / "a.ipynb", form("one\ntwo", "same"))
    second = write(tmp_path / "b.ipynb", form("one\n2", "same", "new"))
    status, text = command("diff", first, second)
    assert status == 1
    assert text.split() == ["edited", "0", "c0", "one", "one", "-two", "+2", "added", "2", "c2", "new", "+new"]
    assert command("diff", first, first) == (0, "")


def test_a_file_that_is_no_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.ipynb").write_text("{}")
    for name in ("no.ipynb", "none.ipynb"):
        done = CliRunner().invoke(app, ["notebook", "show", str(tmp_path / name)])
        assert done.exit_code == 1
        assert name in str(done.exception)
