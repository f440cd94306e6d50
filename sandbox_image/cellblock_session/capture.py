"""Pickle the session's state: replace objects that cannot be pickled, wherever they are nested."""

import collections
import copyreg
import ctypes
import functools
import io
import logging
import pickle
import sys
import types
from collections.abc import Mapping, Sequence
from typing import IO, Any

from cloudpickle import cloudpickle

from cellblock_session import arrays, pickling, shellrefs
from cellblock_session.classes import reduce_class
from cellblock_session.notrestored import Lost, NotRestored, lost_of, shorten_reason
from cellblock_session.pickling import Name, Reduced

_NEW_OBJECT: Any = vars(copyreg)["__newobj__"]  # type stubs leave it out
_which_module: Any = vars(pickle)["whichmodule"]


class Capture(cloudpickle.Pickler):
    """A pickler that replaces what cannot be pickled by NotRestored, and continues.

    Attributes:
        lost: (name, kind, reason) of each object that was replaced or left out.
        hooks: (class, name, value) of what must be set after everything else is loaded.
    """

    dispatch_table = collections.ChainMap(pickling.DISPATCH, cloudpickle.Pickler.dispatch_table)

    def __init__(self, file: IO[bytes] | Any, namespace: dict[str, Any], modules: Sequence[types.ModuleType]) -> None:
        """Start a pickle.

        Args:
            namespace: the session's variables.
            modules: modules that cells made.
        """
        super().__init__(file, protocol=5)
        self._spaces = {id(namespace): pickling.main_module()} | {id(vars(module)): module for module in modules}
        self._made = {module.__name__: module for module in modules}
        self._array, self._memmap = arrays.kinds()
        self._copied: dict[int, object] = {}
        self._sentinels: dict[type, dict[int, tuple[types.ModuleType, str]]] = {}
        self._streams = {id(getattr(sys, name, self)): name for name in ("stdin", "stdout", "stderr")}
        self._parts = shellrefs.parts()
        self._current = "?"
        self._lost_ids: dict[int, Lost] = {}
        self._kept: list[object] = []
        self.lost: list[Lost] = []
        self.hooks: list[tuple[type, str, Any]] = []

    def lose(self, name: object, kind: object, reason: object) -> None:
        """Note that an object is lost."""
        self.lost.append((str(name), str(kind), shorten_reason(reason)))

    def loss_of(self, value: object) -> str | None:
        """Pickle a value, and return the reason of its first loss, or None if nothing in it is lost."""
        try:
            self.dump(value)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return self.lost[0][2] if self.lost else None

    def name_again(self, name: str, value: object) -> None:
        """Note that a variable is lost, if its value is an object that was lost under another name."""
        known = self._lost_ids.get(id(value))
        if known is not None and known[0] != name:
            self.lose(name, *known[1:])

    def reducer_override(self, target: Any) -> Any:
        """Return how to pickle an object. The pickler calls this for every object that is no plain built-in one."""
        if type(target) is Name:
            self._current = target.name
            return pickling.reduce_name(target)
        if type(target) is NotRestored:
            self.lost.append(lost_of(target))
            self._lost_ids[id(target)] = (self._current, *lost_of(target)[1:])
            return target.__reduce_ex__(5)
        kind = type(target)
        if (part := self._parts.get(id(target))) is not None:
            return shellrefs.find_part, (part,)
        if reason := pickling.refusal(kind):
            return self._replace(target, reason)
        try:
            if kind is types.FunctionType and id(target.__globals__) in self._spaces:
                return self._dynamic_function_reduce(target)
            if issubclass(kind, type) and target.__module__ in self._made:
                reduced = cloudpickle._dynamic_class_reduce(target)
            else:
                reduced = super().reducer_override(target)
            if reduced is NotImplemented:
                return self._reduce(target)
            if issubclass(kind, type) and len(reduced) == 6:
                reduced, hooks = reduce_class(target, reduced)
                self.hooks += [(target, name, value) for name, value in hooks.items()]
            return reduced
        except Exception as error:
            return self._replace(target, f"{type(error).__name__}: {error}")

    def _reduce(self, target: Any) -> Any:
        """Return how to pickle an object that cloudpickle leaves to pickle. NotImplemented means by reference."""
        kind = type(target)
        if kind is self._array:
            view = None if id(target) in self._copied else arrays.reduce_view(target)
            return view or target.__reduce_ex__(5)
        if id(target) in self._streams:
            return pickling.reduce_stream(self._streams[id(target)])
        if isinstance(target, io.IOBase) and not isinstance(target, (io.StringIO, io.BytesIO)):
            return pickling.reduce_file(target)
        if issubclass(kind, type) or kind is types.FunctionType:
            return NotImplemented
        made = self._made.get(getattr(target, "__name__", "")) if kind is types.ModuleType else None
        if made is not None and made is target:
            return pickling.reduce_module(made)
        if reducer := self.dispatch_table.get(kind):
            return reducer(target)
        if isinstance(target, logging.Handler):
            return pickling.reduce_handler(target)
        if kind is self._memmap:
            raise pickle.PicklingError("an open file belongs to its kernel; its content is kept if it is in /work")
        if isinstance(target, ctypes.CDLL):
            return kind, (target._name,)
        reduced = target.__reduce_ex__(5)
        if isinstance(reduced, str):
            return self._reduce_named(target, kind, reduced)
        if reduced[:2] == (_NEW_OBJECT, (kind,)) and all(part is None for part in reduced[2:]):
            if place := self._place(target, kind):
                return getattr, place
        elif kind.__module__.startswith("pandas."):
            # pandas knows which of its arrays share memory, and copies before it writes.
            self._copied |= {id(part): part for part in arrays.inside(reduced) if type(part) is self._array}
        return self._reduce_safely(target, kind, reduced)

    @staticmethod
    def _reduce_named(target: Any, kind: Any, name: str) -> Reduced | str:
        """Return how to pickle an object that says that it can be found by a name.

        Raises:
            PicklingError: it cannot be found by that name in another process.
        """
        if getattr(target, "__module__", None) == "__main__":
            if kind in pickling.BY_VALUE:
                return pickling.BY_VALUE[kind](target)
            raise pickle.PicklingError("it is found by a name that only this session has")
        home: Any = sys.modules.get(_which_module(target, name))
        if functools.reduce(lambda found, part: getattr(found, part, None), name.split("."), home) is not target:
            raise pickle.PicklingError("its name refers to something else")
        return name

    def _place(self, target: object, kind: type) -> tuple[types.ModuleType, str] | None:
        """Return (module, name) of a library's sentinel, such as ``dataclasses.MISSING``, compared by identity."""
        if kind not in self._sentinels:
            modules: Mapping[str, Any] = (
                sys.modules if kind is object else {kind.__module__: sys.modules.get(kind.__module__)}
            )
            self._sentinels[kind] = {
                id(value): (module, name)
                for module in list(modules.values())
                if isinstance(module, types.ModuleType) and id(vars(module)) not in self._spaces
                for name, value in list(vars(module).items()) if type(value) is kind
            }  # fmt: skip
        return self._sentinels[kind].get(id(target))

    @staticmethod
    def _reduce_safely(target: object, kind: type, reduced: Reduced) -> Reduced:
        """Return a way to rebuild the object that the hooks of its class cannot break."""
        function, args, *rest = reduced
        if isinstance(target, BaseException) and function is kind:
            return pickling.reduce_exception(target, args, rest[0] if rest else None)
        if function is _NEW_OBJECT and kind.__module__ == "__main__":
            return pickling.reduce_instance(kind, reduced)
        return reduced

    def _dynamic_function_reduce(self, function: types.FunctionType) -> Reduced:
        module = self._spaces.get(id(function.__globals__))
        if module is not None:
            return pickling.reduce_function(function, module)
        maker, (*args, _closure), (attributes, slots), *rest = super()._dynamic_function_reduce(function)
        return maker, (*args, function.__closure__), (attributes, slots | {"__closure__": None}), *rest

    def _replace(self, target: object, reason: str) -> Reduced:
        kind = type(target).__qualname__
        reason = shorten_reason(reason)
        self.lose(self._current, kind, reason)
        self._lost_ids[id(target)] = self._current, kind, reason
        self._kept.append(target)  # otherwise another object could get the id of a temporary one
        return NotRestored, (self._current, kind, reason)
