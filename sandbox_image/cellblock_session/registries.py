"""Registries and defaults of libraries: what the session put into them, and how to put it there again.

Each pair of functions is a ``hidden.Hidden``: the first returns None for what the library starts with.
"""

import abc
import sys
from importlib import import_module
from typing import Any

_registry_of: Any = vars(abc)["_get_dump"]  # type stubs leave it out


def rc_defaults() -> list[dict[str, Any]]:
    matplotlib = import_module("matplotlib")
    return [dict(dict.items(values)) for values in (matplotlib.rcParamsDefault, matplotlib.rcParamsOrig)]


def set_rc_defaults(found: list[dict[str, Any]]) -> None:
    matplotlib = import_module("matplotlib")
    for there, saved in zip((matplotlib.rcParamsDefault, matplotlib.rcParamsOrig), found, strict=True):
        dict.update(there, saved)


def color_sequences() -> dict[str, Any] | None:
    made = import_module("matplotlib").color_sequences
    return {name: made[name] for name in set(made) - set(made._BUILTIN_COLOR_SEQUENCES)} or None


def add_color_sequences(found: dict[str, Any]) -> None:
    made = import_module("matplotlib").color_sequences
    for name, colors in found.items():
        made.unregister(name)
        made.register(name, colors)


def projections() -> list[Any] | None:
    registry = import_module("matplotlib.projections").projection_registry
    return [kind for kind in registry._all_projection_types.values() if is_of_session(kind)] or None


def add_projections(found: list[Any]) -> None:
    for kind in found:
        import_module("matplotlib.projections").register_projection(kind)


# pandas


def types() -> list[Any] | None:
    return [kind for kind in import_module("pandas.core.dtypes.base")._registry.dtypes if is_of_session(kind)] or None


def add_types(found: list[Any]) -> None:
    for kind in found:
        import_module("pandas.api.extensions").register_extension_dtype(kind)


def plot_params() -> dict[str, Any] | None:
    found = dict(import_module("pandas.plotting._misc").plot_params)
    return found if found != {"xaxis.compat": False} else None


def set_plot_params(found: dict[str, Any]) -> None:
    dict.update(import_module("pandas.plotting._misc").plot_params, found)


# The interpreter


def is_of_session(value: object) -> bool:
    """Return whether a cell, or a module in /work, made a class or function, or an object's class."""
    module = str((value if hasattr(value, "__qualname__") else type(value)).__module__)
    home = str(getattr(sys.modules.get(module), "__file__", ""))
    return module == "__main__" or home.startswith("/work/")


def finders() -> dict[str, list[tuple[int, Any]]] | None:
    lists = {name: list(enumerate(getattr(sys, name))) for name in ("meta_path", "path_hooks")}
    found = {name: [pair for pair in pairs if is_of_session(pair[1])] for name, pairs in lists.items()}
    return found if any(found.values()) else None


def add_finders(found: dict[str, list[tuple[int, Any]]]) -> None:
    for name, pairs in found.items():
        for place, finder in pairs:
            getattr(sys, name).insert(place, finder)


def virtual_subclasses() -> list[tuple[type, type]] | None:
    """Return (abstract class of a library, class of the session that was registered with it)."""
    found = []
    waiting: list[Any] = [object]
    seen: set[type] = set()
    while waiting:
        kinds = [kind for kind in type.__subclasses__(waiting.pop()) if kind not in seen]
        seen.update(kinds)
        waiting += kinds
        for kind in kinds:
            if isinstance(kind, abc.ABCMeta) and not is_of_session(kind):
                registered = [reference() for reference in _registry_of(kind)[0]]
                found += [(kind, one) for one in registered if one is not None and is_of_session(one)]
    return found or None


def register(found: list[tuple[type, type]]) -> None:
    for kind, registered in found:
        kind.register(registered)  # type: ignore[attr-defined]  # an abstract class
