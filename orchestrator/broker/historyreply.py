"""The reply to a client's ``history_request``, from the session's history on the host. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

_SESSION = 1  # the number of the session in IPython's terms: a history of ours has one
_MOST = 10_000  # cells of a reply


def history_reply(history: Iterable[Mapping[str, Any]], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the reply.

    Args:
        history: see ``KernelSession.execution_history``.
        content: of the request, as Jupyter's protocol has it: "hist_access_type" is "range", "tail" or "search".
    """
    cells = [(number, entry) for number, entry in enumerate(history, start=1)]
    count = content.get("n")
    most = min(count, _MOST) if type(count) is int and count > 0 else _MOST
    match content.get("hist_access_type"):
        case "range":
            cells = _range(cells, content)
        case "search":
            cells = _found(cells, content)[-most:]
        case "tail":
            cells = cells[-most:]
        case _:
            cells = []
    with_output = content.get("output") is True
    return {"status": "ok", "history": [_line(number, entry, with_output) for number, entry in cells[-_MOST:]]}


Cells = list[tuple[int, Mapping[str, Any]]]


def _range(cells: Cells, content: Mapping[str, Any]) -> Cells:
    if content.get("session", 0) not in (0, _SESSION):
        return []
    start, stop = content.get("start"), content.get("stop")
    first = start if type(start) is int else 1
    return [each for each in cells if each[0] >= first and (type(stop) is not int or each[0] < stop)]


def _found(cells: Cells, content: Mapping[str, Any]) -> Cells:
    pattern = str(content.get("pattern", "*"))
    found = [each for each in cells if fnmatchcase(str(each[1]["code"]), pattern)]
    if content.get("unique") is True:
        found = sorted(
            {str(entry["code"]): (number, entry) for number, entry in found}.values(), key=lambda each: each[0]
        )
    return found


def _line(number: int, entry: Mapping[str, Any], with_output: bool) -> tuple[int, int, Any]:
    code = str(entry["code"])
    return (_SESSION, number, (code, entry["result"].get("result"))) if with_output else (_SESSION, number, code)
