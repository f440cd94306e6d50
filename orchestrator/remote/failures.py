"""Errors that a server sent, as the exceptions that they were. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import CellblockError, PolicyFault, ServerError
from orchestrator.outcome import Outcome
from orchestrator.output.events import ExecutionResult

_OUTCOMES = {outcome.value: outcome for outcome in Outcome}


def failure(form: object, status: int) -> CellblockError:
    """Return the error of a problem+json, with its fields; a ServerError for anything else.

    Args:
        form: the body, as JSON.
        status: the answer's HTTP status.
    """
    kind = _CLASSES.get(str(form.get("code"))) if isinstance(form, Mapping) else None
    if kind is None or not isinstance(form, Mapping):
        said = form.get("detail") if isinstance(form, Mapping) else None
        return ServerError(f"the server answered with status {status}: {str(said or form)[:500]}")
    error = kind.__new__(kind)
    message, fields = str(form.get("message", "")), form.get("fields")
    vars(error).update({"message": message, "remedy": str(form.get("remedy", ""))})
    try:
        known = {name: _value(name, value) for name, value in dict(fields or {}).items() if name.isidentifier()}
    except (TypeError, ValueError, KeyError, AttributeError):
        return ServerError(f"the server answered with status {status}, and an error without its form: {message[:500]}")
    vars(error).update(known)
    error.args = (message,)
    return error


def _value(name: str, value: Any) -> Any:
    if name == "result" and isinstance(value, Mapping):
        return ExecutionResult.from_dict(value)
    if name == "reason" and isinstance(value, str):
        return _OUTCOMES.get(value, value)
    if name == "path" and isinstance(value, str) and value.endswith(".toml"):
        return Path(value)
    if name == "faults" and isinstance(value, list):
        return tuple(PolicyFault(**fault) for fault in value)
    return tuple(value) if isinstance(value, list) else value


def _kinds(base: type[CellblockError]) -> Iterator[type[CellblockError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


_CLASSES = {kind.code: kind for kind in _kinds(CellblockError)}
