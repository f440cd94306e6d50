"""What a new notebook may be: its kernel, its metadata, and those of its cells. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import InvalidInputError, KernelNotFoundError, NotebookCreationError
from orchestrator.notebooks import ipynb
from orchestrator.notebooks.cell import CellType
from orchestrator.notebooks.notebookdocument import NotebookDocument

_KERNELS = {"python3": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
_LANGUAGE = {"name": "python", "mimetype": "text/x-python", "file_extension": ".py"}
_LANGUAGES = ("python", "ipython")
_LONGEST_METADATA = 4096  # characters of JSON


def empty(notebook_id: str, kernel_name: str, metadata: Mapping[str, Any] | None) -> NotebookDocument:
    """Return a notebook without cells.

    Raises:
        KernelNotFoundError: sandboxes have no such kernel.
        NotebookCreationError: the metadata cannot be used.
    """
    if kernel_name not in _KERNELS:
        raise _no_kernel(kernel_name)
    own = {"kernelspec": _KERNELS[kernel_name], "language_info": _LANGUAGE}
    return of_form(_form([], {**dict(metadata or {}), **own}), notebook_id)


def of_form(form: Mapping[str, Any], notebook_id: str) -> NotebookDocument:
    """Return the notebook that a caller has in nbformat's form.

    Raises:
        NotebookCreationError: it is no notebook, or too large.
    """
    try:
        return ipynb.parse(json.dumps(dict(form), allow_nan=False).encode(), notebook_id)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotebookCreationError(f"this is not a notebook: {str(error)[:200]}.") from None


def check_language(document: NotebookDocument) -> None:
    """Check that a sandbox can run a notebook.

    Raises:
        KernelNotFoundError: its code is not Python.
    """
    language = document.language_info.get("name") or document.kernel_spec.get("language") or _LANGUAGES[0]
    if str(language).lower() not in _LANGUAGES:
        raise _no_kernel(str(document.kernel_spec.get("name") or language))


def cell_metadata(kind: CellType, metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a copy of a new cell's metadata.

    Raises:
        InvalidInputError: it is no JSON object that a cell can have, or too large.
    """
    if not metadata:
        return {}
    code: dict[str, Any] = {"outputs": [], "execution_count": None} if kind is CellType.CODE else {}
    cell = {"id": "a", "cell_type": kind.value, "source": "", "metadata": dict(metadata), **code}
    try:
        found = of_form(_form([cell], {}), "").cells[0].metadata
    except NotebookCreationError as error:
        raise InvalidInputError(f"the metadata cannot be used: {error.message}") from None
    if len(json.dumps(found)) > _LONGEST_METADATA:
        raise InvalidInputError(f"the metadata has more than {_LONGEST_METADATA:,} characters.")
    return found


def _form(cells: list[dict[str, Any]], metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"cells": cells, "metadata": dict(metadata), "nbformat": 4, "nbformat_minor": 5}


def _no_kernel(name: str) -> KernelNotFoundError:
    return KernelNotFoundError(
        f"sandboxes have no kernel {str(name)[:40]!r}.",
        kernel_name=str(name)[:40],
        remedy=f"They have: {', '.join(_KERNELS)}.",
    )
