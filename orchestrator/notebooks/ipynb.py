"""Reads and writes .ipynb files. Pure. A file may be hostile: it is checked and bounded, and nothing in it is run.

Older notebooks are brought to nbformat 4.5, where cells have ids. Fields that are not known here are kept. The marks of
trust, with which Jupyter renders output unescaped, are left out in both directions.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import nbformat
from nbformat import ValidationError, reader

from orchestrator.errors import NotebookCreationError
from orchestrator.limits import MIB
from orchestrator.notebooks.cell import Cell, CellType
from orchestrator.notebooks.cellmatching import matched
from orchestrator.notebooks.jsonbounds import DEEPEST, has_many_parts, is_deep
from orchestrator.notebooks.notebookbounds import BOUNDS
from orchestrator.notebooks.notebookdocument import MINOR, NotebookDocument
from orchestrator.output.amounts import amount, memory_of
from orchestrator.output.mimebundle import is_valid
from orchestrator.output.printable import printable

LARGEST_FILE = 48 * MIB  # bytes
_CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_OF_CELLS = frozenset(("id", "cell_type", "source", "metadata", "execution_count", "outputs"))
_OF_NOTEBOOKS = frozenset(("cells", "metadata", "nbformat", "nbformat_minor"))
_NEVER_KEPT = frozenset(
    ("trusted", "signature", "orig_nbformat", "orig_nbformat_minor")
)  # marks, of trust and nbformat's
# What nbformat raises for a notebook that is none; its converter of older ones checks nothing itself.
_FAULTS = (ValidationError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)


def parse(content: bytes, notebook_id: str, base: NotebookDocument | None = None) -> NotebookDocument:
    """Return the notebook in a file.

    Args:
        base: an earlier state of the file: cells without ids get the ids that the same cells had there.

    Raises:
        NotebookCreationError: it is no notebook, or too large.
    """
    if len(content) > LARGEST_FILE:
        raise NotebookCreationError(
            f"the notebook has {amount(len(content))}; at most {amount(LARGEST_FILE)} are read."
        )
    if has_many_parts(content):
        raise NotebookCreationError("the notebook has too many parts: objects, lists and values.")
    try:
        form = json.loads(content, parse_constant=lambda _constant: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise NotebookCreationError(f"this is not a notebook: {_reason(error)}.") from None
    return from_form(form, notebook_id, base)


def from_form(form: Any, notebook_id: str, base: NotebookDocument | None = None) -> NotebookDocument:
    """Return the notebook that a value has, which was read from JSON.

    Raises:
        NotebookCreationError: see ``parse``.
    """
    if is_deep(form):
        raise NotebookCreationError(f"this is not a notebook: it is nested more than {DEEPEST} levels deep.")
    try:
        node = reader.reads(json.dumps(form))  # unlike ``nbformat.reads``, it gives no ids by chance
        if node.nbformat not in (3, 4):
            raise ValueError("its version of nbformat is neither 3 nor 4")
        node = node if node.nbformat == 4 else nbformat.convert(node, 4)
        if not isinstance(node.get("cells"), list):
            raise ValueError("it has no cells")
        node.nbformat_minor = max(MINOR, node.get("nbformat_minor", 0))
        _give_ids(node.cells, base)
        _drop_invalid_content(node.cells)
        nbformat.validate(node, relax_add_props=True)
        document = _document(json.loads(json.dumps(node)), notebook_id)
    except _FAULTS as error:
        raise NotebookCreationError(f"this is not a notebook: {_reason(error)}.") from None
    _check_size(document)
    return document


def dump(document: NotebookDocument) -> bytes:
    """Return a notebook as a .ipynb file has it: as nbformat writes it."""
    form = document.as_dict()
    form["metadata"] = _without_trust(form["metadata"])
    for cell in form["cells"]:
        cell["metadata"] = _without_trust(cell["metadata"])
    node = nbformat.from_dict(form)
    text = nbformat.writes(node, version=nbformat.NO_CONVERT) + "\n"
    try:
        return str(text).encode()
    except UnicodeEncodeError:  # a file may spell a lone surrogate as an escape
        return (json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n").encode()


def _document(form: dict[str, Any], notebook_id: str) -> NotebookDocument:
    return NotebookDocument(
        id=notebook_id,
        cells=tuple(map(_cell, form["cells"])),
        metadata=_without_trust(form["metadata"]),
        minor=form["nbformat_minor"],
        extra={key: value for key, value in form.items() if key not in _OF_NOTEBOOKS},
    )


def _cell(form: dict[str, Any]) -> Cell:
    is_code = form["cell_type"] == CellType.CODE
    return Cell(
        id=form["id"],
        cell_type=CellType(form["cell_type"]),
        source=form["source"],
        metadata=_without_trust(form["metadata"]),
        execution_count=form["execution_count"] if is_code else None,
        outputs=tuple(form["outputs"]) if is_code else (),
        extra={key: value for key, value in form.items() if key not in _OF_CELLS},
    )


def _check_size(document: NotebookDocument) -> None:
    size = sum(len(cell.source) for cell in document.cells)
    longest = max((len(cell.source) for cell in document.cells), default=0)
    if len(document.cells) > BOUNDS.cells or size > BOUNDS.source or longest > BOUNDS.cell_source:
        raise NotebookCreationError("the notebook has too many cells, or too much source.")
    if memory_of([cell.outputs for cell in document.cells]) > BOUNDS.output_bytes:
        raise NotebookCreationError(
            f"the notebook's outputs take more than {amount(BOUNDS.output_bytes)}.", remedy="Clear some of its outputs."
        )


def _give_ids(cells: Sequence[Any], base: NotebookDocument | None) -> None:
    """Give ids to cells that have none, an unusable one, or one that an earlier cell has."""
    taken: set[str] = set()
    without = []
    for cell in cells:
        name = cell.get("id")
        if isinstance(name, str) and _CELL_ID.fullmatch(name) and name not in taken:
            taken.add(name)
        else:
            without.append(cell)
    known = [cell for cell in base.cells if cell.id not in taken] if base is not None else []
    then = [(cell.cell_type.value, cell.source) for cell in known]
    names = matched(then, [(str(cell.get("cell_type")), str(cell.get("source"))) for cell in without])
    for number, cell in enumerate(without):
        cell["id"] = known[names[number]].id if number in names else secrets.token_hex(4)


def _drop_invalid_content(cells: Sequence[Any]) -> None:
    """Leave out content that is not what its mime type says, such as a picture that is no base64."""
    for cell in cells:
        for output in cell.get("outputs", []) if isinstance(cell.get("outputs"), list) else []:
            data = output.get("data")
            if isinstance(data, dict):
                output["data"] = {mime: item for mime, item in data.items() if is_valid(mime, item)}


def _without_trust(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in _NEVER_KEPT}


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at line {error.lineno}"
    return printable(str(error).partition("\n")[0], 200).rstrip(".") or type(error).__name__
