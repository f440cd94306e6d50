"""Keep what the launcher needs of the interpreter working, whatever cells did to the standard library's objects."""

import builtins
import collections
import contextlib
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
from collections.abc import Callable
from typing import Any, NamedTuple

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.interactiveshell import InteractiveShell

MODULES = (builtins, os, sys, time, json, json.encoder, json.decoder, threading, struct, signal, select, selectors,
           functools, collections, contextlib, weakref, hmac, hashlib, inspect)  # fmt: skip
CLASSES = (
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
_callable, _setattr, _all, _map, _zip, _is = callable, setattr, all, map, zip, operator.is_
_MISSING: Any = object()
_get_limit, _set_limit = sys.getrecursionlimit, sys.setrecursionlimit


class Held(NamedTuple):
    """The functions of a module or class."""

    owner: Any
    get: Callable[..., Any]  # of its namespace
    names: list[str]
    values: list[Any]

    @classmethod
    def of(cls, owner: Any) -> "Held":
        kept = {
            name: value
            for name, value in vars(owner).items()
            if owner is builtins or (callable(value) and name not in HOOKS and not name.startswith("__"))
        }
        return cls(owner, vars(owner).get, list(kept), list(kept.values()))


class Interpreter:
    """The functions and modules of the interpreter as they were before the first cell.

    Between two cells the launcher works with these. What a cell put in their place is there again when the next cell
    starts, if it can be called. What cannot be called is restored for good: nothing would run with it.
    """

    def __init__(self) -> None:
        self._held = [Held.of(owner) for owner in (*MODULES, *CLASSES)]
        self._modules, self._known = sys.modules, dict(sys.modules)
        self._names, self._objects = list(self._known), list(self._known.values())
        self._limit = sys.getrecursionlimit()
        self._taken: list[tuple[Any, str, Any]] = []
        self._swapped: list[tuple[str, Any]] = []  # entries of sys.modules; _MISSING: the session deleted it

    def put_back(self) -> None:
        """Give the session its own functions and modules again. Called before code of the session runs."""
        taken, self._taken = self._taken, []
        swapped, self._swapped = self._swapped, []
        for owner, name, value in taken:
            _setattr(owner, name, value)
        for name, module in swapped:
            if module is _MISSING:
                self._modules.pop(name, None)
            else:
                self._modules[name] = module

    def take_over(self, warnings: list[str]) -> None:
        """Restore the originals. Called after code of the session ran; says in ``warnings`` what stays restored."""
        for held in self._held:
            if not _all(_map(_is, _map(held.get, held.names), held.values)):
                self._take(held, warnings)
        if sys.modules is not self._modules or "sys" not in self._modules or "builtins" not in self._modules:
            self._restore_modules(warnings)
        elif not _all(_map(_is, _map(self._modules.get, self._names), self._objects)):
            self._take_modules()
        if _get_limit() < LEAST_RECURSION:
            warnings.append(f"interpreter: the recursion limit of {_get_limit()} was reset to {self._limit}")
            _set_limit(self._limit)

    def _take(self, held: Held, warnings: list[str]) -> None:
        owner = held.owner
        for name, original in _zip(held.names, held.values):
            value = held.get(name, _MISSING)
            if value is original:
                continue
            _setattr(owner, name, original)
            if value is not _MISSING and _callable(value):
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
