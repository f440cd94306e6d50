"""The session's variables, for the host: name, type, size, shape and a short preview.

No code of the session runs: previews are made for types whose code is Python's or a library's own, and every other
value shows as its type. So this works in another thread while a cell runs, and no ``__repr__`` can hold it up.
"""

import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

MOST = 1000  # variables
LONGEST = 200  # characters of a preview
LONGEST_NAME = 200  # characters of a name, and of a type
MOST_ITEMS = 5  # of a container
DEEPEST = 2  # containers in a preview
LARGEST_NUMBER = 1 << 400  # an integer above it takes time to be written
PLAIN = (int, float, complex, bool, type(None))
TABLES = {"DataFrame", "Series", "Index", "MultiIndex", "RangeIndex", "DatetimeIndex", "LazyFrame"}


def describe(namespace: Mapping[str, Any], hidden: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a namespace that the user has made, in the order of their names."""
    names = sorted(
        name
        for name in list(namespace)
        if type(name) is str and not name.startswith("_") and namespace.get(name) is not hidden.get(name, hidden)
    )
    described = [_described(name, namespace.get(name)) for name in names[:MOST]]
    return {"variables": described, "more": max(0, len(names) - MOST)}


def _described(name: str, value: Any) -> list[Any]:
    return [name[:LONGEST_NAME], type_name(value), size_of(value), shape_of(value), preview(value)[:LONGEST]]


def type_name(value: Any) -> str:
    """Return the name of a value's type, with its module unless that is Python's or the session's own."""
    kind = type(value)
    module, name = type.__getattribute__(kind, "__module__"), type.__getattribute__(kind, "__qualname__")
    if not isinstance(module, str) or module in ("builtins", "__main__"):
        return str(name)[:LONGEST_NAME]
    return f"{module}.{name}"[:LONGEST_NAME]


def size_of(value: Any) -> int | None:
    """Return the bytes that a value takes, without those that it refers to; of an array with its elements."""
    if is_of(value, "numpy", ("ndarray",)):
        return int(value.nbytes)
    try:
        return sys.getsizeof(value) if type(value).__module__ == "builtins" else None
    except Exception:  # noqa: BLE001 - a type of a library
        return None


def shape_of(value: Any) -> list[int] | None:
    """Return the lengths of a value's dimensions; None where it has none."""
    if type(value) in (str, bytes, bytearray, list, tuple, dict, set, frozenset, range):
        return [len(value)]
    if is_of(value, "numpy", ("ndarray",)) or is_of(value, ("pandas", "polars"), TABLES):
        try:
            return [int(length) for length in value.shape]
        except Exception:  # noqa: BLE001 - such as of a LazyFrame
            return None
    return None


def is_of(value: Any, library: str | tuple[str, ...], names: Any) -> bool:
    """Return whether a value's type is one of a library's own."""
    libraries = (library,) if isinstance(library, str) else library
    modules = [sys.modules.get(name) for name in libraries]
    own = [vars(module).get(name) for module in modules if module is not None for name in names]
    return any(type(value) is kind for kind in own)  # not by its name, which a cell can give to a class of its own


def preview(value: Any, depth: int = 0) -> str:
    """Return a short text of a value. Calls nothing that a cell defined."""
    kind = type(value)
    if kind in PLAIN:
        return f"{value!r}" if kind is not int or abs(value) < LARGEST_NUMBER else "<a long integer>"
    if kind in (str, bytes, bytearray):
        return repr(value[:LONGEST]) + ("…" if len(value) > LONGEST else "")
    if kind in (list, tuple, set, frozenset, dict):
        return _container(value, depth)
    if kind is range:
        return repr(value)
    if kind is ModuleType:
        return f"<module {ModuleType.__getattribute__(value, '__name__')}>"
    if kind is FunctionType:
        return _signature(value)
    if kind is type:
        return f"<class {type.__getattribute__(value, '__qualname__')}>"
    if is_of(value, "numpy", ("ndarray",)):
        flat = value.dtype.kind in "biufc" and value.ndim == 1
        return f"{value.dtype} {value[:MOST_ITEMS].tolist()}" if flat else f"{value.dtype}"
    if is_of(value, ("pandas", "polars"), ("DataFrame",)):
        return "columns: " + ", ".join(_column(name) for name in list(value.columns)[:20])
    if is_of(value, ("pandas", "polars"), ("Series",)):
        return f"{value.dtype}"
    return f"<{type_name(value)}>"


def _column(name: Any) -> str:
    return name if type(name) is str else preview(name, DEEPEST)


def _container(value: Any, depth: int) -> str:
    kind = type(value)
    opening, closing = ("[", "]") if kind is list else ("(", ")") if kind is tuple else ("{", "}")
    if depth >= DEEPEST:
        return f"{opening}…{closing}" if value else opening + closing
    try:
        items = list(_items(value, depth))
        if type(value) is dict:  # not value[key]: a key may have an __eq__ of a cell
            items = [f"{key}: {item}" for key, item in zip(items, _items(value.values(), depth), strict=True)]
    except RuntimeError:  # a cell changes it meanwhile
        return f"{opening}…{closing}"
    return opening + ", ".join(items) + (", …" if len(value) > MOST_ITEMS else "") + closing


def _items(value: Any, depth: int) -> Iterator[str]:
    for number, item in enumerate(value):
        if number == MOST_ITEMS:
            return
        shown = preview(item, depth + 1)
        yield shown


def _signature(function: Any) -> str:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return f"def {function.__qualname__}({', '.join(names)})"
