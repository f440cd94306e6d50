"""What a sandbox contains before its first cell. Every start imports this module, so it imports little itself."""

import atexit
import builtins
import contextlib
import functools
import gc
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from importlib import machinery
from typing import Any

ELSEWHERE = ("/tmp", "/dev/shm")  # the other folders that a sandbox can write to, beside /work
# Types of values that classes hold by the ten thousand and that no session can have made.
_PLAIN = frozenset({types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType,
                    types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType, str, int,
                    bool, float, types.NoneType, tuple, dict, list, set, frozenset})  # fmt: skip


def _of_session(value: Any, namespace: Mapping[str, Any]) -> bool:
    """Return whether a value in a library's class is a function or class of the session, or refers to one."""
    kind = type(value)
    if kind is types.FunctionType:
        return bool(value.__globals__ is namespace)
    if kind in _PLAIN:
        return False
    return any(
        part.__globals__ is namespace if type(part) is types.FunctionType
        else isinstance(part, type) and part.__module__ == "__main__" and part is not kind
        for part in (value, *gc.get_referents(value), *getattr(value, "__dict__", {}).values())
    )  # fmt: skip


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
        self.builtins = set(vars(builtins)) | {"_", "display", "get_ipython"}
        self.threads = {thread.ident for thread in threading.enumerate()}
        self.elsewhere = {name for folder in ELSEWHERE for name in os.listdir(folder)}
        self.signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.loggers = {*self.IGNORED, *logging.root.manager.loggerDict}
        self._modules: dict[str, dict[str, Any]] = {}
        self._classes: dict[type, int] = {}  # the number of attributes that each had
        self._at_exit: list[Any] = []
        self._importing = False
        self._by_libraries: set[str] = set()
        for name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType):
                self._note(name, module)
        self._watch_exit()
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
        self._modules[name] = attributes = dict(vars(module))
        for value in attributes.values():
            if type(value) is type and value.__module__ == name:
                self._classes[value] = len(vars(value))

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
                if type(module) is types.ModuleType and name == module.__name__ != "__main__"
                and name not in self._modules and name not in self._by_libraries
                and getattr(module, "__spec__", None) is None]  # fmt: skip

    def class_patches(self, namespace: Mapping[str, Any]) -> Iterator[tuple[type, str, Any]]:
        """Yield (class, attribute, value) for what cells set on classes of libraries and of modules in /work."""
        seen: set[type] = set()
        waiting: list[type] = [object]
        while waiting:
            subclasses: list[type] = type.__subclasses__(waiting.pop())
            for kind in subclasses:
                if kind not in seen:
                    seen.add(kind)
                    waiting.append(kind)
        for kind in seen:
            module = str(kind.__module__)
            if module.split(".")[0] in self.IGNORED:
                continue
            own = str(getattr(sys.modules.get(module), "__file__", "")).startswith("/work/")
            before = self._classes.get(kind, len(vars(kind)))
            for number, (name, value) in enumerate(list(vars(kind).items())):
                if _of_session(value, namespace) or (
                    (own or number >= before) and not name.startswith("_") and not hasattr(type(value), "__get__")
                ):
                    yield kind, name, value

    def patches(self, namespace: Mapping[str, Any]) -> Iterator[tuple[str, str, bool, Any]]:
        """Yield (module, attribute, whether it exists, value) for what cells changed in other modules."""
        for module_name, before in list(self._modules.items()):
            module = sys.modules.get(module_name)
            if not isinstance(module, types.ModuleType) or module_name.split(".")[0] in self.IGNORED:
                continue
            now = vars(module)
            own = str(getattr(module, "__file__", "")).startswith("/work/")
            for name, value in list(now.items()):
                if isinstance(value, types.ModuleType) or (name.startswith("__") and name.endswith("__")):
                    continue
                old = before.get(name, self)
                changed = old is not value and self._by_cell(module_name, value, namespace, name, old is self)
                if changed or (own and not callable(value)):
                    yield module_name, name, True, value
            for name in before:
                if name not in now and not name.startswith("_"):
                    yield module_name, name, False, None

    def _by_cell(self, module_name: str, value: Any, namespace: Mapping[str, Any], name: str, new: bool) -> bool:
        """Return whether a cell, and not the library itself, set a value in a library's module."""
        if getattr(value, "__globals__", None) is namespace or type(value).__module__ == "__main__":
            return True
        if name.startswith("_"):
            return False
        if callable(value):
            home = str(getattr(value, "__module__", "")).split(".")[0]
            return not new and home not in (module_name.split(".")[0], *self.IGNORED)
        return isinstance(value, (int, float, complex, str, bytes, types.NoneType)) or new
