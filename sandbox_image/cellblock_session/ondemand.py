"""Import of jupyter_client what a kernel needs, and the rest of it when somebody asks.

The package itself imports its managers, clients and provisioners. Measured: without them 207 ms of imports under runc,
with them 225, and 2.3 of 31 MB.
"""

import importlib.util
import sys
import types


class PackageOnDemand(types.ModuleType):
    """A package whose own code runs once something is asked of it that its imported modules do not give."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = types.ModuleType
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


_spec = importlib.util.find_spec("jupyter_client")
_package = importlib.util.module_from_spec(_spec)
_package.__class__ = PackageOnDemand
sys.modules["jupyter_client"] = _package

import jupyter_client.connect  # noqa: E402 - not "from": that would ask the package

_package.write_connection_file = jupyter_client.connect.write_connection_file  # ipykernel asks the package for it
