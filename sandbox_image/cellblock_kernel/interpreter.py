"""Keep what the launcher needs of the interpreter working, whatever cells did to the standard library's objects."""

import builtins
import collections
import contextlib
import functools
import hashlib
import hmac
import json
import os
import select
import selectors
import signal
import struct
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

MODULES = (builtins, os, sys, time, json, json.encoder, json.decoder, threading, struct, signal, select, selectors,
           functools, collections, contextlib, weakref, hmac, hashlib)  # fmt: skip
CLASSES = (json.JSONEncoder, json.JSONDecoder, threading.Thread, threading.Condition, threading.Event)
HOOKS = frozenset({"displayhook", "excepthook", "unraisablehook", "breakpointhook"})
LEAST_RECURSION = 1000

# Bound here: the check itself must work while the originals are broken.
_callable, _setattr = callable, setattr
_get_limit, _set_limit = sys.getrecursionlimit, sys.setrecursionlimit


def _held(owner: Any) -> Iterator[tuple[dict[str, Any], Any, str, Any]]:
    for name, value in list(vars(owner).items()):
        if callable(value) and name not in HOOKS and (not name.startswith("__") or name == "__build_class__"):
            yield vars(owner), owner, name, value


class Interpreter:
    """The functions of the standard library as they were before the first cell.

    Between two cells the launcher works with these. What a cell put in their place is there again when the next cell
    starts, if it can be called. What cannot be called is restored for good: nothing would run with it.
    """

    def __init__(self) -> None:
        self._held = [entry for owner in (*MODULES, *CLASSES) for entry in _held(owner)]
        self._modules, self._known = sys.modules, dict(sys.modules)
        self._limit = sys.getrecursionlimit()
        self._taken: list[tuple[Any, str, Any]] = []

    def put_back(self) -> None:
        """Give the session its own functions again. Called before code of the session runs."""
        taken, self._taken = self._taken, []
        for owner, name, value in taken:
            _setattr(owner, name, value)

    def take_over(self, warnings: list[str]) -> None:
        """Restore the originals. Called after code of the session ran; says in ``warnings`` what stays restored."""
        missing = object
        for names, owner, name, original in self._held:
            value = names.get(name, missing)
            if value is original:
                continue
            _setattr(owner, name, original)
            if value is not missing and _callable(value):
                self._taken.append((owner, name, value))
            else:
                warnings.append(f"interpreter: {owner.__name__}.{name} was restored, because nothing works without it")
        if sys.modules is not self._modules or "sys" not in self._modules or "builtins" not in self._modules:
            self._restore_modules(warnings)
        if _get_limit() < LEAST_RECURSION:
            warnings.append(f"interpreter: the recursion limit of {_get_limit()} was reset to {self._limit}")
            _set_limit(self._limit)

    def _restore_modules(self, warnings: list[str]) -> None:
        sys.modules = self._modules
        for name, module in self._known.items():
            self._modules.setdefault(name, module)
        warnings.append("interpreter: sys.modules had lost modules that nothing works without; they were restored")
