"""The name under which users import Cellblock: hands on the public names of ``orchestrator``, and defines none.

``cellblock.sync`` has the synchronous form of the manager.
"""

from orchestrator import *  # noqa: F403 - the names are those of ``orchestrator.__all__``
from orchestrator import __all__ as __all__
from orchestrator import __version__ as __version__
