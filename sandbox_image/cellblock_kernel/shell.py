"""The IPython shell in which cells run."""

import subprocess
import sys
from typing import Any

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type

from cellblock_kernel.streams import OrderedStream


class SandboxDisplayHook(ZMQShellDisplayHook):
    """Displays the value of a cell's last expression.

    After a checkpoint that lost something, the hook first checks whether the value contains a lost object. IPython
    alone would print the error and report the cell as successful.
    """

    has_lost = False

    def compute_format_data(self, result: Any) -> Any:
        if self.has_lost:
            repr(result)
        return super().compute_format_data(result)


class SandboxShell(ZMQInteractiveShell):
    """A shell that runs ``!command`` through plain pipes.

    Under gVisor, IPython's pseudo-terminal sometimes loses the output of a short command. It also merges stderr into
    stdout and polls.
    """

    displayhook_class = Type(SandboxDisplayHook)

    def system_piped(self, cmd: str) -> None:
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        self.user_ns["_exit_code"] = subprocess.call(self.var_expand(cmd, depth=1), shell=True)
        drain_streams()

    system = system_piped

    def ask_exit(self) -> None:
        """End the cell for ``exit()`` and ``quit()``, as sys.exit does. The kernel keeps its variables."""
        status: object = self.keepkernel_on_exit  # ipykernel puts their argument there
        raise SystemExit(status if type(status) is int else None)


def drain_streams() -> None:
    """Read what C code and child processes have written to stdout and stderr so far."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, OrderedStream):
            stream.drain()
