"""Notebooks in files: merging with what others write, whole writes, and files that are hostile or old. No engine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Cell, CellType, NotebookConflictError, NotebookCreationError, NotebookDocument, StoreError
from orchestrator.notebooks import ipynb
from orchestrator.notebooks.hostfiles import HostFiles
from orchestrator.notebooks.merging import merge
from orchestrator.notebooks.notebookfiles import digest
from orchestrator.notebooks.opennotebook import OpenNotebook
from tests.unit.notebookworld import MemoryFiles, document, form

Change = Callable[[list[Cell]], None]
FILE = "a.ipynb"


def changed(notebook: NotebookDocument, change: Change) -> NotebookDocument:
    cells = list(notebook.cells)
    change(cells)
    return replace(notebook, cells=tuple(cells))


def edit(index: int, **fields: Any) -> Change:
    def change(cells: list[Cell]) -> None:
        cells[index] = replace(cells[index], **fields)

    return change


def add(index: int, name: str) -> Change:
    return lambda cells: cells.insert(index, Cell(name, CellType.CODE, name))


def delete(index: int) -> Change:
    return lambda cells: cells.__delitem__(index)


def move(index: int, to: int) -> Change:
    return lambda cells: cells.insert(to, cells.pop(index))


WORDS = ["cells", "metadata", "nbformat_minor", "id", "cell_type", "source", "outputs", "worksheets", "attachments"]
OUT = ({"output_type": "stream", "name": "stdout", "text": "new"},)
BASE = document("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("ours", "theirs", "sources"),
    [
        (edit(0, source="A"), edit(3, source="D"), "A b c D"),
        (edit(1, source="B"), edit(1, source="B"), "a B c d"),
        (edit(1, source="B"), edit(1, outputs=OUT), "a B c d"),
        (add(1, "x"), add(3, "y"), "a x b c y d"),
        (delete(0), edit(2, source="C"), "b C d"),
        (delete(0), edit(0, outputs=OUT), "b c d"),
        (delete(0), delete(0), "b c d"),
        (move(0, 3), edit(0, source="A"), "b c d A"),
        (edit(0, source="A"), move(3, 0), "d A b c"),
        (move(0, 3), add(1, "x"), "b c d a x"),
        (add(4, "x"), move(0, 3), "b c d x a"),
        (edit(0, metadata={"tags": ["t"]}), edit(0, source="A"), "A b c d"),
    ],
)
def test_changes_of_both_sides_are_kept(ours: Change, theirs: Change, sources: str) -> None:
    """Edits of different cells, additions, deletions and moves."""
    merged = merge(BASE, changed(BASE, ours), changed(BASE, theirs), FILE)
    assert " ".join(cell.source for cell in merged.cells) == sources


@pytest.mark.parametrize(
    ("ours", "theirs", "cells"),
    [
        (edit(0, source="A"), edit(0, source="Z"), ("c0",)),
        (delete(0), edit(0, source="A"), ("c0",)),
        (edit(0, cell_type=CellType.MARKDOWN), delete(0), ("c0",)),
        (edit(1, metadata={"k": 1}), edit(1, metadata={"k": 2}), ("c1",)),
        (move(0, 3), move(3, 0), ("c1", "c2", "c3", "c0")),
        (add(0, "x"), lambda cells: cells.insert(0, Cell("x", CellType.CODE, "other")), ("x",)),
    ],
)
def test_changes_of_the_same_cells_are_a_conflict_that_names_them(
    ours: Change, theirs: Change, cells: tuple[str, ...]
) -> None:
    with pytest.raises(NotebookConflictError) as caught:
        merge(BASE, changed(BASE, ours), changed(BASE, theirs), FILE)
    assert set(caught.value.cells) <= {*cells}
    assert caught.value.cells
    assert caught.value.path == FILE


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [(OUT, (), OUT), ((), OUT, OUT), (OUT, ({**OUT[0], "text": "theirs"},), OUT)],
    ids=["only ours ran", "only theirs ran", "both ran"],
)
def test_outputs_are_no_edits(ours: Any, theirs: Any, shown: Any) -> None:
    """The side that ran has the word; where both did, the session's outputs stay."""
    merged = merge(BASE, changed(BASE, edit(0, outputs=ours)), changed(BASE, edit(0, outputs=theirs)), FILE)
    assert merged.cells[0].outputs == shown


def test_metadata_and_unknown_fields_of_the_file_are_kept() -> None:
    """Each side's keys of a cell, and the notebook's own as the file has them."""
    base = replace(BASE, metadata={"kept": 1, "kernelspec": {"name": "python3", "display_name": "Python"}})
    ours = changed(base, edit(0, metadata={"ours": 1, "execution": {"iopub.status.busy": "now"}}))
    theirs = replace(changed(base, edit(0, metadata={"theirs": 2})), metadata={"kept": 2, "new": 3}, extra={"x": 1})
    merged = merge(base, ours, theirs, FILE)
    assert merged.cells[0].metadata == {"ours": 1, "theirs": 2}
    assert merged.metadata == {"kept": 2, "new": 3, "kernelspec": base.metadata["kernelspec"]}
    assert merged.extra == {"x": 1}


CHANGES = st.lists(
    st.one_of(
        st.builds(lambda at, text: ("edit", at, text), st.integers(0, 9), st.sampled_from(["P", "Q"])),
        st.builds(lambda at, to: ("move", at, to), st.integers(0, 9), st.integers(0, 9)),
        st.builds(lambda at, name: ("add", at, name), st.integers(0, 9), st.sampled_from(["u", "v", "w"])),
        st.builds(lambda at: ("delete", at, ""), st.integers(0, 9)),
    ),
    max_size=4,
)


def applied(notebook: NotebookDocument, changes: list[tuple[str, int, Any]], side: str) -> NotebookDocument:
    cells = list(notebook.cells)
    for number, (kind, at, what) in enumerate(changes):
        if kind == "add":
            cells.insert(at % (len(cells) + 1), Cell(f"{side}{number}{what}", CellType.CODE, what))
        elif cells and kind == "edit":
            cells[at % len(cells)] = replace(cells[at % len(cells)], source=what)
        elif cells and kind == "move":
            cells.insert(what % len(cells), cells.pop(at % len(cells)))
        elif cells:
            del cells[at % len(cells)]
    return replace(notebook, cells=tuple(cells))


@settings(max_examples=300, derandomize=True, database=None)
@given(CHANGES, CHANGES)
def test_no_merge_loses_an_edit(here: list[tuple[str, int, Any]], there: list[tuple[str, int, Any]]) -> None:
    """Each cell that a side changed, added or deleted is so in the merged notebook, or is named by a conflict."""
    ours, theirs = applied(BASE, here, "o"), applied(BASE, there, "t")
    base, our, their = ({cell.id: cell.source for cell in side.cells} for side in (BASE, ours, theirs))
    conflict: NotebookConflictError | None = None
    try:
        merged = {cell.id: cell.source for cell in merge(BASE, ours, theirs, FILE).cells}
    except NotebookConflictError as error:
        conflict = error
    if conflict is not None:
        assert set(conflict.cells) <= {*base, *our, *their}
        moved = [[name for name in side if name in base] for side in (our, their)]
        assert moved[0] != moved[1] or any(our.get(name) != their.get(name) for name in conflict.cells)
        return
    for name in {*base, *our, *their}:
        for side in (our, their):
            if side.get(name) != base.get(name):
                assert merged.get(name) == side.get(name)
        if our.get(name) == their.get(name) == base.get(name):
            assert merged[name] == base[name]
    orders = [[name for name in side if name in merged] for side in (our, their)]
    assert any([name for name in merged if name in order] == order for order in orders)


async def opened(files: MemoryFiles | HostFiles, path: str) -> OpenNotebook:
    return await OpenNotebook.read(files, path, "nb-1")


def sources_in(content: bytes) -> list[str]:
    return [cell.source for cell in ipynb.parse(content, "").cells]


async def test_a_file_that_a_person_edited_is_merged_and_the_notebook_has_it_too() -> None:
    """Twice, and once while the file is being replaced."""
    files = MemoryFiles()
    files.contents[FILE] = ipynb.dump(BASE)
    notebook = await opened(files, FILE)
    for number in range(2):
        notebook.living.edit("c0", f"ours {number}")
        theirs = json.loads(files.contents[FILE])
        theirs["cells"][3]["source"] = [f"theirs {number}\n", "d"]
        theirs["metadata"]["person"] = number
        edited = (json.dumps(theirs) + " ").encode()
        if number:
            files.between.append(edited)
        else:
            files.contents[FILE] = edited
        await notebook.save(files)
        assert sources_in(files.contents[FILE]) == [f"ours {number}", "b", "c", f"theirs {number}\nd"]
        assert [cell.source for cell in notebook.living.cells] == sources_in(files.contents[FILE])
        assert json.loads(files.contents[FILE])["metadata"] == {"person": number}
        assert notebook.is_saved


async def test_a_conflict_changes_neither_the_file_nor_the_notebook() -> None:
    """And the way out is another path."""
    files = MemoryFiles()
    files.contents[FILE] = ipynb.dump(BASE)
    notebook = await opened(files, FILE)
    notebook.living.edit("c0", "ours")
    theirs = ipynb.dump(changed(BASE, edit(0, source="theirs")))
    files.contents[FILE] = theirs
    for _ in range(2):
        with pytest.raises(NotebookConflictError) as caught:
            await notebook.save(files)
        assert caught.value.cells == ("c0",)
        assert files.contents[FILE] == theirs
        assert notebook.living.cells[0].source == "ours"
    assert await notebook.save(files, "b.ipynb") == "b.ipynb"
    assert sources_in(files.contents["b.ipynb"])[0] == "ours"
    assert files.contents[FILE] == theirs


async def test_a_file_that_is_no_notebook_any_longer_is_a_conflict() -> None:
    files = MemoryFiles()
    files.contents[FILE] = ipynb.dump(BASE)
    notebook = await opened(files, FILE)
    files.contents[FILE] = b"not a notebook"
    with pytest.raises(NotebookConflictError):
        await notebook.save(files)
    assert files.contents[FILE] == b"not a notebook"


async def test_another_file_is_replaced_only_if_the_caller_says_so() -> None:
    files = MemoryFiles()
    files.contents = {FILE: ipynb.dump(BASE), "other": b"something"}
    notebook = await opened(files, FILE)
    with pytest.raises(NotebookConflictError):
        await notebook.save(files, "other")
    assert files.contents["other"] == b"something"
    await notebook.save(files, "other", overwrite=True)
    assert sources_in(files.contents["other"]) == ["a", "b", "c", "d"]
    del files.contents["other"]  # a file that was deleted is written again
    await notebook.save(files)
    assert "other" in files.contents


async def test_an_older_notebook_gets_ids_and_keeps_them_when_a_person_saves_it_without() -> None:
    """nbformat 4.4 has no ids: cells are found again by their type and source, also with one edited between them."""
    files = MemoryFiles()
    files.contents[FILE] = json.dumps(form("a", "b", "c", ids=False)).encode()
    notebook = await opened(files, FILE)
    ids = [cell.id for cell in notebook.living.cells]
    assert len(set(ids)) == 3
    notebook.living.edit(ids[0], "A")
    files.contents[FILE] = json.dumps(form("a", "B", "c", "d", ids=False)).encode()
    await notebook.save(files)
    assert [cell.source for cell in notebook.living.cells] == ["A", "B", "c", "d"]
    assert [cell.id for cell in notebook.living.cells][:3] == ids
    assert json.loads(files.contents[FILE])["nbformat_minor"] == 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1, 2]",
        b"\xff\xfe",
        b'{"nbformat": 4}',
        b'{"cells": {}, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
        b'{"cells": [{"cell_type": "strange", "source": "", "metadata": {}}], "metadata": {}, "nbformat": 4}',
        b"[" * 100_000,
        json.dumps({**form("a"), "metadata": json.loads("[" * 200 + "]" * 200)}).encode(),
        json.dumps(form("x" * 1_100_000)).encode(),
        json.dumps({**form("a"), "nbformat": 3}).encode(),
        json.dumps({**form("a"), "nbformat": 9}).encode(),
        b'{"a": [' + b"[]," * 400_000 + b"[]]}",
        b" " * (ipynb.LARGEST_FILE + 1),
    ],
    ids=range(13),
)
def test_what_is_no_notebook_is_refused(content: bytes) -> None:
    """Also where it is nested deeply, or too large."""
    with pytest.raises(NotebookCreationError):
        ipynb.parse(content, "nb-1")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 6) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WORDS, "x"]), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, derandomize=True, database=None)
@given(st.dictionaries(st.sampled_from(WORDS), JSON), st.dictionaries(st.sampled_from(WORDS), JSON), st.integers(0, 5))
def test_any_json_is_a_valid_notebook_or_refused(top: Any, cell: Any, version: int) -> None:
    """A file with wrong values in any of its places: no other error, and what is read can be written and read again."""
    strange = form("a", "b") | {"nbformat": version}
    strange["cells"][0] |= cell
    try:
        read = ipynb.parse(json.dumps(strange | top).encode(), "nb-1")
    except NotebookCreationError:
        return
    nbformat.validate(json.loads(ipynb.dump(read)), relax_add_props=True)
    assert ipynb.parse(ipynb.dump(read), "nb-1") == read


def test_commas_in_text_are_no_parts() -> None:
    """A notebook that printed a large table is read."""
    wide = form("a")
    wide["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": '1,"2",[3]\n' * 300_000}]
    assert len(ipynb.parse(json.dumps(wide).encode(), "nb-1").cells) == 1


def test_a_hostile_notebook_is_read_without_its_traps() -> None:
    """Ids that occur twice, marks of trust, content that is not what its type says; fields of newer versions stay."""
    hostile = form("a", "b")
    for cell in hostile["cells"]:
        cell |= {"id": "same", "metadata": {"trusted": True, "tags": ["kept"]}}
    data = {"image/png": "no base64 !", "text/plain": "kept"}
    hostile["cells"][0]["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
    hostile |= {"nbformat_minor": 6, "of_a_newer_version": 1}
    hostile["metadata"] = {"signature": "x", "signed": 2}
    read = ipynb.parse(json.dumps(hostile).encode(), "nb-1")
    assert len({cell.id for cell in read.cells}) == 2
    assert [cell.metadata for cell in read.cells] == [{"tags": ["kept"]}] * 2
    assert read.cells[0].outputs[0]["data"] == {"text/plain": "kept"}
    written = json.loads(ipynb.dump(read))
    assert (written["of_a_newer_version"], written["nbformat_minor"], written["metadata"]) == (1, 6, {"signed": 2})


def test_a_notebook_is_written_as_nbformat_writes_it(tmp_path: Path) -> None:
    """Byte for byte, lone surrogates of a file included: its diff in version control is what changed."""
    notebook = nbformat.from_dict({**form("a\nb", "é"), "metadata": {"z": 1, "a": 2}})
    nbformat.write(notebook, tmp_path / FILE)
    content = (tmp_path / FILE).read_bytes()
    assert ipynb.dump(ipynb.parse(content, "nb-1")) == content
    strange = ipynb.parse(json.dumps(form("x = '\\ud800'")).replace("\\\\ud800", "\\ud800").encode(), "nb-1")
    assert "\\ud800" in ipynb.dump(strange).decode()


async def test_files_of_the_host_are_replaced_as_a_whole(tmp_path: Path) -> None:
    """Mode and link stay, and nothing is left beside them."""
    target = tmp_path / "real.ipynb"
    target.write_bytes(ipynb.dump(BASE))
    target.chmod(0o600)
    link = tmp_path / "link.ipynb"
    link.symlink_to(target)
    files = HostFiles()
    notebook = await opened(files, str(link))
    notebook.living.edit("c0", "new")
    await notebook.save(files)
    assert sources_in(target.read_bytes())[0] == "new"
    assert (target.stat().st_mode & 0o777, link.is_symlink()) == (0o600, True)
    await notebook.save(files, str(tmp_path / "third.ipynb"))
    assert sorted(os.listdir(tmp_path)) == ["link.ipynb", "real.ipynb", "third.ipynb"]


async def test_what_another_program_writes_at_that_very_moment_is_put_back(tmp_path: Path) -> None:
    """It knows no lock, and writes once in each of many rounds: its file is there in the end of each."""
    target, files, chance = tmp_path / FILE, HostFiles(), random.Random(1)  # noqa: S311 - seeded
    took = 0.002  # seconds, as measured so far

    def other(delay: float) -> None:
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            pass
        os.replace(tmp_path / "theirs", target)

    for _ in range(400):
        target.write_bytes(b"base")
        (tmp_path / "theirs").write_bytes(b"theirs")
        begun = time.perf_counter()
        ours = asyncio.create_task(files.replace(str(target), b"ours", digest(b"base")))
        await asyncio.gather(ours, asyncio.to_thread(other, chance.uniform(0, 1.5 * took)))
        took = 0.9 * took + 0.1 * min(0.02, time.perf_counter() - begun)
        assert target.read_bytes() == b"theirs"
        assert ours.result() in (None, b"theirs")


async def test_processes_that_replace_files_of_one_folder_take_turns(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        waiting = asyncio.create_task(HostFiles().replace(str(tmp_path / FILE), b"new", ""))
        await asyncio.sleep(0.3)
        assert not (tmp_path / FILE).exists()
    finally:
        os.close(folder)
    await waiting
    assert (tmp_path / FILE).read_bytes() == b"new"


async def test_a_file_of_the_host_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    notebook = OpenNotebook(BASE)
    for path in (tmp_path / "no" / FILE, tmp_path):
        with pytest.raises(StoreError):
            await notebook.save(HostFiles(), str(path))
    with pytest.raises(NotebookCreationError):
        await opened(HostFiles(), str(tmp_path / "none.ipynb"))


async def test_two_that_save_one_file_all_the_time_lose_nothing(tmp_path: Path) -> None:
    """Each appends lines to a cell of its own, and saves after each line: in the end the file has all of them."""
    target = tmp_path / FILE
    target.write_bytes(ipynb.dump(document("", "")))
    files, lines = HostFiles(), 30

    async def write(name: str) -> None:
        notebook = await opened(files, str(target))
        for number in range(lines):
            notebook.living.edit(name, f"{notebook.living.cell(name).source}{number}\n")
            saved = False
            while not saved:
                with contextlib.suppress(NotebookConflictError):  # the other one was quicker five times
                    await notebook.save(files)
                    saved = True

    await asyncio.gather(write("c0"), write("c1"))
    assert sources_in(target.read_bytes()) == ["".join(f"{number}\n" for number in range(lines))] * 2
    assert os.listdir(tmp_path) == [FILE]
