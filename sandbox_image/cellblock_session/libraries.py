"""State that libraries keep in places of their own, and that a cell may have set."""

import contextlib
import decimal
import random
import sys
import warnings

from cellblock_session.notrestored import NotRestored


def collect():
    """Return it, by the library's name."""
    found = {"random": random.getstate(), "decimal": decimal.getcontext().copy(), "warnings": list(warnings.filters)}
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


def _pandas_options(pandas):
    from pandas._config import config

    changed = {}
    for key, option in config._registered_options.items():
        if key not in config._deprecated_options and (value := pandas.get_option(key)) != option.defval:
            changed[key] = value
    return changed
