"""What a sandbox contains before its first cell. Every start imports this module, so it imports little itself."""

import atexit
import builtins
import codecs  # noqa: F401 - REGISTERED names it
import contextlib
import functools
import logging
import os
import resource
import signal
import sys
import threading
import types
from collections.abc import Iterator
from importlib import machinery
from typing import Any

ELSEWHERE = ("/tmp", "/dev/shm")  # the other folders that a sandbox can write to, beside /work

# Functions that register something in C, where it cannot be looked up.
REGISTERED = (("codecs", "register"), ("codecs", "register_error"), ("os", "register_at_fork"))


class Surroundings:
    """The sandbox before the first cell, so that a checkpoint contains only what cells changed.

    Created when the kernel's own threads run. From then on it records every module right after its import.
    """

    IGNORED = ("sys", "__main__", "builtins", "IPython", "ipykernel", "zmq", "traitlets", "tornado", "jupyter_client",
               "asyncio", "threading", "_thread", "warnings", "linecache", "cloudpickle", "comm",
               "matplotlib_inline", "cellblock_kernel", "cellblock_session")  # fmt: skip

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.path = list(sys.path)
        self.recursion_limit = sys.getrecursionlimit()
        self.builtins = {"_": None, "display": None, "get_ipython": None} | vars(builtins)
        self.threads = {thread.ident for thread in threading.enumerate()}
        self.elsewhere = {name for folder in ELSEWHERE for name in os.listdir(folder)}
        self.signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.limits = {number: resource.getrlimit(number) for name, number in vars(resource).items()
                       if name.startswith("RLIMIT_")}  # fmt: skip
        self.levels = {name: logger.level for name, logger in logging.root.manager.loggerDict.items()
                       if isinstance(logger, logging.Logger)}  # fmt: skip
        self.registered: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = []  # calls of REGISTERED
        self.loggers = {*self.IGNORED, *logging.root.manager.loggerDict}
        self.modules: dict[str, dict[str, Any]] = {}
        self.classes: dict[type, int] = {}  # the number of attributes that each had
        self.lengths: dict[str, dict[str, int]] = {}  # by module and name: the number of a container's entries
        self._at_exit: list[Any] = []
        self._importing = False
        self._by_libraries: set[str] = set()
        self._watch_exit()
        for owner, function in REGISTERED:
            self._watch_registering(sys.modules[owner], function)
        for name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType):
                self._note(name, module)
        loaders: list[Any] = [machinery.SourceFileLoader, machinery.ExtensionFileLoader, machinery.BuiltinImporter,
                              machinery.FrozenImporter]  # fmt: skip
        for loader in loaders:
            self._watch(loader)

    def _watch(self, loader: Any) -> None:
        """Record each module that a loader has executed."""
        execute = vars(loader).get("exec_module") or loader.exec_module
        plain = execute.__func__ if isinstance(execute, staticmethod) else execute

        @functools.wraps(plain)
        def exec_module(*args: Any) -> Any:
            with self._outermost_import():
                done = plain(*args)
            module = args[-1]
            self._note(module.__name__, module)
            return done

        loader.exec_module = staticmethod(exec_module) if isinstance(execute, staticmethod) else exec_module

    @contextlib.contextmanager
    def _outermost_import(self) -> Iterator[None]:
        """Record the modules that libraries make without a file, to distinguish them from those that cells make."""
        if self._importing:
            yield
            return
        self._importing, before = True, set(sys.modules)
        try:
            yield
        finally:
            self._importing = False
            self._by_libraries |= sys.modules.keys() - before

    def _note(self, name: str, module: types.ModuleType) -> None:
        self.modules[name] = attributes = dict(vars(module))
        lengths = {}
        for key, value in attributes.items():
            if type(value) is type and value.__module__ == name:
                self.classes[value] = len(vars(value))
            elif issubclass(type(value), (dict, list, set)) and not key.startswith("__"):
                lengths[key] = len(value)
        if lengths:
            self.lengths[name] = lengths

    def _watch_registering(self, module: Any, name: str) -> None:
        """Record the calls of a function that registers something in C, where nobody can look it up."""
        register = getattr(module, name)

        @functools.wraps(register)
        def watched(*args: Any, **kwargs: Any) -> Any:
            done = register(*args, **kwargs)
            if not self._importing:
                self.registered.append((module.__name__, name, args, kwargs))
            return done

        setattr(module, name, watched)

    def _watch_exit(self) -> None:
        """Record the callbacks that are registered for the end of the process."""
        module: Any = atexit
        register, unregister = module.register, module.unregister

        @functools.wraps(register)
        def watched_register(function: Any, *args: Any, **kwargs: Any) -> Any:
            self._at_exit.append(function)
            return register(function, *args, **kwargs)

        @functools.wraps(unregister)
        def watched_unregister(function: Any) -> Any:
            self._at_exit[:] = [other for other in self._at_exit if other != function]
            return unregister(function)

        module.register, module.unregister = watched_register, watched_unregister

    def hooks(self) -> Iterator[tuple[str, str, str]]:
        """Yield (name, kind, reason) of the hooks that cells set in the interpreter and that end with it."""
        for function in self._at_exit:
            if getattr(function, "__module__", None) == "__main__":
                yield function.__qualname__, "atexit callback", "a session continues when its kernel ends"
        for name, function in (("sys.settrace", sys.gettrace()), ("sys.setprofile", sys.getprofile())):
            if function is not None:
                yield name, type(function).__qualname__, "it follows the frames of its kernel"

    def made_modules(self) -> list[types.ModuleType]:
        """Return the modules that cells made and put into ``sys.modules``."""
        return [module for name, module in list(sys.modules.items())
                if type(module) is types.ModuleType and name == getattr(module, "__name__", "") != "__main__"
                and name not in self.modules and name not in self._by_libraries
                and getattr(module, "__spec__", None) is None]  # fmt: skip
