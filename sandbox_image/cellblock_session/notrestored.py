"""The placeholder for an object that a checkpoint could not capture."""

from collections.abc import Callable
from typing import Any, NoReturn

Lost = tuple[str, str, str]  # the name, the kind and the reason of what was lost
_LONGEST = 300  # characters of a reason


class NotRestoredError(RuntimeError):
    """Raised when code uses an object that could not be captured in a checkpoint.

    Attributes:
        lost: its (name, kind, reason).
    """

    def __init__(self, message: str, lost: Lost | None = None) -> None:
        super().__init__(message)
        self.lost = lost


def _refuse(method: str) -> Callable[..., NoReturn]:
    def refuse(self: "NotRestored", *_args: Any, **_kwargs: Any) -> NoReturn:
        raise _error(self)

    refuse.__name__ = method
    return refuse


_METHODS = """
    __repr__ __str__ __bytes__ __format__ __bool__ __call__ __iter__ __next__ __len__ __contains__ __getitem__
    __setitem__ __delitem__ __setattr__ __delattr__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __add__ __radd__
    __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __mod__ __pow__ __and__ __or__ __xor__
    __neg__ __pos__ __abs__ __invert__ __int__ __float__ __complex__ __index__ __enter__ __exit__ __await__
    __aiter__ __anext__ __aenter__ __aexit__ __fspath__ __dir__ __reversed__ __length_hint__
""".split()  # noqa: SIM905 - one a line would be a page


class NotRestored:
    """Takes the place of an object that could not be captured. Any use of it raises NotRestoredError."""

    made = 0  # the number of placeholders created in this process

    def __init__(self, name: str, kind: str, reason: str) -> None:
        NotRestored.made += 1
        object.__setattr__(self, "_lost", (name, kind, reason))

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return NotRestored, object.__getattribute__(self, "_lost")

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__reduce_ex__"):
            return object.__getattribute__(self, name)
        raise _error(self)

    __hash__ = object.__hash__

    for _method in _METHODS:
        locals()[_method] = _refuse(_method)
    del _method


def lost_of(placeholder: NotRestored) -> Lost:
    """Return the (name, kind, reason) of a placeholder."""
    lost: Lost = object.__getattribute__(placeholder, "_lost")
    return lost


def shorten_reason(reason: object) -> str:
    """Return a reason on one line, at most 300 characters long."""
    return " ".join(str(reason).split())[:_LONGEST]


def _error(placeholder: NotRestored) -> NotRestoredError:
    name, kind, reason = lost_of(placeholder)
    return NotRestoredError(
        f"{name!r} ({kind}) was not restored: {reason}. It was lost when this session moved to a fresh kernel; "
        "create it again.",
        (name, kind, reason),
    )
