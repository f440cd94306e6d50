"""Unpickle as much as possible: replace objects that fail to load, wherever they are nested."""

import pickle
from collections.abc import Callable
from typing import IO, Any, ClassVar

from cellblock_session.notrestored import Lost, NotRestored, shorten_reason
from cellblock_session.pickling import current_name

_Opcode = Callable[[Any], None]


class Tolerant(pickle._Unpickler):
    """An unpickler for the second attempt: it replaces what fails to load by NotRestored, and continues.

    Attributes:
        lost: (name, kind, reason) of each replaced object.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    metastack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.lost: list[Lost] = []

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:
            return self.replace(f"{module}.{name}", error)

    def replace(self, kind: str, error: Exception) -> NotRestored:
        """Return the placeholder for an object of this kind, and note that the object is lost."""
        reason = f"it could not be loaded: {type(error).__name__}: {error}"
        lost = getattr(error, "lost", None) or (current_name(), str(kind), shorten_reason(reason))
        self.lost.append(lost)
        return NotRestored(*lost)

    def exchange(self, old: object, new: object) -> None:
        """Replace ``old``, the top of the stack, by ``new``, also in the memo."""
        self.stack[-1] = new
        for key, value in self.memo.items():
            if value is old:
                self.memo[key] = new


def _tolerate_making(opcode: bytes, operands: int) -> None:
    """Let an opcode that makes an object from its operands push a NotRestored if it fails."""
    original: _Opcode = pickle._Unpickler.dispatch[opcode[0]]

    def handle(self: Tolerant) -> None:
        height = len(self.stack) - operands
        maker = self.stack[height]
        try:
            original(self)
        except Exception as error:
            del self.stack[height:]
            self.append(self.replace(getattr(maker, "__qualname__", type(maker).__qualname__), error))

    Tolerant.dispatch[opcode[0]] = handle


def _tolerate_changing(opcode: bytes, *, marked: bool) -> None:
    """Let an opcode that changes the object below its operands replace that object by a NotRestored if it fails.

    Args:
        marked: the operands begin at a mark; else there is one.
    """
    original: _Opcode = pickle._Unpickler.dispatch[opcode[0]]

    def handle(self: Tolerant) -> None:
        below = self.metastack[-1] if marked else self.stack
        height = len(below) - (0 if marked else 1)
        target = below[height - 1]
        depth = len(self.metastack) - marked
        try:
            original(self)
        except Exception as error:
            del self.metastack[depth:]
            del below[height:]
            self.stack, self.append = below, below.append
            self.exchange(target, self.replace(type(target).__qualname__, error))

    Tolerant.dispatch[opcode[0]] = handle


_tolerate_making(pickle.REDUCE, 2)
_tolerate_making(pickle.NEWOBJ, 2)
_tolerate_making(pickle.NEWOBJ_EX, 3)
_tolerate_changing(pickle.BUILD, marked=False)
_tolerate_changing(pickle.APPEND, marked=False)
for _opcode in (pickle.APPENDS, pickle.SETITEMS, pickle.ADDITEMS):
    _tolerate_changing(_opcode, marked=True)
