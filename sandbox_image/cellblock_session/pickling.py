"""Take special objects apart for pickle, and put them together again.

Pickles refer to the ``_make_…``, ``_fill_…`` and other functions below by this module's name and theirs. Renaming or
moving one of them makes existing checkpoints unreadable.
"""

import asyncio
import collections
import contextlib
import functools
import gc
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any

from cloudpickle import cloudpickle

Reduced = tuple[Any, ...]  # what an object is taken apart to: a function, its arguments and more; see object.__reduce__


_LOGGING: Any = logging  # its type stubs leave out private functions


class Name:
    """Marks in the pickle which variable's value comes next."""

    def __init__(self, name: str) -> None:
        self.name = name


_current = "?"


def current_name() -> str:
    """Return the name of the variable that is being loaded."""
    return _current


def _name(name: str) -> str:
    global _current
    _current = name
    return name


def reduce_name(mark: Name) -> Reduced:
    return _name, (mark.name,)


# Functions and modules that cells made


def reduce_function(function: types.FunctionType, module: types.ModuleType) -> Reduced:
    """Take apart a function whose globals are those of ``module``."""
    names = ("__name__", "__qualname__", "__annotations__", "__kwdefaults__", "__defaults__", "__module__",
             "__doc__")  # fmt: skip
    slots = {name: getattr(function, name) for name in names}
    slots |= {"__globals__": {}, "__closure__": None, "_cloudpickle_submodules": []}
    return (
        _make_function,
        (function.__code__, function.__closure__, module),
        (dict(vars(function)), slots),
        None,
        None,
        cloudpickle._function_setstate,
    )


def _make_function(code: types.CodeType, closure: Any, module: types.ModuleType) -> types.FunctionType:
    """Make a function whose globals are the session's variables, or those of a module that a cell made."""
    return types.FunctionType(code, module.__dict__, None, None, closure)


def main_module() -> types.ModuleType:
    """Return the module whose variables are the session's."""
    return sys.modules["__main__"]


def reduce_module(module: types.ModuleType) -> Reduced:
    own = {name: value for name, value in vars(module).items() if name != "__builtins__"}
    return _make_module, (module.__name__,), own, None, None, _fill_module


def _make_module(name: str) -> types.ModuleType:
    return sys.modules.setdefault(name, types.ModuleType(name))


def _fill_module(module: types.ModuleType, attributes: Mapping[str, Any]) -> None:
    vars(module).update(attributes)


def _reduce_cell(cell: types.CellType) -> Reduced:
    try:
        return _make_cell, (), (cell.cell_contents,), None, None, _fill_cell  # pickle ignores None as a state
    except ValueError:
        return _make_cell, ()


def _make_cell() -> types.CellType:
    return types.CellType()


def _fill_cell(cell: types.CellType, content: tuple[Any]) -> None:
    (cell.cell_contents,) = content


# Instances of classes that cells defined


def reduce_exception(error: BaseException, args: Any, state: Any) -> Reduced:
    """Take apart an exception together with its cause and context."""
    kept = dict(state or {})
    for name in ("__cause__", "__context__"):
        if getattr(error, name) is not None:
            kept[name] = getattr(error, name)
    if error.__suppress_context__:
        kept["__suppress_context__"] = True
    return _make_exception, (type(error), args), kept or None


def _make_exception(kind: type[BaseException], args: Any) -> BaseException:
    """Make an exception as Python's own class does: the class's own ``__init__`` may expect other arguments."""
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    error: BaseException = builtin.__new__(kind, *args)
    builtin.__init__(error, *args)
    return error


def reduce_instance(kind: type, reduced: Reduced) -> Reduced:
    """Change how an instance of a cell's class is rebuilt, so that the class's own hooks cannot break it.

    Args:
        kind: the class.
        reduced: the result of ``__reduce_ex__``, which calls ``copyreg.__newobj__``.
    """
    function, args, *rest = reduced
    state = rest[0] if rest else None
    own_new = next((base for base in kind.__mro__ if "__new__" in vars(base)), object)
    if args == (kind,) and own_new.__module__ == "__main__" and kind.__basicsize__ >= object.__basicsize__:
        with contextlib.suppress(TypeError):
            object.__new__(kind)
            function, args = _bare, (kind,)
    if not hasattr(kind, "__setstate__") and isinstance(state, (dict, tuple)):
        return (function, args, state, *(rest[1:3] + [None, None])[:2], _set_state)
    return (function, args, *rest)


def _bare(kind: type) -> object:
    return object.__new__(kind)


def _set_state(target: object, state: Any) -> None:
    """Set attributes as pickle does, but ignore the object's own ``__setstate__``."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        object.__getattribute__(target, "__dict__").update(attributes)
    for name, value in (slots or {}).items():
        object.__setattr__(target, name, value)


# Log handlers, streams and files


def reduce_handler(handler: logging.Handler) -> Reduced:
    state = {name: value for name, value in vars(handler).items() if name != "lock"}
    if isinstance(handler, logging.FileHandler):
        state |= {"stream": None, "mode": handler.mode.replace("w", "a")}  # it opens its file again when it is used
    return _make_handler, (type(handler),), state, None, None, _set_state


def _make_handler(kind: type[logging.Handler]) -> logging.Handler:
    """Make a log handler that has only its lock so far, and register it with logging's shutdown."""
    handler = object.__new__(kind)
    handler.createLock()
    _LOGGING._addHandlerRef(handler)
    return handler


def reduce_stream(name: str) -> Reduced:
    return _standard_stream, (name,)


def _standard_stream(name: str) -> Any:
    return getattr(sys, name)


def reduce_file(file: Any) -> Reduced:
    """Take apart a closed file.

    Raises:
        PicklingError: it is open.
    """
    if not file.closed:
        raise pickle.PicklingError("an open file belongs to its kernel; its content is kept if it is in /work")
    encoding = getattr(file, "encoding", None)
    return _closed_file, (file.name, getattr(file, "mode", "r"), encoding, getattr(file, "errors", None))


def _closed_file(path: Any, mode: str, encoding: str | None, errors: str | None) -> Any:
    with contextlib.ExitStack() as stack:
        mode_now = "rb" if encoding is None else "r"
        file: Any = stack.enter_context(open(os.devnull, mode_now, encoding=encoding, errors=errors))
        with contextlib.suppress(AttributeError):
            (file.buffer.raw if encoding is not None else file.raw).name = path
        with contextlib.suppress(AttributeError):
            file.mode = mode
    return file


# Views of other objects, and weak references to them


def _reduce_memory(view: memoryview) -> Reduced:
    whole = view.obj
    if view.nbytes != memoryview(whole).nbytes or not view.c_contiguous:
        raise pickle.PicklingError("it shows a part of another object's memory")
    return _make_memory, (whole, view.format, view.shape, view.readonly)


def _make_memory(whole: Any, layout: Any, shape: Any, readonly: bool) -> memoryview:
    view: Any = memoryview(whole)
    if (view.format, view.shape) != (layout, shape):
        view = view.cast("B").cast(layout, shape)
    made: memoryview = view.toreadonly() if readonly else view
    return made


def _shown(view: object) -> Any:
    """Return the mapping behind a view of it."""
    return gc.get_referents(view)[0]


def _reduce_weak(weak: "weakref.ref[Any]") -> Reduced:
    if weak.__callback__ is not None:
        raise pickle.PicklingError("its callback belongs to its kernel")
    return (_dead_reference, ()) if weak() is None else (weakref.ref, (weak(),))


def _dead_reference() -> "weakref.ref[Any]":
    return weakref.ref(type("Gone", (), {})())


def _weak_values(items: Mapping[Any, Any]) -> "weakref.WeakValueDictionary[Any, Any]":
    return weakref.WeakValueDictionary(items)


def _weak_keys(items: Mapping[Any, Any]) -> "weakref.WeakKeyDictionary[Any, Any]":
    return weakref.WeakKeyDictionary(items)


def _make_cached(parameters: dict[str, Any], function: Callable[..., Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _view_reducers() -> Iterable[tuple[type, Callable[[Any], Reduced]]]:
    """Yield the reducers of the views that a dict's keys, values and items are."""
    for kind in (dict, collections.OrderedDict):
        for name in ("keys", "values", "items"):
            yield type(getattr(kind(), name)()), functools.partial(_reduce_view, kind, name)


def _reduce_view(kind: type, name: str, view: object) -> Reduced:
    return getattr(kind, name), (_shown(view),)


DISPATCH: dict[Any, Callable[[Any], Reduced]] = {
    functools._lru_cache_wrapper: lambda cached: (
        _make_cached, (cached.cache_parameters(), cached.__wrapped__), vars(cached) or None
    ),
    weakref.WeakValueDictionary: lambda weak: (_weak_values, (dict(weak),)),
    weakref.WeakKeyDictionary: lambda weak: (_weak_keys, (dict(weak),)),
    weakref.ref: _reduce_weak,
    memoryview: _reduce_memory,
    functools.cached_property: lambda cached: (
        functools.cached_property, (cached.func,), {"attrname": cached.attrname, "__doc__": cached.__doc__}
    ),
    types.CellType: _reduce_cell,
    types.MappingProxyType: lambda proxy: (types.MappingProxyType, (_shown(proxy),)),
    **dict(_view_reducers()),
}  # fmt: skip

_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore, threading.Event,
          threading.Barrier)  # fmt: skip
# Types that pickle refuses, or takes apart to something useless, each with the reason that the agent reads.
_REFUSED: dict[tuple[Any, ...], str] = {
    (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType):
        "it is suspended in the middle of its code",
    (types.TracebackType,): "it consists of frames, which are suspended in the middle of their code",
    (threading.Thread,): "a thread ends with its kernel",
    (subprocess.Popen,): "a process ends with its kernel",
    (futures.Executor, futures.Future): "its workers end with their kernel",
    (asyncio.AbstractEventLoop, asyncio.Future): "it belongs to the event loop of its kernel",
    (queue.Queue, queue.SimpleQueue): "it belongs to the threads of its kernel",
    _LOCKS: "a lock belongs to the threads of its kernel",
    (weakref.ProxyType, weakref.CallableProxyType): "it refers to an object of its kernel",
    (weakref.finalize,): "it waits for the end of an object of its kernel",
}  # fmt: skip
_REFUSED_KINDS = tuple(kind for kinds in _REFUSED for kind in kinds)


def refusal(kind: type) -> str | None:
    """Return why objects of this type cannot be captured, or None if nothing is known against it."""
    if not issubclass(kind, _REFUSED_KINDS):
        return None
    return next(reason for kinds, reason in _REFUSED.items() if issubclass(kind, kinds))


def is_lock(value: object) -> bool:
    """Return whether a value is a lock or something else that threads wait for."""
    return issubclass(type(value), _LOCKS)


_OWN = {"__module__": "__main__"}
# Objects that pickle finds by their name, except where a cell made them.
BY_VALUE: dict[Any, Callable[[Any], Reduced]] = {
    typing.NewType: lambda made: (typing.NewType, (made.__name__, made.__supertype__), _OWN),
    typing.ParamSpec: lambda made: (typing.ParamSpec, (made.__name__,), _OWN),
    typing.TypeVarTuple: lambda made: (typing.TypeVarTuple, (made.__name__,), _OWN),
}
