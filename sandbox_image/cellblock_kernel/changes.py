"""What the session changed in the objects that the launcher works with: Python's, IPython's, and its own streams."""

from collections.abc import Callable
from typing import Any

from cellblock_kernel.interpreter import Interpreter
from cellblock_kernel.originals import BUILTINS
from cellblock_kernel.shellparts import ShellParts
from cellblock_kernel.streamrepair import StreamRepair
from cellblock_kernel.streams import OrderedStream

__builtins__ = BUILTINS


class Changes:
    """Lets the launcher work with the originals between two cells, and undoes changes with which no cell could run.

    Made before the first cell.

    Args:
        shell: IPython's shell.
        warn: says something with the next result.
    """

    def __init__(self, shell: Any, streams: dict[str, OrderedStream], warn: Callable[[str], None]) -> None:
        self._shell = shell
        self._warn = warn
        self._interpreter = Interpreter()
        self._parts = ShellParts(shell)
        self._streams = StreamRepair(streams)
        self._tried: list[Any] = []  # changes that IPython works with

    def put_back(self) -> None:
        """Give the session its own objects again. Called before code of the session runs."""
        self._streams.put_back()
        self._interpreter.put_back()

    def take_over(self) -> bool:
        """Restore the originals. Called after code of the session ran.

        Returns:
            Whether the cell had changed what the launcher's threads may have needed meanwhile.
        """
        warnings: list[str] = []
        try:
            changed = self._interpreter.take_over(warnings)
        except BaseException:  # noqa: BLE001 - a trace function of the cell raised; Python has removed it
            changed = self._interpreter.take_over(warnings) or True
        for warning in warnings:
            self._warn(warning)
        for name in self._streams.take_over():
            self._warn(f"sys.{name} was repaired, because a cell had changed its attributes")
        return changed

    def check(self) -> None:
        """Undo what the session changed in Python and IPython if no cell could run with it, and say so."""
        changes = self._interpreter.taken + self._parts.changed()
        if list(map(id, changes)) == list(map(id, self._tried)):
            return
        self._tried = changes
        self.put_back()
        try:
            works = self._shell.runs_cells()
        except BaseException:  # noqa: BLE001 - an object of the session raised, or was interrupted
            works = False
        self.take_over()
        if not works:
            names = ", ".join(self._interpreter.drop() + self._parts.restore())
            self._warn(f"interpreter: no cell could run with the session's {names}; this was undone")
            self._tried = []
