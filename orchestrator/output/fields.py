"""Fields: reads an unchecked dict. Each field has its type, or the error names its key. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_NAMES = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false", dict: "an object"}


class Fields:
    """The fields of one dict form.

    Raises:
        ValueError: the form is no object, or its ``type`` is another one. Every method raises it too, where a field is
            missing or has the wrong type. The message names the key, and never shows the value, which may be hostile.
    """

    def __init__(self, form: object, type_name: str | None = None) -> None:
        if not isinstance(form, Mapping):
            raise ValueError(f"must be an object, not {type(form).__name__}")
        self._form = form
        if type_name is not None:
            self.choice("type", type_name)

    def value(self, key: str, kind: type[T]) -> T:
        """Return a field of type ``kind``."""
        return self._checked(key, self._required(key), kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Return a field of type ``kind``; None where it is missing or null."""
        value = self._form.get(key)
        return None if value is None else self._checked(key, value, kind)

    def value_if_any(self, key: str, kind: type[T], default: T) -> T:
        """Do what ``value`` does; where the field is missing, return ``default``: earlier versions did not write it."""
        return self.value(key, kind) if key in self._form else default

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        return tuple(self._checked(key, item, str) for item in self._list(key))

    def choice(self, key: str, *allowed: T) -> T:
        """Return the member of ``allowed`` that a field equals."""
        value = self._required(key)
        for one in allowed:
            if isinstance(value, str) and one == value:
                return one
        raise ValueError(f"{key!r} must be one of {', '.join(repr(str(one)) for one in allowed)}")

    def nested(self, key: str, parse: Callable[[Any], T]) -> T:
        """Return what ``parse`` makes of a field."""
        return _parsed(key, self._required(key), parse)

    def optional_nested(self, key: str, parse: Callable[[Any], T]) -> T | None:
        """Return what ``parse`` makes of a field; None where it is missing or null."""
        value = self._form.get(key)
        return None if value is None else _parsed(key, value, parse)

    def each(self, key: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
        """Return what ``parse`` makes of every item of a list."""
        return tuple(_parsed(f"{key}[{number}]", item, parse) for number, item in enumerate(self._list(key)))

    def each_if_any(self, key: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
        """Do what ``each`` does; a missing list is empty: earlier versions did not write it."""
        return self.each(key, parse) if key in self._form else ()

    def _required(self, key: str) -> Any:
        if key not in self._form:
            raise ValueError(f"{key!r} is missing")
        return self._form[key]

    def _list(self, key: str) -> list[Any] | tuple[Any, ...]:
        value = self._required(key)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key!r} must be a list, not {type(value).__name__}")
        return value

    def _checked(self, key: str, value: Any, kind: type[T]) -> T:
        fits: Any = None
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            fits = _finite(value)
        elif kind is dict and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            fits = dict(value)
        elif kind in (str, int, bool) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            fits = value
        if fits is None:
            raise ValueError(f"{key!r} must be {_NAMES[kind]}, not {type(value).__name__}")
        return fits  # type: ignore[no-any-return]  # it is of ``kind``, which mypy cannot follow


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _parsed(key: str, value: Any, parse: Callable[[Any], T]) -> T:
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
