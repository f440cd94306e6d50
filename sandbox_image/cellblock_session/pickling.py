"""Pickling that replaces what cannot be pickled, wherever it is nested, and unpickling that replaces what fails."""

import asyncio
import collections
import contextlib
import copyreg
import ctypes
import functools
import gc
import io
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
from concurrent import futures

from cloudpickle import cloudpickle

from cellblock_session import arrays
from cellblock_session.classes import reduce_class
from cellblock_session.notrestored import NotRestored, lost_of

_LONGEST = 300  # characters of a reason


class Name:
    """Marks in the pickle whose value comes next."""

    def __init__(self, name):
        self.name = name


_current = "?"


def _name(name):
    global _current
    _current = name
    return name


def _make_function(code, closure, module):
    """Make a function whose globals are the session's variables, or those of a module that a cell made."""
    return types.FunctionType(code, module.__dict__, None, None, closure)


def _main():
    return sys.modules["__main__"]


def _make_cell():
    return types.CellType()


def _fill_cell(cell, content):
    (cell.cell_contents,) = content


def _make_module(name):
    return sys.modules.setdefault(name, types.ModuleType(name))


def _fill_module(module, attributes):
    vars(module).update(attributes)


def _bare(kind):
    return object.__new__(kind)


def _set_state(target, state):
    """Set attributes as pickle would, without asking the object for ``__setstate__``."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        object.__getattribute__(target, "__dict__").update(attributes)
    for name, value in (slots or {}).items():
        object.__setattr__(target, name, value)


def _make_exception(kind, args):
    """Make it as Python's own class would: an own ``__init__`` may want something else than ``args``."""
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    error = builtin.__new__(kind, *args)
    builtin.__init__(error, *args)
    return error


def _make_handler(kind):
    """Make a log handler that has nothing yet but its lock, and that logging will end."""
    handler = object.__new__(kind)
    handler.createLock()
    logging._addHandlerRef(handler)
    return handler


def _reduce_handler(handler):
    state = {name: value for name, value in vars(handler).items() if name != "lock"}
    if isinstance(handler, logging.FileHandler):
        state |= {"stream": None, "mode": handler.mode.replace("w", "a")}  # it opens its file when it is used
    return _make_handler, (type(handler),), state, None, None, _set_state


def _reduce_memory(view):
    whole = view.obj
    if view.nbytes != memoryview(whole).nbytes or not view.c_contiguous:
        raise pickle.PicklingError("it shows a part of another object's memory")
    return _make_memory, (whole, view.format, view.shape, view.readonly)


def _make_memory(whole, layout, shape, readonly):
    view = memoryview(whole)
    if (view.format, view.shape) != (layout, shape):
        view = view.cast("B").cast(layout, shape)
    return view.toreadonly() if readonly else view


def _shown(view):
    """The mapping itself that a view of it shows."""
    return gc.get_referents(view)[0]


def _reduce_weak(weak):
    if weak.__callback__ is not None:
        raise pickle.PicklingError("what it was to call belongs to its kernel")
    return (_dead_reference, ()) if weak() is None else (weakref.ref, (weak(),))


def _reduce_cell(cell):
    try:
        return _make_cell, (), (cell.cell_contents,), None, None, _fill_cell  # None would be no state
    except ValueError:
        return _make_cell, ()


def _dead_reference():
    return weakref.ref(type("Gone", (), {})())


def _make_cached(parameters, function):
    return functools.lru_cache(**parameters)(function)


def _standard_stream(name):
    return getattr(sys, name)


def _closed_file(path, mode, encoding, errors):
    with contextlib.ExitStack() as stack:
        binary = stack.enter_context(open(os.devnull, "rb" if encoding is None else "r", encoding=encoding,
                                          errors=errors))  # fmt: skip
        with contextlib.suppress(AttributeError):
            (binary.buffer.raw if encoding is not None else binary.raw).name = path
        with contextlib.suppress(AttributeError):
            binary.mode = mode
    return binary


def _weak_values(items):
    return weakref.WeakValueDictionary(items)


def _weak_keys(items):
    return weakref.WeakKeyDictionary(items)


_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore, threading.Event,
          threading.Barrier)  # fmt: skip
# What pickle refuses, said in words, and what it would take to pieces that are no use.
_REFUSED = {
    (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.FrameType):
        "it stands in the middle of its code",
    (types.TracebackType,): "it is made of frames, which stand in the middle of their code",
    (threading.Thread,): "a thread ends with its kernel",
    (subprocess.Popen,): "a process ends with its kernel",
    (futures.Executor, futures.Future): "its workers end with their kernel",
    (asyncio.AbstractEventLoop, asyncio.Future): "it belongs to the event loop of its kernel",
    (queue.Queue, queue.SimpleQueue): "it belongs to the threads of its kernel",
    _LOCKS: "a lock belongs to the threads of its kernel",
    (weakref.ProxyType, weakref.CallableProxyType): "it follows an object of its kernel",
    (weakref.finalize,): "it waits for the end of an object of its kernel",
}  # fmt: skip
_KINDS = tuple(kind for kinds in _REFUSED for kind in kinds)
_OWN = {"__module__": "__main__"}
# What is found by its name, unless a cell made it.
_BY_VALUE = {
    typing.NewType: lambda made: (typing.NewType, (made.__name__, made.__supertype__), _OWN),
    typing.ParamSpec: lambda made: (typing.ParamSpec, (made.__name__,), _OWN),
    typing.TypeVarTuple: lambda made: (typing.TypeVarTuple, (made.__name__,), _OWN),
}


class Capture(cloudpickle.Pickler):
    """Pickles the session's state, and replaces what cannot be pickled.

    Attributes:
        lost: (name, kind, reason) of each thing that was replaced, or left out.
        hooks: (class, name, value) of what must be set once everything is loaded.
    """

    dispatch_table = collections.ChainMap(
        {
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
            **{
                type(getattr(kind(), name)()): lambda view, kind=kind, name=name: (getattr(kind, name), (_shown(view),))
                for kind in (dict, collections.OrderedDict) for name in ("keys", "values", "items")
            },
        },
        cloudpickle.Pickler.dispatch_table,
    )  # fmt: skip

    def __init__(self, file, namespace, modules):
        super().__init__(file, protocol=5)
        self._spaces = {id(namespace): _main()} | {id(vars(module)): module for module in modules}
        self._made = {module.__name__: module for module in modules}
        self._array, self._memmap = arrays.kinds()
        self._copied = {}
        self._sentinels = {}
        self._streams = {id(getattr(sys, name)): name for name in ("stdin", "stdout", "stderr")}
        self._current = "?"
        self._lost_ids = {}
        self._kept = []
        self.lost = []
        self.hooks = []

    def lose(self, name, kind, reason):
        self.lost.append((str(name), str(kind), _short(reason)))

    def name_again(self, name, value):
        """Tell of a variable that is nothing but what was lost under another name before."""
        known = self._lost_ids.get(id(value))
        if known is not None and known[0] != name:
            self.lose(name, *known[1:])

    def reducer_override(self, target):
        if type(target) is Name:
            self._current = target.name
            return _name, (target.name,)
        if type(target) is NotRestored:
            self.lost.append(lost_of(target))
            self._lost_ids[id(target)] = (self._current, *lost_of(target)[1:])
            return target.__reduce_ex__(5)
        kind = type(target)
        if issubclass(kind, _KINDS):
            return self._replace(target, next(reason for kinds, reason in _REFUSED.items() if issubclass(kind, kinds)))
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

    def _reduce(self, target):
        kind = type(target)
        if kind is self._array:
            view = None if id(target) in self._copied else arrays.reduce_view(target)
            return view or target.__reduce_ex__(5)
        if id(target) in self._streams:
            return _standard_stream, (self._streams[id(target)],)
        if isinstance(target, io.IOBase) and not isinstance(target, (io.StringIO, io.BytesIO)):
            return self._reduce_file(target)
        if issubclass(kind, type) or kind is types.FunctionType:
            return NotImplemented  # by reference
        if kind is types.ModuleType and self._made.get(target.__name__) is target:
            own = {name: value for name, value in vars(target).items() if name != "__builtins__"}
            return _make_module, (target.__name__,), own, None, None, _fill_module
        if reducer := self.dispatch_table.get(kind):
            return reducer(target)
        if isinstance(target, logging.Handler):
            return _reduce_handler(target)
        if kind is self._memmap:
            raise pickle.PicklingError("an open file belongs to its kernel; its content is kept if it is in /work")
        if isinstance(target, ctypes.CDLL):
            return kind, (target._name,)
        reduced = target.__reduce_ex__(5)
        if isinstance(reduced, str):
            if getattr(target, "__module__", None) == "__main__":
                if kind in _BY_VALUE:
                    return _BY_VALUE[kind](target)
                raise pickle.PicklingError("it is found by a name of this session alone")
            home = sys.modules.get(pickle.whichmodule(target, reduced))
            if functools.reduce(lambda found, name: getattr(found, name, None), reduced.split("."), home) is not target:
                raise pickle.PicklingError("it is not what is found under its name")
            return reduced
        if reduced[:2] == (copyreg.__newobj__, (kind,)) and all(part is None for part in reduced[2:]):
            if place := self._place(target, kind):
                return getattr, place
        elif kind.__module__.startswith("pandas."):
            # pandas knows which of its own share memory, and copies before it writes.
            self._copied |= {id(part): part for part in arrays.inside(reduced) if type(part) is self._array}
        return self._made_sure(target, kind, reduced)

    def _place(self, target, kind):
        """Find (module, name) of a library's mark that is compared by identity, such as ``dataclasses.MISSING``."""
        if kind not in self._sentinels:
            modules = sys.modules if kind is object else {kind.__module__: sys.modules.get(kind.__module__)}
            self._sentinels[kind] = {
                id(value): (module, name)
                for key, module in list(modules.items()) if isinstance(module, types.ModuleType) and key != "__main__"
                for name, value in list(vars(module).items()) if type(value) is kind
            }  # fmt: skip
        return self._sentinels[kind].get(id(target))

    @staticmethod
    def _made_sure(target, kind, reduced):
        """Have it rebuilt in a way that the class's own hooks cannot spoil."""
        function, args, *rest = reduced
        state = rest[0] if rest else None
        if isinstance(target, BaseException) and function is kind:
            state = dict(state or {})
            for name in ("__cause__", "__context__"):
                if getattr(target, name) is not None:
                    state[name] = getattr(target, name)
            if target.__suppress_context__:
                state["__suppress_context__"] = True
            return _make_exception, (kind, args), state or None
        if function is copyreg.__newobj__ and kind.__module__ == "__main__":
            own_new = next((base for base in kind.__mro__ if "__new__" in vars(base)), object)
            if args == (kind,) and own_new.__module__ == "__main__" and kind.__basicsize__ >= object.__basicsize__:
                with contextlib.suppress(TypeError):
                    object.__new__(kind)
                    function, args = _bare, (kind,)
            if not hasattr(kind, "__setstate__") and isinstance(state, (dict, tuple)):
                return (function, args, state, *(rest[1:3] + [None, None])[:2], _set_state)
            return (function, args, *rest)
        return reduced

    def _reduce_file(self, file):
        if not file.closed:
            raise pickle.PicklingError("an open file belongs to its kernel; its content is kept if it is in /work")
        encoding = getattr(file, "encoding", None)
        return _closed_file, (file.name, getattr(file, "mode", "r"), encoding, getattr(file, "errors", None))

    def _dynamic_function_reduce(self, function):
        module = self._spaces.get(id(function.__globals__))
        if module is None:
            maker, (*args, _closure), (attributes, slots), *rest = super()._dynamic_function_reduce(function)
            return maker, (*args, function.__closure__), (attributes, slots | {"__closure__": None}), *rest
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

    def _replace(self, target, reason):
        kind = type(target).__qualname__
        reason = _short(reason)
        self.lose(self._current, kind, reason)
        self._lost_ids[id(target)] = self._current, kind, reason
        self._kept.append(target)  # a temporary one's id would be given to another
        return NotRestored, (self._current, kind, reason)


class Tolerant(pickle._Unpickler):
    """Loads what can be loaded, after a first attempt failed, and replaces the rest.

    Attributes:
        lost: (name, kind, reason) of each thing that was replaced.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file):
        super().__init__(file)
        self.lost = []

    def find_class(self, module, name):
        try:
            return super().find_class(module, name)
        except Exception as error:
            return self.replace(f"{module}.{name}", error)

    def replace(self, kind, error):
        reason = f"it could not be loaded: {type(error).__name__}: {error}"
        lost = getattr(error, "lost", None) or (_current, str(kind), _short(reason))
        self.lost.append(lost)
        return NotRestored(*lost)

    def exchange(self, old, new):
        """Put ``new`` in the place of ``old``, which is on top of the stack, and wherever else it is known by now."""
        self.stack[-1] = new
        for key, value in self.memo.items():
            if value is old:
                self.memo[key] = new


def _makes(opcode, operands):
    """Let an opcode that makes an object of its operands make a NotRestored where it fails."""
    original = pickle._Unpickler.dispatch[opcode[0]]

    def handle(self):
        height = len(self.stack) - operands
        maker = self.stack[height]
        try:
            original(self)
        except Exception as error:
            del self.stack[height:]
            self.append(self.replace(getattr(maker, "__qualname__", type(maker).__qualname__), error))

    Tolerant.dispatch[opcode[0]] = handle


def _changes(opcode, *, marked):
    """Let an opcode that changes the object below its operands replace it by a NotRestored where it fails."""
    original = pickle._Unpickler.dispatch[opcode[0]]

    def handle(self):
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


_makes(pickle.REDUCE, 2)
_makes(pickle.NEWOBJ, 2)
_makes(pickle.NEWOBJ_EX, 3)
_changes(pickle.BUILD, marked=False)
_changes(pickle.APPEND, marked=False)
for _opcode in (pickle.APPENDS, pickle.SETITEMS, pickle.ADDITEMS):
    _changes(_opcode, marked=True)


def _short(reason):
    return " ".join(str(reason).split())[:_LONGEST]
