"""Settings that libraries keep for themselves and that a cell may have changed."""

import contextlib
import decimal
import gc
import logging
import os
import random
import resource
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from cellblock_session import hidden
from cellblock_session.notrestored import Lost, NotRestored

_WARNINGS: Any = warnings  # its type stubs declare the filters as read-only


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# Settings of the interpreter: how to read each and how to set it.
_INTERPRETER: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "gc.threshold": (gc.get_threshold, lambda value: gc.set_threshold(*value)),
    "gc.enabled": (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    "sys.int_max_str_digits": (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    "sys.switchinterval": (sys.getswitchinterval, sys.setswitchinterval),
    "socket.defaulttimeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "os.umask": (_umask, os.umask),
}


def collect(surroundings: Any) -> dict[str, Any]:
    """Return the settings, by the name of the library.

    Args:
        surroundings: the sandbox before the first cell.
    """
    found: dict[str, Any] = {
        "random": random.getstate(), "decimal": decimal.getcontext().copy(), "warnings": list(warnings.filters)
    }  # fmt: skip
    found["interpreter"] = {name: ask() for name, (ask, _) in _INTERPRETER.items()}
    found |= hidden.read_all()
    levels = {name: logging.getLogger(name).level for name in surroundings.levels}
    found |= {f"level of {name}": level for name, level in levels.items() if level != surroundings.levels[name]}
    limits = {number: resource.getrlimit(number) for number in surroundings.limits}
    found["limits"] = {number: limit for number, limit in limits.items() if limit != surroundings.limits[number]}
    for number, handler in surroundings.signals.items():
        if number != signal.SIGINT and (now := signal.getsignal(number)) != handler:
            found[f"signal {int(number)}"] = now
    for name, logger in [("", logging.root), *logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and name.split(".")[0] not in surroundings.loggers:
            state = logger.level, logger.handlers, logger.filters, logger.propagate, logger.disabled
            if state != (0, [], [], True, False):
                found[f"logger {name}"] = state
    modules: Mapping[str, Any] = sys.modules
    with contextlib.suppress(Exception):
        if numpy := modules.get("numpy"):
            found["numpy"] = numpy.random.get_state(), numpy.get_printoptions(), numpy.geterr()
    with contextlib.suppress(Exception):
        if matplotlib := modules.get("matplotlib"):
            found["matplotlib"] = dict(dict.items(matplotlib.rcParams))
    with contextlib.suppress(Exception):
        if pandas := modules.get("pandas"):
            found["pandas"] = _pandas_options(pandas)
    return found


def apply(found: Mapping[str, Any]) -> list[Lost]:
    """Apply the settings, and return (name, kind, reason) of each one that failed.

    Args:
        found: the result of ``collect``.
    """
    lost: list[Lost] = []

    def attempt(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:
            lost.append((name, "settings", f"{type(error).__name__}: {error}"))

    for name, value in found.items():
        if type(value) is NotRestored:
            lost.append((name, "settings", "they could not be captured"))
        elif name == "random":
            attempt("random", random.setstate, value)
        elif name == "interpreter":
            for key, setting in value.items():
                attempt(key, _INTERPRETER[key][1], setting)
        elif name.startswith("hidden "):
            attempt(name.removeprefix("hidden "), hidden.write, name, value)
        elif name.startswith("level of "):
            attempt(name, logging.getLogger(name.removeprefix("level of ")).setLevel, value)
        elif name == "limits":
            for number, limit in value.items():
                attempt(f"resource limit {number}", resource.setrlimit, number, limit)
        elif name.startswith("signal "):
            attempt(name, signal.signal, int(name.split()[1]), value)
        elif name.startswith("logger "):
            attempt(name, _set_logger, name[len("logger ") :], *value)
        elif name == "decimal":
            attempt("decimal", decimal.setcontext, value)
        elif name == "warnings":
            attempt("warnings", _set_filters, value)
        else:
            _apply_to_package(name, value, attempt)
    return lost


def _set_filters(filters: list[Any]) -> None:
    """Set the filters, without those of a category that this sandbox has not: it would fail with each warning."""
    _WARNINGS.filters[:] = [each for each in filters if isinstance(each, tuple) and issubclass(type(each[2]), type)]
    _WARNINGS._filters_mutated()


def _apply_to_package(name: str, value: Any, attempt: Callable[..., None]) -> None:
    """Apply the settings of numpy, matplotlib or pandas, which this imports."""
    if name == "numpy":
        import numpy

        attempt("numpy.random", numpy.random.set_state, value[0])
        attempt("numpy", numpy.set_printoptions, **value[1])
        attempt("numpy", numpy.seterr, **value[2])
    elif name == "matplotlib":
        import matplotlib

        attempt("matplotlib", dict.update, matplotlib.rcParams, value)
    elif name == "pandas":
        import pandas

        for key, option in value.items():
            attempt(f"pandas.{key}", pandas.set_option, key, option)


def _set_logger(
    name: str, level: int, handlers: list[Any], filters: list[Any], propagate: bool, disabled: bool
) -> None:
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.handlers[:] = [handler for handler in handlers if type(handler) is not NotRestored]
    logger.filters[:] = [part for part in filters if type(part) is not NotRestored]
    logger.propagate, logger.disabled = propagate, disabled


def _pandas_options(pandas: Any) -> dict[str, Any]:
    from pandas._config import config

    changed = {}
    for key, option in config._registered_options.items():
        if key not in config._deprecated_options and (value := pandas.get_option(key)) != option.defval:
            changed[key] = value
    return changed
