"""What a page gets of a cell: each output in its best form, and only as much of it as a page can show. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import InvalidInputError
from orchestrator.output.lastdisplays import with_last_displays
from orchestrator.store.records import CellRecord

_BEST = ("text/html", "image/svg+xml", "image/png", "image/jpeg", "image/gif", "text/markdown", "text/latex")
_PLAIN = "text/plain"
_TEXT = 64 * 1024  # characters of a text
_RICH = 512 * 1024  # characters of HTML or SVG: a larger one is left out
_IMAGE = 8 * 1024 * 1024  # characters of an image in base64: a larger one is left out
_ALL = 16 * 1024 * 1024  # characters of one answer
MOST_OUTPUTS = 100  # outputs of one cell


class Abridgement:
    """Makes one answer of some cells, of 16 million characters at most."""

    def __init__(self) -> None:
        self._left = _ALL

    def cells(self, records: list[CellRecord]) -> list[dict[str, Any]]:
        """Return cells for a page. The newest one gets its share first."""
        results = with_last_displays([record.result for record in records])
        pairs = list(zip(records, results, strict=True))
        return [self._cell(record, result) for record, result in reversed(pairs)][::-1]

    def _cell(self, record: CellRecord, result: Mapping[str, Any]) -> dict[str, Any]:
        outputs = result.get("outputs", [])
        error = result.get("error") or {}
        return {
            "number": record.number,
            "started_at": record.started_at,
            "ended_at": record.ended_at,
            "outcome": record.outcome,
            "execution_count": result.get("execution_count"),
            "code": self._text(record.code),
            "outputs": [self._output(index, output) for index, output in enumerate(outputs[:MOST_OUTPUTS])],
            "outputs_left_out": max(0, len(outputs) - MOST_OUTPUTS),
            "error": None if not error else {name: str(error.get(name, ""))[:2000] for name in ("ename", "evalue")},
        }

    def _output(self, index: int, output: Mapping[str, Any]) -> dict[str, Any]:
        kind = output.get("output_type")
        if kind == "stream":
            return {"index": index, "kind": kind, "name": output.get("name"), **self._text(str(output.get("text", "")))}
        if kind == "error":
            return {"index": index, "kind": kind, **self._text(traceback_of(output))}
        return {"index": index, "kind": "data", **self._data(output.get("data") or {})}

    def _data(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the best form that a page can show, and which better ones are too large for it."""
        too_large: list[dict[str, Any]] = []
        for mime in (each for each in _BEST if each in data):
            text = text_of(data[mime])
            if mime in ("text/markdown", "text/latex"):
                return {"mime": mime, "too_large": too_large, **self._text(text)}
            if len(text) <= min(self._left, _IMAGE if mime.startswith("image/") and "svg" not in mime else _RICH):
                self._left -= len(text)
                return {"mime": mime, "too_large": too_large, "text": text, "length": len(text)}
            too_large.append({"mime": mime, "length": len(text)})
        rest = next((mime for mime in (_PLAIN, *data) if mime in data), _PLAIN)
        return {"mime": rest, "too_large": too_large, **self._text(text_of(data.get(rest, "")))}

    def _text(self, text: str) -> dict[str, Any]:
        shown = text[: min(_TEXT, self._left)]
        self._left -= len(shown)
        return {"text": shown, "length": len(text)}


def whole_output(record: CellRecord, index: int, mime: str | None) -> str:
    """Return one output as text, whole.

    Args:
        mime: the form of it; None: plain text.

    Raises:
        InvalidInputError: the cell has no such output.
    """
    outputs = record.result.get("outputs", [])
    if not index < len(outputs):
        raise InvalidInputError(f"the cell has {len(outputs)} outputs.")
    output = outputs[index]
    if output.get("output_type") == "stream":
        return str(output.get("text", ""))
    if output.get("output_type") == "error":
        return traceback_of(output)
    data = output.get("data") or {}
    wanted = mime or (_PLAIN if _PLAIN in data else next(iter(data), _PLAIN))
    if wanted not in data:
        raise InvalidInputError("the output has no such form.")
    return text_of(data[wanted])


def traceback_of(output: Mapping[str, Any]) -> str:
    """Return the text of an error output."""
    lines = [str(line) for line in output.get("traceback") or []]
    return "\n".join(lines) or f"{output.get('ename', '')}: {output.get('evalue', '')}"


def text_of(item: object) -> str:
    """Return an item of a mime bundle as text: JSON types may have any value."""
    return item if isinstance(item, str) else json.dumps(item, indent=1)
