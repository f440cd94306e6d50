"""Translates Jupyter's messages into output events. Pure. It drops everything that does not follow the protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.output.events import (
    ClearOutput,
    CommMessage,
    DisplayData,
    ErrorOutput,
    ExecuteResult,
    InputRequest,
    OutputEvent,
    StreamOutput,
    UpdateDisplayData,
)
from orchestrator.output.fileinfo import ChangedFile, parse_changes
from orchestrator.output.printable import printable

_LONGEST_ID = 256  # characters of a display's id; IPython's have 32
_MOST_LINES = 1000  # of a traceback
_REPLY_LINES = 100  # of a traceback in a reply
_DEEPEST = 64  # levels of nesting in a mime bundle; far above any real one, far below the interpreter's recursion limit


OUTPUT_KINDS = frozenset(("stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"))
COMM_KINDS = frozenset(("comm_open", "comm_msg", "comm_close"))
_LONGEST_PROMPT = 10_000  # characters
_MOST_WARNINGS = 8  # of a reply
_LONGEST_WARNING = 300  # characters
_LONGEST_ERROR = 64 * 1024  # characters that are kept of each text of an error in a reply


@dataclass(frozen=True, slots=True)
class Reply:
    """What is kept of an ``execute_reply``: its count, its error if it has one, its warnings, and the changed files.

    Attributes:
        extras: for Jupyter's clients: "payload" (a list) and "user_expressions" (a dict), where it has them.
    """

    count: int | None
    error: ErrorOutput | None
    warnings: tuple[str, ...] = ()
    changed_files: tuple[ChangedFile, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return what is kept of a reply's content."""
        error = None if content.get("status") == "ok" else to_error(content)
        if error is not None:  # mostly a copy of an error message that has come and was counted
            lines = tuple(line[:_LONGEST_ERROR] for line in error.traceback[-_REPLY_LINES:])
            error = ErrorOutput(error.ename[:_LONGEST_ERROR], error.evalue[:_LONGEST_ERROR], lines)
        changed, more = parse_changes(content.get("changed_files"))
        warnings = _reply_warnings(content.get("warnings"))
        if more:
            warnings += (f"{more} more files of /work changed",)
        extras = {
            name: clean(content[name])
            for name, kind in (("payload", list), ("user_expressions", dict))
            if isinstance(content.get(name), kind) and content[name]
        }
        return cls(count(content.get("execution_count")), error, warnings, changed, extras)


def _reply_warnings(value: object) -> tuple[str, ...]:
    """Return a reply's warnings, each on one printable line: they are shown in terminals and logs."""
    if not isinstance(value, list):
        return ()
    lines = (printable(" ".join(text(item)[:_LONGEST_WARNING].split())) for item in value[:_MOST_WARNINGS])
    return tuple(line for line in lines if line)


def to_comm(
    kind: str, content: Mapping[str, Any], metadata: Mapping[str, Any], buffers: Sequence[bytes]
) -> CommMessage | None:
    """Return the event of a comm's message; None for other kinds."""
    if kind not in COMM_KINDS:
        return None
    names = text(content.get("comm_id"))[:_LONGEST_ID], text(content.get("target_name"))[:_LONGEST_ID]
    return CommMessage(kind, *names, _mapping(content.get("data")), _mapping(metadata), tuple(buffers))


def to_event(kind: str, content: Mapping[str, Any]) -> OutputEvent | None:
    """Return the event of an output's message; None for kinds that are no output, and for malformed ones."""
    match kind:
        case "stream":
            name = content.get("name")
            if name not in ("stdout", "stderr"):
                return None
            return StreamOutput(name, text(content.get("text")))
        case "display_data":
            return DisplayData(*_bundle(content), display_id=_display_id(content))
        case "update_display_data":
            display_id = _display_id(content)
            return UpdateDisplayData(display_id, *_bundle(content)) if display_id is not None else None
        case "execute_result":
            return ExecuteResult(*_bundle(content), count(content.get("execution_count")), _display_id(content))
        case "error":
            return to_error(content)
        case "clear_output":
            return ClearOutput(wait=content.get("wait") is True)
    return None


def left_out(content: Mapping[str, Any]) -> int:
    """Return how many bytes the kernel left out of an output that was too large for a message."""
    return count(content.get("left_out")) or 0


def to_input_request(content: Mapping[str, Any]) -> InputRequest:
    """Return the question of an ``input_request``."""
    return InputRequest(text(content.get("prompt"))[:_LONGEST_PROMPT], content.get("password") is True)


def to_error(content: Mapping[str, Any]) -> ErrorOutput:
    """Return the error of an ``error`` message or a reply."""
    lines = content.get("traceback")
    return ErrorOutput(
        ename=text(content.get("ename")),
        evalue=text(content.get("evalue")),
        traceback=tuple(map(text, lines[:_MOST_LINES])) if isinstance(lines, list) else (),
    )


def count(value: object) -> int | None:
    """Return a number that every JSON reader can take; None for anything else."""
    return value if type(value) is int and 0 <= value < 2**53 else None


def text(value: object) -> str:
    """Return a string that every encoder can take: lone surrogates become question marks, other values \"\"."""
    if not isinstance(value, str):
        return ""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def clean(value: Any, depth: int = 0) -> Any:
    """Return a JSON value that every encoder can take: no lone surrogates, no NaN, bounded depth."""
    if depth > _DEEPEST:
        return None
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {text(key): clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item, depth + 1) for item in value]
    return value


def _bundle(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return _mapping(content.get("data")), _mapping(content.get("metadata"))


def _mapping(value: object) -> dict[str, Any]:
    cleaned = clean(value)
    return cleaned if isinstance(cleaned, dict) else {}


def _display_id(content: Mapping[str, Any]) -> str | None:
    transient = content.get("transient")
    display_id = transient.get("display_id") if isinstance(transient, dict) else None
    return text(display_id) if isinstance(display_id, str) and len(display_id) <= _LONGEST_ID else None
