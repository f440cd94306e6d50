"""Repair stdout and stderr after a cell has changed the objects themselves, such as ``sys.stdout.write = None``."""

from typing import Any

from cellblock_kernel.originals import BUILTINS
from cellblock_kernel.streams import OrderedStream

__builtins__ = BUILTINS

CHANGING = (bool, dict, type(None))  # types of attributes that the stream itself changes
_MISSING: Any = object()


class StreamRepair:
    """The attributes of both streams and of their class as they were before the first cell.

    A function that a cell put in place of a method is the session's: it is there again in the next cell. Everything
    else is repaired for good.
    """

    def __init__(self, streams: dict[str, OrderedStream]) -> None:
        self._streams = [(name, vars(stream), dict(vars(stream))) for name, stream in streams.items()]
        self._methods = frozenset(dir(OrderedStream))
        self._class = {name: value for name, value in vars(OrderedStream).items() if not name.startswith("__")}
        self._taken: list[tuple[dict[str, Any], str, Any]] = []
        self._of_class: list[tuple[str, Any]] = []

    def put_back(self) -> None:
        """Give the session its own functions again. Called before code of the session runs."""
        taken, self._taken = self._taken, []
        for attributes, name, value in taken:
            attributes[name] = value
        of_class, self._of_class = self._of_class, []
        for name, value in of_class:
            setattr(OrderedStream, name, value)

    def take_over(self) -> list[str]:
        """Restore the originals. Called after code of the session ran. Return the names of the repaired streams."""
        repaired = [name for name, attributes, kept in self._streams if self._repair(attributes, kept)]
        for name, value in self._class.items():
            if (current := vars(OrderedStream).get(name, _MISSING)) is not value:
                setattr(OrderedStream, name, value)
                if callable(current) and callable(value):
                    self._of_class.append((name, current))
                else:
                    repaired.append(f"stdout's {name}")
        return repaired

    def _repair(self, attributes: dict[str, Any], kept: dict[str, Any]) -> bool:
        damaged = [name for name in kept if name not in attributes]
        for name, value in kept.items():
            current = attributes.get(name)
            if current is not value and (current is None or not isinstance(value, CHANGING)):
                damaged.append(name)
        for name in damaged:
            attributes[name] = kept[name]
        for name in [name for name in attributes if name not in kept and name in self._methods]:
            value = attributes.pop(name)
            if callable(value):
                self._taken.append((attributes, name, value))
            else:
                damaged.append(name)
        return bool(damaged)
