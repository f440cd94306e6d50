"""The base of every exception: its code, its dict form for JSON, and how it is pickled. Import it from ``errors``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar


class CellblockError(Exception):
    """The base of all errors. Each can be pickled and copied, with its fields.

    Attributes:
        code: the stable name of the class, in snake case.
        message: what happened, and what state remains.
        remedy: what the user can do, in one sentence, which also ends ``str(error)``; may be empty.
    """

    code: ClassVar[str] = "cellblock"

    def __init_subclass__(cls, *, code: str | None = None, **others: Any) -> None:
        super().__init_subclass__(**others)
        if code is not None:
            cls.code = code

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields instead of the arguments, which are keywords of each class's own."""
        return _restored, (type(self), self.args, dict(vars(self)))

    def as_dict(self) -> dict[str, Any]:
        """Return ``code``, ``message``, ``remedy`` and ``fields``, for JSON."""
        fields = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        message, remedy = fields.pop("message"), fields.pop("remedy")
        return {"code": self.code, "message": message, "remedy": remedy, "fields": _plain(fields)}


def _restored(kind: type[CellblockError], args: tuple[Any, ...], fields: dict[str, Any]) -> CellblockError:
    """Return the error that was pickled or copied."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(fields)
    return error


def _plain(value: Any) -> Any:
    """Return a field's value as JSON has it; a number that JSON cannot hold becomes None."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)
