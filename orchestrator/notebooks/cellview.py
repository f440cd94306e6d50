"""What a model reads of a notebook: text within a budget of tokens, and rich output by name. Pure.

An estimate of tokens is of the answer's JSON, as ``orchestrator.output.tokencount`` makes it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InvalidInputError, InvalidPositionError
from orchestrator.notebooks.cell import Cell, CellType
from orchestrator.output import formodels
from orchestrator.output.outputs import DisplayData, ErrorOutput, ExecuteResult, Output, StreamOutput
from orchestrator.output.printable import printable
from orchestrator.output.tokencount import fitted, tokens

_ENVELOPE = 60  # tokens of an answer beside its cells
_LEAST = 40  # tokens that a shortened text has, or more
_SHORTEST = 60  # characters that a shortened text has, or more
_VIEW = 15  # tokens of an output beside its text
_MOST_FORMS = 8  # of an output that are named
_COMMA = 2  # tokens between two entries
_LINE = 80  # characters of a cell in an outline
_TEXTS = ("text/plain", "text/markdown", "text/latex")


@dataclass(frozen=True, slots=True)
class Page:
    """Cells that fit in a budget.

    Attributes:
        following: the index with which to go on; None: these are all.
    """

    cells: Sequence[dict[str, Any] | str]
    following: int | None


def cost(value: Any) -> int:
    """Return about how many tokens a model pays for a value as JSON."""
    return tokens(json.dumps(value, ensure_ascii=False))


def page(selected: Sequence[tuple[int, Cell]], stale: AbstractSet[str], budget: int) -> Page:
    """Return cells with sources and outputs, as many as fit in ``budget`` tokens, and at least one."""
    entries: list[dict[str, Any]] = []
    left = budget - _ENVELOPE
    for index, cell in selected:
        share = max(_LEAST, min(left, budget // 2))
        entry = _entry(index, cell, cell.id in stale, share)
        while cost(entry) > left and not entries and share > _LEAST:
            share = max(_LEAST, share * 2 // 3)
            entry = _entry(index, cell, cell.id in stale, share)
        left -= cost(entry) + _COMMA
        if left < 0 and entries:
            return Page(entries, index)
        entries.append(entry)
    return Page(entries, None)


def outline(selected: Sequence[tuple[int, Cell]], stale: AbstractSet[str], budget: int) -> Page:
    """Return a line for each cell, as many as fit in ``budget`` tokens, and at least one.

    A line has the index, the id, the type unless it is code, "stale" and "failed", and the source's first line.
    """
    lines: list[str] = []
    left = budget - _ENVELOPE
    for index, cell in selected:
        kind = [] if cell.cell_type is CellType.CODE else [cell.cell_type.value]
        line = f"{' '.join([str(index), cell.id, *kind, *_flags(cell, cell.id in stale)])}: {_first_line(cell.source)}"
        left -= cost(line) + _COMMA
        if left < 0 and lines:
            return Page(lines, index)
        lines.append(line)
    return Page(lines, None)


def outputs_view(outputs: Sequence[Mapping[str, Any]], budget: int) -> list[dict[str, Any]]:
    """Return outputs as text within about ``budget`` tokens. Of many, the first and the last ones are shown."""
    many = max(2, budget // (_LEAST + _VIEW))
    shown = list(enumerate(outputs))
    if len(shown) > many:
        left = len(shown) - many
        shown = shown[: many // 2] + shown[len(shown) - (many - many // 2) :]
    views = [_view(number, output) for number, output in shown]
    share = max(_LEAST, budget // max(1, len(views)) - _VIEW)
    spare = sum(max(0, share - cost(view["text"][: share * 5])) for view in views)  # what short ones leave to long ones
    for view in views:
        view["text"] = _fitted(view["text"], share + spare)
        spare -= max(0, cost(view["text"]) - share)
    if len(outputs) > many:
        views.insert(many // 2, {"type": "left_out", "text": f"[{left} outputs left out]"})
    return views


def piece(text: str, offset: int, budget: int) -> dict[str, Any]:
    """Return a part of a long text, and where the next one begins.

    Raises:
        InvalidPositionError: the text ends before the offset.
    """
    if not 0 <= offset <= len(text):
        raise InvalidPositionError(f"the text has {len(text):,} characters.", position=offset, total=len(text))
    part = fitted(lambda limit: text[offset : offset + limit], (budget - _ENVELOPE) * 3 // 4)  # JSON escapes cost too
    end = offset + len(part)
    found: dict[str, Any] = {"text": formodels.plain(part)}
    return found if end == len(text) else {**found, "next_offset": end, "characters": len(text)}


def content(cell: Cell, number: int, mime: str) -> tuple[str, str | bytes]:
    """Return the mime type of one form of an output, and the form: text, or bytes where it is base64.

    Args:
        number: of the output in its cell.
        mime: "": a picture if there is one, else text.

    Raises:
        InvalidPositionError: the cell has no such output.
        InvalidInputError: the output has no such form.
    """
    if not 0 <= number < len(cell.outputs):
        raise InvalidPositionError(
            f"the cell has {len(cell.outputs)} outputs, and no number {number}.",
            position=number,
            total=len(cell.outputs),
        )
    output = cell.outputs[number]
    data = output.get("data")
    if not isinstance(data, Mapping):
        return "text/plain", _whole_text(output)
    pictures = [name for name in data if name.startswith("image/")]
    chosen = mime or next(iter([*pictures, *(name for name in _TEXTS if name in data), *data]), "")
    if chosen not in data:
        raise InvalidInputError(f"the output has no {chosen[:100]!r}; it has: {', '.join(data)[:500]}.")
    item = data[chosen]
    if not isinstance(item, str):
        return chosen, json.dumps(item, ensure_ascii=False)
    if chosen.startswith("text/") or chosen.endswith(("json", "xml")):
        return chosen, item
    try:
        return chosen, base64.b64decode(item)
    except (binascii.Error, ValueError):
        return chosen, item


def _entry(index: int, cell: Cell, stale: bool, budget: int) -> dict[str, Any]:
    source = _fitted(cell.source, budget)
    outputs = outputs_view(cell.outputs, max(_LEAST, min(budget - tokens(source), budget // 2)))
    entry: dict[str, Any] = {
        "index": index,
        "cell_id": cell.id,
        "type": cell.cell_type.value,
        "source": source,
        "outputs": outputs,
    }
    if source is not cell.source:
        entry["source_characters"] = len(cell.source)
    return entry | _flags(cell, stale)


def _flags(cell: Cell, stale: bool) -> dict[str, Any]:
    failed = any(output.get("output_type") == "error" for output in cell.outputs)
    return {name: True for name, is_so in (("stale", stale), ("failed", failed)) if is_so}


def _view(number: int, output: Mapping[str, Any]) -> dict[str, Any]:
    typed = _typed(output)
    view: dict[str, Any] = {"type": str(output["output_type"]), "text": formodels.output_text(typed).rstrip("\n")}
    if isinstance(typed, StreamOutput) and typed.name == "stderr":
        view["name"] = "stderr"
    if isinstance(typed, DisplayData | ExecuteResult):
        rich = [printable(mime, 100) for mime in typed.data if mime not in _TEXTS][:_MOST_FORMS]
        view |= {"output": number, "data": rich} if rich else {}
    return view


def _typed(output: Mapping[str, Any]) -> Output:
    match output.get("output_type"):
        case "stream":
            return StreamOutput("stderr" if output.get("name") == "stderr" else "stdout", str(output.get("text", "")))
        case "error":
            traceback = output.get("traceback")
            lines = tuple(map(str, traceback)) if isinstance(traceback, list | tuple) else ()
            return ErrorOutput(str(output.get("ename", "")), str(output.get("evalue", "")), lines)
        case "execute_result":
            return ExecuteResult(_mapping(output.get("data")))
    return DisplayData(_mapping(output.get("data")))


def _whole_text(output: Mapping[str, Any]) -> str:
    typed = _typed(output)
    return typed.traceback_text if isinstance(typed, ErrorOutput) else formodels.output_text(typed)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first_line(source: str) -> str:
    line = next((line.strip() for line in source[:2000].splitlines() if line.strip()), "")
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"


def _fitted(text: str, budget: int) -> str:
    """Return the text, or its beginning and end within a budget of tokens."""
    if len(text) <= budget * 10 and cost(text) <= budget:
        return text
    limit = budget * 5
    while True:
        short = formodels.shortened(text, limit)
        if (taken := cost(short)) <= budget or limit <= _SHORTEST:
            return short
        limit = max(_SHORTEST, int(min(limit, len(text)) * budget / taken * 0.95))
