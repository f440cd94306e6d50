"""State that libraries keep in places of their own, and that a cell may have set."""

import contextlib
import decimal
import gc
import logging
import os
import random
import signal
import socket
import sys
import warnings

from cellblock_session.notrestored import NotRestored


def _umask():
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# What a cell may have set in the interpreter: how to ask for it, and how to set it.
_INTERPRETER = {
    "gc.threshold": (gc.get_threshold, lambda value: gc.set_threshold(*value)),
    "gc.enabled": (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    "sys.int_max_str_digits": (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    "sys.switchinterval": (sys.getswitchinterval, sys.setswitchinterval),
    "socket.defaulttimeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "os.umask": (_umask, os.umask),
}


def collect(surroundings):
    """Return it, by the library's name.

    Args:
        surroundings: as they were before the first cell.
    """
    found = {"random": random.getstate(), "decimal": decimal.getcontext().copy(), "warnings": list(warnings.filters)}
    found["interpreter"] = {name: ask() for name, (ask, _) in _INTERPRETER.items()}
    for number, handler in surroundings.signals.items():
        if number != signal.SIGINT and (now := signal.getsignal(number)) != handler:
            found[f"signal {int(number)}"] = now
    for name, logger in [("", logging.root), *logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and name.split(".")[0] not in surroundings.loggers:
            state = logger.level, logger.handlers, logger.filters, logger.propagate, logger.disabled
            if state != (0, [], [], True, False):
                found[f"logger {name}"] = state
    modules = sys.modules
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


def apply(found):
    """Set it again. Returns (name, kind, reason) of what could not be.

    Args:
    found: what ``collect`` returned.
    """
    lost = []

    def attempt(name, function, *args, **kwargs):
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
        elif name.startswith("signal "):
            attempt(name, signal.signal, int(name.split()[1]), value)
        elif name.startswith("logger "):
            attempt(name, _set_logger, name[len("logger ") :], *value)
        elif name == "decimal":
            attempt("decimal", decimal.setcontext, value)
        elif name == "warnings":
            warnings.filters[:] = value
            attempt("warnings", warnings._filters_mutated)
        elif name == "numpy":
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
    return lost


def _set_logger(name, level, handlers, filters, propagate, disabled):
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.handlers[:], logger.filters[:] = handlers, filters
    logger.propagate, logger.disabled = propagate, disabled


def _pandas_options(pandas):
    from pandas._config import config

    changed = {}
    for key, option in config._registered_options.items():
        if key not in config._deprecated_options and (value := pandas.get_option(key)) != option.defval:
            changed[key] = value
    return changed
