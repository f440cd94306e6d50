"""The shell in which cells run."""

import subprocess
import sys

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type

from cellblock_kernel.streams import OrderedStream


class SandboxDisplayHook(ZMQShellDisplayHook):
    """Shows the value of a cell's last expression.

    Where a checkpoint lost something, it looks first whether the value has that in it: IPython would print the error
    and call the cell a success.
    """

    has_lost = False

    def compute_format_data(self, result):
        if self.has_lost:
            repr(result)
        return super().compute_format_data(result)


class SandboxShell(ZMQInteractiveShell):
    """The shell; ``!command`` goes through plain pipes.

    IPython's pseudo-terminal loses the output of a short command now and then under gVisor, merges stderr into stdout
    and polls.
    """

    displayhook_class = Type(SandboxDisplayHook)

    def system_piped(self, cmd):
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        self.user_ns["_exit_code"] = subprocess.call(self.var_expand(cmd, depth=1), shell=True)
        drain_streams()

    system = system_piped

    def ask_exit(self):
        """Serves ``exit()`` and ``quit()``: ends the cell, as sys.exit does, and not the kernel with its variables."""
        status = self.keepkernel_on_exit  # where ipykernel puts what they are called with
        raise SystemExit(status if type(status) is int else None)


def drain_streams():
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, OrderedStream):
            stream.drain()
