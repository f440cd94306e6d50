"""What a cell puts out, as the lines of E2B's code interpreter. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.outcome import Outcome
from orchestrator.output.events import (
    DisplayData,
    ErrorOutput,
    Event,
    ExecuteResult,
    ExecutionResult,
    OutputDropped,
    StreamOutput,
)

Line = dict[str, Any]
KEEPALIVE: Final[Line] = {"type": "keepalive"}
END: Final[Line] = {"type": "end_of_execution"}
DATA_TYPE: Final = "application/vnd.cellblock.e2b-data+json"
CHART_TYPE: Final = "application/vnd.cellblock.e2b-chart+json"
_FIELDS: Final[dict[str, str]] = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "text/javascript": "javascript",
    DATA_TYPE: "data",
    CHART_TYPE: "chart",
}


def line_of(event: Event) -> Line | None:
    """Return the line of an event; None for one that E2B does not tell."""
    match event:
        case StreamOutput(name=name, text=text):
            return {"type": name, "text": text, "timestamp": time.time_ns()}
        case ExecuteResult(data=data):
            return {**_result(data), "is_main_result": True}
        case DisplayData(data=data):
            return {**_result(data), "is_main_result": False}
        case ErrorOutput(ename=name, evalue=value, traceback=traceback):
            return error_line(name, value, "\n".join(traceback))
        case OutputDropped(dropped_bytes=count):
            return {
                "type": "stderr",
                "text": left_out(count),
                "timestamp": time.time_ns(),
            }
        case _:
            return None


def left_out(count: int) -> str:
    """Return what is said in place of output that exceeds the limit."""
    return f"[Cellblock left out {count} bytes of output: it exceeds the limit.]\n"


def error_line(name: str, value: str, traceback: str = "") -> Line:
    """Return the line of an error."""
    return {"type": "error", "name": name, "value": value, "traceback": traceback or f"{name}: {value}"}


def count_line(count: int) -> Line:
    """Return the line with the number of the cell."""
    return {"type": "number_of_executions", "execution_count": count}


def ending(result: ExecutionResult, shown: ErrorOutput | None) -> list[Line]:
    """Return the lines at the end of a cell: how it ended if not well, its number, and the end.

    Args:
        shown: the last error that the cell put out; None for none.
    """
    lines: list[Line] = []
    error = shown or result.error
    if result.outcome is Outcome.TIMEOUT:
        value = f"the code ran for {result.duration_s:.0f} s, longer than the sandbox's policy allows, and was stopped."
        lines.append(error_line("TimeoutError", value, "\n".join(error.traceback) if error is not None else ""))
    elif error is not None:
        lines.append(error_line(error.ename, error.evalue, "\n".join(error.traceback)))
    if result.execution_count is not None:
        lines.append(count_line(result.execution_count))
    return [*lines, END]


def _result(data: Mapping[str, Any]) -> Line:
    line: Line = {"type": "result"}
    extra: dict[str, Any] = {}
    for mime, content in data.items():
        field = _FIELDS.get(mime)
        if field is None:
            extra[mime] = content
        else:
            line[field] = _unquoted(content) if field == "text" else content
    if extra:
        line["extra"] = extra
    return line


def _unquoted(text: Any) -> Any:
    """Return the text of a string without its quotes, as E2B has it."""
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
