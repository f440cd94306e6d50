"""The operations of the dispatcher: their fields, as one JSON schema that any provider of models takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from orchestrator.errors import InvalidInputError

DEFAULT_BUDGET = 4000  # tokens of an answer
LARGEST_BUDGET = 100_000
_LEAST_BUDGET = 300


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        says: what it does, for a model.
        fields: what it takes beside ``op``, ``notebook_id`` and ``budget``; "!" marks those that it needs.
    """

    says: str
    fields: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.removesuffix("!") for field in self.fields)

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(field.removesuffix("!") for field in self.fields if field.endswith("!"))


_NUMBER = {"type": "integer", "minimum": 0}
_WHICH = ("cell_id", "index")  # how one cell is named
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "notebook_id": {"type": "string", "description": "Default: the one used last"},
    "budget": {
        "type": "integer",
        "minimum": _LEAST_BUDGET,
        "maximum": LARGEST_BUDGET,
        "description": f"Most tokens of the answer; default {DEFAULT_BUDGET}",
    },
    "source": {"type": "string"},
    "type": {"enum": ["code", "markdown", "raw"]},
    "position": {**_NUMBER, "description": "Index of the cell afterwards; default: the end"},
    "execute": {"type": "boolean", "description": "Default true"},
    "cell_id": {"type": "string"},
    "index": {**_NUMBER, "description": "In place of cell_id"},
    "cell_ids": {"type": "array", "items": {"type": "string"}},
    "start": {**_NUMBER, "description": "First index"},
    "end": {**_NUMBER, "description": "Last index, included"},
    "types": {"type": "array", "items": {"enum": ["code", "markdown", "raw"]}},
    "tags": {"type": "array", "items": {"type": "string"}},
    "metadata": {"type": "object"},
    "stale": {"type": "boolean", "description": "Only stale cells"},
    "outline": {"type": "boolean", "description": "One line for each cell"},
    "stop_on_error": {"type": "boolean", "description": "Default true"},
    "store_history": {"type": "boolean", "description": "false: the cell is not kept"},
    "clear_outputs": {"type": "boolean", "description": "Default true"},
    "timeout": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds of each cell"},
    "output": {**_NUMBER, "description": "Number of the output; without it: the source"},
    "mime": {"type": "string"},
    "offset": {**_NUMBER, "description": "Characters to skip"},
    "path": {"type": "string"},
    "document": {"type": "object", "description": "A notebook as .ipynb JSON"},
    "overwrite": {"type": "boolean"},
    "save": {"type": "boolean", "description": "Default true"},
    "kernel_name": {"type": "string"},
}
_SELECTION = ("cell_ids", "start", "end", "types", "tags", "metadata", "stale")

OPERATIONS: Mapping[str, Operation] = {
    "create_notebook": Operation("make an empty notebook", ("kernel_name", "metadata")),
    "open_notebook": Operation("open a file, or a document", ("path", "document")),
    "list_notebooks": Operation("list what is open"),
    "get_notebook": Operation("look at a notebook: path, metadata, outline"),
    "get_cells": Operation("read cells", (*_SELECTION, "outline")),
    "get_output": Operation("read a source or an output whole, or a picture", (*_WHICH, "output", "mime", "offset")),
    "add_cell": Operation("add a cell and run it", ("source!", "type", "position", "metadata", "execute", "timeout")),
    "edit_cell": Operation(
        "replace a cell's source and run it", (*_WHICH, "source!", "type", "clear_outputs", "execute", "timeout")
    ),
    "move_cell": Operation("move a cell", (*_WHICH, "position!")),
    "delete_cell": Operation("remove a cell", _WHICH),
    "execute_cell": Operation(
        "run a cell that is there, or a new one", (*_WHICH, "source", "type", "position", "store_history", "timeout")
    ),
    "execute_cells": Operation("run all code, or what is selected", (*_SELECTION, "stop_on_error", "timeout")),
    "save_notebook": Operation("write the file; edits of others are merged", ("path", "overwrite")),
    "close_notebook": Operation("save and close", ("save",)),
}
RUNNING = frozenset(("add_cell", "edit_cell", "execute_cell", "execute_cells"))
"""The operations that run cells, and so wait for their turn."""

ALIASES = {"update_cell": "edit_cell"}

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "op": {
            "enum": list(OPERATIONS),
            "description": "; ".join(f"{name}: {operation.says}" for name, operation in OPERATIONS.items()),
        },
        **FIELDS,
    },
    "required": ["op"],
    "additionalProperties": False,
}
"""The JSON schema of a request: one flat object, since some providers take no alternatives."""


@cache
def _validators() -> Mapping[str, Any]:
    from jsonschema import Draft202012Validator  # 50 ms, which a process without notebooks need not spend

    return {name: Draft202012Validator(dict(schema)) for name, schema in FIELDS.items()}


def checked(request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the operation of a request, and its fields. Fields that are null count as missing.

    Raises:
        InvalidInputError: there is no such operation, or it does not take these fields; nothing was done.
    """
    if not isinstance(request, Mapping):
        raise InvalidInputError("a request is an object with the key `op`.")
    name = request.get("op")
    op = ALIASES.get(name, name) if isinstance(name, str) else ""
    if op not in OPERATIONS:
        raise InvalidInputError(
            f"there is no operation {str(name)[:40]!r}.", remedy=f"There are: {', '.join(OPERATIONS)}."
        )
    operation = OPERATIONS[op]
    fields = {key: value for key, value in request.items() if key != "op" and value is not None}
    known = {*operation.names, "notebook_id", "budget"}
    wrong = [key for key in fields if key not in known]
    missing = [key for key in operation.needed if key not in fields]
    if wrong or missing:
        faults = [*(f"no field {str(key)[:40]!r}" for key in wrong[:5]), *(f"{key!r} is missing" for key in missing)]
        raise InvalidInputError(
            f"{op} cannot be used so: {', '.join(faults)}.", remedy=f"It takes: {_takes(operation)}."
        )
    for key, value in fields.items():
        error = next(iter(_validators()[key].iter_errors(value)), None)
        if error is not None:
            raise InvalidInputError(f"{op}: {key!r} cannot be used: {error.message[:200]}.")
    return op, fields


def _takes(operation: Operation) -> str:
    return ", ".join((*operation.names, "notebook_id", "budget"))
