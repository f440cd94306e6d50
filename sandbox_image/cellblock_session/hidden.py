"""Settings that no variable shows: they lie in C, or in objects that libraries keep for themselves.

Each has a getter and a setter. A getter of a library runs only if the library is imported, and returns None for what
the library starts with; its setter imports the library.
"""

import _locale
import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from cellblock_session import registries

_DIALECT = ("delimiter", "doublequote", "escapechar", "lineterminator", "quotechar", "quoting", "skipinitialspace",
            "strict")  # fmt: skip
_DIALECTS = {"excel", "excel-tab", "unix"}  # those that csv registers itself
_CONTEXT = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
_SLOW_CALLBACK = 0.1  # seconds after which asyncio in debug mode reports a callback
_FIELD_SIZE = 131072  # characters of csv's longest field
# What seaborn registers when it is imported.
_SEABORN = frozenset(
    name + end for name in ("rocket", "mako", "icefire", "vlag", "flare", "crest") for end in ("", "_r")
)
_LOCALES = (_locale.LC_CTYPE, _locale.LC_COLLATE, _locale.LC_TIME, _locale.LC_MONETARY, _locale.LC_NUMERIC,
            _locale.LC_MESSAGES)  # fmt: skip


class Hidden(NamedTuple):
    """One setting: the module that has it, how to read it and how to set it."""

    module: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _module(name: str) -> Any:
    return importlib.import_module(name)


# csv, logging, mimetypes, sqlite3


def _dialects() -> dict[str, dict[str, Any]] | None:
    csv = _module("csv")
    found = {name: {key: getattr(csv.get_dialect(name), key) for key in _DIALECT} for name in csv.list_dialects()}
    return found if found.keys() != _DIALECTS else None


def _set_dialects(dialects: dict[str, dict[str, Any]]) -> None:
    csv = _module("csv")
    for name in set(csv.list_dialects()) - dialects.keys():
        csv.unregister_dialect(name)
    for name, options in dialects.items():
        csv.register_dialect(name, **options)


def _field_size() -> int | None:
    size: int = _module("csv").field_size_limit()
    return size if size != _FIELD_SIZE else None


def _logging() -> tuple[Any, ...] | None:
    logging = _module("logging")
    captures = logging._warnings_showwarning is not None
    names = {number: name for number, name in logging._levelToName.items() if name not in logging.__all__}
    names.pop(logging.NOTSET, None)
    kinds = logging.getLoggerClass(), logging.getLogRecordFactory()
    own = tuple(kind if getattr(kind, "__module__", "") == "__main__" else None for kind in kinds)
    found = logging.root.manager.disable, captures, names, *own
    return found if found != (0, False, {}, None, None) else None


def _set_logging(found: tuple[Any, ...]) -> None:
    logging = _module("logging")
    disabled, captures, names, kind, factory = found
    logging.disable(disabled)
    logging.captureWarnings(captures)
    for number, name in names.items():
        logging.addLevelName(number, name)
    if kind is not None:
        logging.setLoggerClass(kind)
    if factory is not None:
        logging.setLogRecordFactory(factory)


def _mime_types() -> tuple[Any, ...] | None:
    mimetypes = _module("mimetypes")
    known = mimetypes._db
    return None if known is None or _maps(known) == _maps(mimetypes.MimeTypes()) else _maps(known)


def _maps(known: Any) -> tuple[Any, ...]:
    return known.encodings_map, known.suffix_map, *known.types_map, *known.types_map_inv


def _set_mime_types(found: tuple[Any, ...]) -> None:
    mimetypes = _module("mimetypes")
    if mimetypes._db is None:
        mimetypes.init()
    for there, saved in zip(_maps(mimetypes._db), found, strict=True):
        there.clear()
        there.update(saved)


def _adapters() -> tuple[dict[Any, Any], dict[Any, Any]] | None:
    sqlite3 = _module("sqlite3")
    adapters = {key[0]: function for key, function in sqlite3.adapters.items() if not _is_of(function, "sqlite3")}
    converters = {name: function for name, function in sqlite3.converters.items() if not _is_of(function, "sqlite3")}
    return (adapters, converters) if adapters or converters else None


def _set_adapters(found: tuple[dict[Any, Any], dict[Any, Any]]) -> None:
    sqlite3 = _module("sqlite3")
    for kind, function in found[0].items():
        sqlite3.register_adapter(kind, function)
    for name, function in found[1].items():
        sqlite3.register_converter(name, function)


def _is_of(function: object, package: str) -> bool:
    return str(getattr(function, "__module__", "")).split(".")[0] == package


# decimal, calendar, zoneinfo, multiprocessing, asyncio, numpy


def _decimal_defaults() -> list[dict[str, Any]]:
    decimal = _module("decimal")
    contexts = decimal.DefaultContext, decimal.BasicContext, decimal.ExtendedContext
    return [{name: getattr(context, name) for name in _CONTEXT} for context in contexts]


def _set_decimal_defaults(found: list[dict[str, Any]]) -> None:
    decimal = _module("decimal")
    for context, values in zip(
        (decimal.DefaultContext, decimal.BasicContext, decimal.ExtendedContext), found, strict=True
    ):
        for name, value in values.items():
            setattr(context, name, value)


def _start_method() -> str | None:
    method: str | None = _module("multiprocessing").get_start_method(allow_none=True)
    return method


def _event_loop() -> tuple[Any, ...] | None:
    asyncio = _module("asyncio")
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    found = loop.get_debug(), loop.slow_callback_duration, handler if _is_of(handler, "__main__") else None
    return found if found != (False, _SLOW_CALLBACK, None) else None


def _set_event_loop(found: tuple[Any, ...]) -> None:
    loop = _module("asyncio").get_running_loop()
    loop.set_debug(found[0])
    loop.slow_callback_duration = found[1]
    if found[2] is not None:
        loop.set_exception_handler(found[2])


def _policy() -> Any:
    policy = _module("asyncio").get_event_loop_policy()
    return policy if type(policy).__module__ == "__main__" else None


def _numpy_errors() -> tuple[Any, ...] | None:
    numpy = _module("numpy")
    found = numpy.geterrcall(), numpy.getbufsize()
    return found if found != (None, 8192) else None


def _set_numpy_errors(found: tuple[Any, ...]) -> None:
    numpy = _module("numpy")
    numpy.seterrcall(found[0])
    numpy.setbufsize(found[1])


def _special_errors() -> dict[str, str] | None:
    found: dict[str, str] = _module("scipy.special").geterr()
    return found if set(found.values()) != {"ignore"} else None


# matplotlib


def _fonts() -> list[str] | None:
    manager = _module("matplotlib.font_manager").fontManager
    known = os.path.dirname(_module("matplotlib").__file__), "/usr/", "/opt/"
    return [entry.fname for entry in (*manager.ttflist, *manager.afmlist) if not entry.fname.startswith(known)] or None


def _add_fonts(paths: list[str]) -> None:
    manager = _module("matplotlib.font_manager").fontManager
    there = {entry.fname for entry in (*manager.ttflist, *manager.afmlist)}
    for path in paths:
        if path not in there:
            manager.addfont(path)


def _color_maps() -> dict[str, Any] | None:
    maps = _module("matplotlib").colormaps
    names = set(maps) - set(maps._builtin_cmaps)
    return {name: maps[name] for name in names if name not in _SEABORN} or None


def _add_color_maps(found: dict[str, Any]) -> None:
    maps = _module("matplotlib").colormaps
    for name, made in found.items():
        maps.register(made, name=name, force=True)


def _styles() -> dict[str, Any] | None:
    style = _module("matplotlib.style")
    return {
        name: dict(dict.items(made)) for name, made in style.library.items() if name not in style._base_library
    } or None


def _add_styles(found: dict[str, Any]) -> None:
    style, rc_params = _module("matplotlib.style"), _module("matplotlib").RcParams
    for name, values in found.items():
        made = rc_params()
        dict.update(made, values)
        style.library[name] = made
    style.available[:] = sorted(style.library)


def _time_path() -> tuple[str, ...]:
    found: tuple[str, ...] = _module("zoneinfo").TZPATH
    return found


def _stack_size() -> int:
    size = threading.stack_size()  # it also sets the size to the default
    threading.stack_size(size)
    return size


HIDDEN: dict[str, Hidden] = {
    "csv.field_size_limit": Hidden("csv", _field_size, lambda size: _module("csv").field_size_limit(size)),
    "csv dialects": Hidden("csv", _dialects, _set_dialects),
    "logging.disable": Hidden("logging", _logging, _set_logging),
    "mimetypes": Hidden("mimetypes", _mime_types, _set_mime_types),
    "sqlite3 adapters": Hidden("sqlite3", _adapters, _set_adapters),
    "decimal's defaults": Hidden("decimal", _decimal_defaults, _set_decimal_defaults),
    "calendar.firstweekday": Hidden(
        "calendar",
        lambda: _module("calendar").firstweekday() or None,
        lambda day: _module("calendar").setfirstweekday(day),
    ),
    "zoneinfo.TZPATH": Hidden("zoneinfo", _time_path, lambda path: _module("zoneinfo").reset_tzpath(path)),
    "multiprocessing's start method": Hidden(
        "multiprocessing.context",
        _start_method,
        lambda method: _module("multiprocessing").set_start_method(method, force=True),
    ),
    "asyncio's event loop": Hidden("asyncio", _event_loop, _set_event_loop),
    "asyncio's policy": Hidden("asyncio", _policy, lambda policy: _module("asyncio").set_event_loop_policy(policy)),
    "numpy.seterrcall": Hidden("numpy", _numpy_errors, _set_numpy_errors),
    "scipy.special.seterr": Hidden(
        "scipy.special", _special_errors, lambda found: _module("scipy.special").seterr(**found)
    ),
    "matplotlib fonts": Hidden("matplotlib.font_manager", _fonts, _add_fonts),
    "matplotlib.colormaps": Hidden("matplotlib.cm", _color_maps, _add_color_maps),
    "matplotlib styles": Hidden("matplotlib.style", _styles, _add_styles),
    "matplotlib's defaults": Hidden("matplotlib", registries.rc_defaults, registries.set_rc_defaults),
    "matplotlib.color_sequences": Hidden(
        "matplotlib.colors", registries.color_sequences, registries.add_color_sequences
    ),
    "matplotlib projections": Hidden("matplotlib.projections", registries.projections, registries.add_projections),
    "pandas extension types": Hidden("pandas.core.dtypes.base", registries.types, registries.add_types),
    "pandas.plotting.plot_params": Hidden("pandas.plotting._misc", registries.plot_params, registries.set_plot_params),
    # The interpreter and its process
    "import finders": Hidden("sys", registries.finders, registries.add_finders),
    "virtual subclasses": Hidden("abc", registries.virtual_subclasses, registries.register),
    "locale": Hidden(
        "_locale",
        lambda: [_locale.setlocale(category) for category in _LOCALES],
        lambda found: [_locale.setlocale(*pair) for pair in zip(_LOCALES, found, strict=True)],
    ),
    "faulthandler": Hidden(
        "faulthandler",
        faulthandler.is_enabled,
        lambda on: faulthandler.enable(2) if on else faulthandler.disable(),
    ),
    "gc.debug": Hidden("gc", gc.get_debug, gc.set_debug),
    "threading.stack_size": Hidden("threading", _stack_size, threading.stack_size),
    "sys.dlopenflags": Hidden("sys", sys.getdlopenflags, sys.setdlopenflags),
    "sys.coroutine_origin_tracking_depth": Hidden(
        "sys", sys.get_coroutine_origin_tracking_depth, sys.set_coroutine_origin_tracking_depth
    ),
    "the signal mask": Hidden(
        "signal",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []),
        lambda mask: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
    ),
    "nice": Hidden(
        "os", lambda: os.getpriority(os.PRIO_PROCESS, 0), lambda value: os.setpriority(os.PRIO_PROCESS, 0, value)
    ),
}


def read_all() -> dict[str, Any]:
    """Return the settings of all libraries that are imported, by name, without those that nobody changed."""
    found = {}
    for name, hidden in HIDDEN.items():
        if hidden.module in sys.modules:
            with contextlib.suppress(Exception):  # a cell may have broken the library
                if (value := hidden.read()) is not None:
                    found[f"hidden {name}"] = value
    return found


def write(name: str, value: Any) -> None:
    """Apply a setting of ``read_all``, unless it is so already."""
    hidden = HIDDEN[name.removeprefix("hidden ")]
    if hidden.module not in sys.modules or hidden.read() != value:
        hidden.write(value)
