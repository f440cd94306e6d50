"""Keep what the launcher needs of the interpreter working, whatever cells did to the standard library's objects."""

import asyncio
import builtins
import collections
import contextlib
import ctypes
import functools
import hashlib
import hmac
import inspect
import json
import operator
import os
import select
import selectors
import signal
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.session import Session
from zmq.eventloop.zmqstream import ZMQStream

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

MODULES = (builtins, os, sys, time, json, json.encoder, json.decoder, threading, struct, signal, select, selectors,
           functools, collections, contextlib, weakref, hmac, hashlib, inspect)  # fmt: skip
CLASSES = (
    asyncio.BaseEventLoop,
    asyncio.Handle,
    selectors.EpollSelector,
    Session,
    ZMQStream,
    json.JSONEncoder,
    json.JSONDecoder,
    threading.Thread,
    threading.Condition,
    threading.Event,
    InteractiveShell,
    ZMQInteractiveShell,
)
HOOKS = frozenset({"displayhook", "excepthook", "unraisablehook", "breakpointhook"})
LEAST_RECURSION = 1000

# Bound here: the check itself must work while the originals are broken.
_MISSING: Any = object()
_get_limit, _set_limit = sys.getrecursionlimit, sys.setrecursionlimit
_string_at: Callable[[int, int], bytes] = getattr(ctypes, "_string_at")  # noqa: B009 - not in the types of ctypes
_POINTERS, _POINTER = tuple.__basicsize__, tuple.__itemsize__  # where CPython's tuple has its pointers, and their size


class Held(NamedTuple):
    """The functions of a module or class, or the modules of ``sys.modules``."""

    owner: Any
    namespace: Mapping[str, Any]
    all: Callable[[Mapping[str, Any]], tuple[Any, ...]]  # the objects that have the names now; KeyError: one is gone
    names: list[str]
    values: list[Any]

    @classmethod
    def of(cls, owner: Any) -> "Held":
        kept = {
            name: value
            for name, value in vars(owner).items()
            if owner is builtins or (callable(value) and name not in HOOKS and not name.startswith("__"))
        }
        return cls.under(owner, vars(owner), kept)

    @classmethod
    def under(cls, owner: Any, namespace: Mapping[str, Any], kept: dict[str, Any]) -> "Held":
        return cls(owner, namespace, operator.itemgetter(*kept), list(kept), list(kept.values()))


class Interpreter:
    """The functions and modules of the interpreter as they were before the first cell.

    Between two cells the launcher works with these. What a cell put in their place is there again when the next cell
    starts, if it can be called. What cannot be called is restored for good: nothing would run with it.
    """

    def __init__(self) -> None:
        self._held = [Held.of(owner) for owner in (*MODULES, *CLASSES)]
        self._modules, self._known = sys.modules, dict(sys.modules)
        self._checked = [*self._held, Held.under(sys, self._modules, self._known)]
        self._before = self._identities()
        self._limit = sys.getrecursionlimit()
        self._taken: list[tuple[Any, str, Any]] = []
        self._swapped: list[tuple[str, Any]] = []  # entries of sys.modules; _MISSING: the session deleted it

    def put_back(self) -> None:
        """Give the session its own functions and modules again. Called before code of the session runs."""
        taken, self._taken = self._taken, []
        swapped, self._swapped = self._swapped, []
        for owner, name, value in taken:
            setattr(owner, name, value)
        for name, module in swapped:
            if module is _MISSING:
                self._modules.pop(name, None)
            else:
                self._modules[name] = module

    def take_over(self, warnings: list[str]) -> bool:
        """Restore the originals. Called after code of the session ran; says in ``warnings`` what stays restored.

        Returns:
            Whether there was anything to restore.
        """
        changed = self._identities() != self._before
        if changed:
            for held in self._held:
                self._take(held, warnings)
            if "sys" in self._modules and "builtins" in self._modules:
                self._take_modules()
        if sys.modules is not self._modules or "sys" not in self._modules or "builtins" not in self._modules:
            self._restore_modules(warnings)
        if _get_limit() < LEAST_RECURSION:
            warnings.append(f"interpreter: the recursion limit of {_get_limit()} was reset to {self._limit}")
            _set_limit(self._limit)
        return changed

    def _identities(self) -> bytes:
        """Return the addresses of all objects that are held, in one piece; b"" if one is gone.

        1,400 objects take 20 us after each cell; comparing them one by one took 70.
        """
        found: list[Any] = []
        try:
            for held in self._checked:
                found += held.all(held.namespace)
        except KeyError:
            return b""
        values = tuple(found)
        return _string_at(id(values) + _POINTERS, len(values) * _POINTER)

    def _take(self, held: Held, warnings: list[str]) -> None:
        owner = held.owner
        for name, original in zip(held.names, held.values, strict=True):
            value = held.namespace.get(name, _MISSING)
            if value is original:
                continue
            setattr(owner, name, original)
            if value is not _MISSING and callable(value):
                self._taken.append((owner, name, value))
            else:
                warnings.append(f"interpreter: {owner.__name__}.{name} was restored, because nothing works without it")

    @property
    def taken(self) -> list[Any]:
        """What the session put in place of the originals, and will get back."""
        return [value for _, _, value in self._taken] + [module for _, module in self._swapped]

    def drop(self) -> list[str]:
        """Keep the originals for good. Return the names of what the session had replaced."""
        names = [f"{owner.__name__}.{name}" for owner, name, _ in self._taken]
        names += [f"sys.modules[{name!r}]" for name, _ in self._swapped]
        self._taken, self._swapped = [], []
        return names

    def _take_modules(self) -> None:
        for name, module in self._known.items():
            if (current := self._modules.get(name, _MISSING)) is not module:
                self._modules[name] = module
                self._swapped.append((name, current))

    def _restore_modules(self, warnings: list[str]) -> None:
        sys.modules = self._modules
        for name, module in self._known.items():
            self._modules.setdefault(name, module)
        warnings.append("interpreter: sys.modules had lost modules that nothing works without; they were restored")
