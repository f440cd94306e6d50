"""What a sandbox says of the variables of its session. All of it is a claim of hostile code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.output.printable import printable

_MOST = 1000  # variables
_LONGEST = 200  # characters of each text
_MOST_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class VariableInfo:
    """One variable of a session.

    Attributes:
        type: the name of its type, with the module unless that is Python's or the session's own.
        size: bytes that it takes, without what it refers to; None where that is not known.
        shape: the lengths of its dimensions; None where it has none.
        preview: a short printable text. It never comes from a ``__repr__`` of the session.
    """

    name: str
    type: str
    size: int | None
    shape: tuple[int, ...] | None
    preview: str

    def as_dict(self) -> dict[str, Any]:
        shape = None if self.shape is None else list(self.shape)
        return {"name": self.name, "type": self.type, "size": self.size, "shape": shape, "preview": self.preview}


def parse_variables(value: object) -> tuple[VariableInfo, ...]:
    """Return the variables that a kernel has listed. Drops what is malformed."""
    rows = value.get("variables") if isinstance(value, dict) else None
    found = [_variable(row) for row in rows[:_MOST]] if isinstance(rows, list) else []
    return tuple(each for each in found if each is not None)


def _variable(row: object) -> VariableInfo | None:
    if not isinstance(row, list) or len(row) != 5:
        return None
    name, kind, size, shape, preview = row
    if not all(isinstance(text, str) for text in (name, kind, preview)):
        return None
    lengths = None
    if isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS and all(map(_is_count, shape)):
        lengths = tuple(shape)
    texts = [printable(text, _LONGEST) for text in (name, kind, preview)]
    return VariableInfo(texts[0], texts[1], size if _is_count(size) else None, lengths, texts[2])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
