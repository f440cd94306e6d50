"""Let functions and classes of cells reach the processes that multiprocessing spawns.

Python pickles them by name. A spawned process has no cells, so its worker would end with an AttributeError, and a Pool
would start the next worker for ever.
"""

import importlib.util
import sys
from types import FunctionType
from typing import Any

MODULE = "multiprocessing.reduction"


def by_value(_pickler: Any, value: Any) -> Any:
    """Reduce a cell's function or class to its code, where a spawned process may be the receiver.

    multiprocessing's pickler calls this for every object. A forked process has the session's own objects.
    """
    made = type(value) is FunctionType or isinstance(value, type)
    if not made or getattr(value, "__module__", None) != "__main__" or not _spawns():
        return NotImplemented
    import cloudpickle

    return cloudpickle.loads, (cloudpickle.dumps(value),)


def _spawns() -> bool:
    from multiprocessing import context, process

    if context.get_spawning_popen() is not None:
        return True
    children = tuple(process._children)  # type: ignore[attr-defined]
    return any(getattr(child, "_start_method", None) in ("spawn", "forkserver") for child in children)


class OnImport:
    """Prepares multiprocessing's pickler when a cell imports it; importing it at the start would take 3 ms."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """See ``importlib.abc.MetaPathFinder``. Finds one module, once."""
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            module.ForkingPickler.reducer_override = by_value

        spec.loader.exec_module = exec_module
        return spec


def prepare() -> None:
    """Call once, before the first cell."""
    sys.meta_path.insert(0, OnImport())
