"""Runs inside the kernel of a sandbox, never on the host: what code finds in E2B's template and not in a plain kernel.

The working folder is called ``/home/user``, and images that Pillow saves under a name are shown. A cell runs the source
of this module in a module of its own, as that of ``insidecontexts``. It may run again.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from IPython import get_ipython
from IPython.core.display_functions import display

_WORK, _HOME = "/work", "/home/user"  # the second leads to the first
_PILLOW = "PIL.Image"


def install(shell: Any) -> None:
    """Do it once."""
    if not hasattr(shell, "e2b_template"):
        shell.e2b_template = True
        os.getcwd = called_home(os.getcwd)
        if _PILLOW in sys.modules:
            show_saved(sys.modules[_PILLOW])
        else:
            sys.meta_path.insert(0, WhenImported())


def called_home(getcwd: Callable[[], str]) -> Callable[[], str]:
    """Return ``os.getcwd`` with the folder's other name."""

    @functools.wraps(getcwd)
    def named() -> str:
        folder = getcwd()
        return _HOME + folder.removeprefix(_WORK) if f"{folder}/".startswith(f"{_WORK}/") else folder

    return named


class WhenImported(MetaPathFinder):
    """Changes Pillow when it is imported: importing it costs each sandbox 0.1 s."""

    def __init__(self) -> None:
        self._is_looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Called by the import system, for every module."""
        if name != _PILLOW or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_looking = False
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_change(module: ModuleType) -> None:
                execute(module)
                show_saved(module)

            loader.exec_module = execute_and_change
        return spec


def show_saved(pillow: Any) -> None:
    """Have images shown that are saved under a name. Those that are written to an open file are not."""
    save = pillow.Image.save

    @functools.wraps(save)
    def save_and_show(image: Any, fp: Any, format: str | None = None, **options: Any) -> None:
        save(image, fp, format, **options)
        if isinstance(fp, str):
            display(image)

    pillow.Image.save = save_and_show


if (_shell := get_ipython()) is not None:
    install(_shell)
