"""What a sandbox is like before its first cell. Imported at every start, so it imports next to nothing itself."""

import builtins
import functools
import os
import sys
import threading
import types
from importlib import machinery


class Surroundings:
    """What the sandbox was like before the first cell, so that a capture has only what cells changed.

    Made once the kernel's own threads run; from then on it notes what every module is like once it is imported.
    """

    IGNORED = ("sys", "__main__", "builtins", "IPython", "ipykernel", "zmq", "traitlets", "tornado", "jupyter_client",
               "asyncio", "threading", "_thread", "warnings", "linecache", "cloudpickle", "comm",
               "matplotlib_inline", "cellblock_session")  # fmt: skip

    def __init__(self):
        self.environment = dict(os.environ)
        self.path = list(sys.path)
        self.recursion_limit = sys.getrecursionlimit()
        self.builtins = set(vars(builtins)) | {"_", "display", "get_ipython"}
        self.threads = {thread.ident for thread in threading.enumerate()}
        self._modules = {name: dict(vars(module)) for name, module in list(sys.modules.items())
                         if isinstance(module, types.ModuleType)}  # fmt: skip
        for loader in (machinery.SourceFileLoader, machinery.ExtensionFileLoader, machinery.BuiltinImporter,
                       machinery.FrozenImporter):  # fmt: skip
            self._watch(loader)

    def _watch(self, loader):
        execute = vars(loader).get("exec_module") or loader.exec_module
        plain = execute.__func__ if isinstance(execute, staticmethod) else execute

        @functools.wraps(plain)
        def exec_module(*args):
            done = plain(*args)
            module = args[-1]
            self._modules[module.__name__] = dict(vars(module))
            return done

        loader.exec_module = staticmethod(exec_module) if isinstance(execute, staticmethod) else exec_module

    def patches(self, namespace):
        """Yield (module, attribute, whether it is there, value) for what cells have changed in other modules."""
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

    def _by_cell(self, module_name, value, namespace, name, new):
        """Whether a cell has put a value into a library's module, and not the library itself, which may do so too."""
        if getattr(value, "__globals__", None) is namespace or type(value).__module__ == "__main__":
            return True
        if name.startswith("_"):
            return False
        if callable(value):
            home = str(getattr(value, "__module__", "")).split(".")[0]
            return not new and home not in (module_name.split(".")[0], *self.IGNORED)
        return isinstance(value, (int, float, complex, str, bytes, types.NoneType)) or new
