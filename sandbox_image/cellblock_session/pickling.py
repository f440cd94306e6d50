"""Pickling that replaces what cannot be pickled, wherever it is nested, and unpickling that replaces what fails."""

import asyncio
import collections
import contextlib
import copyreg
import functools
import io
import os
import pickle
import queue
import subprocess
import sys
import threading
import types
import weakref
from concurrent import futures

from cloudpickle import cloudpickle

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


def _make_function(code, closure):
    """Make a function of the session: its globals are the session's variables."""
    return types.FunctionType(code, _namespace(), None, None, closure)


def _namespace():
    return sys.modules["__main__"].__dict__


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
    error = kind.__new__(kind)
    error.args = args
    return error


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
}  # fmt: skip
_KINDS = tuple(kind for kinds in _REFUSED for kind in kinds)


class Capture(cloudpickle.Pickler):
    """Pickles the session's state, and replaces what cannot be pickled.

    Attributes:
        lost: (name, kind, reason) of each thing that was replaced, or left out.
        taken: ids of the functions that were captured.
    """

    dispatch_table = collections.ChainMap(
        {
            functools._lru_cache_wrapper: lambda cached: (
                _make_cached, (cached.cache_parameters(), cached.__wrapped__), vars(cached) or None
            ),
            weakref.WeakValueDictionary: lambda weak: (_weak_values, (dict(weak),)),
            weakref.WeakKeyDictionary: lambda weak: (_weak_keys, (dict(weak),)),
        },
        cloudpickle.Pickler.dispatch_table,
    )  # fmt: skip

    def __init__(self, file, namespace):
        super().__init__(file, protocol=5)
        self._namespace = namespace
        self._streams = {id(getattr(sys, name)): name for name in ("stdin", "stdout", "stderr")}
        self._current = "?"
        self._lost_ids = {}
        self._kept = []
        self.lost = []
        self.taken = set()

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
        if issubclass(type(target), _KINDS):
            return self._replace(
                target, next(reason for kinds, reason in _REFUSED.items() if isinstance(target, kinds))
            )
        try:
            reduced = super().reducer_override(target)
            return self._reduce(target) if reduced is NotImplemented else reduced
        except Exception as error:
            return self._replace(target, f"{type(error).__name__}: {error}")

    def _reduce(self, target):
        kind = type(target)
        if id(target) in self._streams:
            return _standard_stream, (self._streams[id(target)],)
        if isinstance(target, io.IOBase) and not isinstance(target, (io.StringIO, io.BytesIO)):
            return self._reduce_file(target)
        if issubclass(kind, type) or kind is types.FunctionType:
            return NotImplemented  # by reference
        if reducer := self.dispatch_table.get(kind):
            return reducer(target)
        reduced = target.__reduce_ex__(5)
        if isinstance(reduced, str):
            if getattr(target, "__module__", None) == "__main__":
                raise pickle.PicklingError("it is found by a name of this session alone")
            return reduced
        return self._made_sure(target, kind, reduced)

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
        self.taken.add(id(function))
        if function.__globals__ is not self._namespace:
            return super()._dynamic_function_reduce(function)
        closure = None
        if function.__closure__ is not None:
            closure = tuple(cloudpickle._make_empty_cell() for _ in function.__code__.co_freevars)
        names = ("__name__", "__qualname__", "__annotations__", "__kwdefaults__", "__defaults__", "__module__",
                 "__doc__", "__closure__")  # fmt: skip
        slots = {name: getattr(function, name) for name in names}
        slots["__globals__"], slots["_cloudpickle_submodules"] = {}, []
        return (
            _make_function,
            (function.__code__, closure),
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
        lost = (_current, str(kind), _short(f"it could not be loaded: {type(error).__name__}: {error}"))
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
