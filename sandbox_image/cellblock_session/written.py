"""What the session's own code sets by name: its patches of libraries, unlike what libraries make themselves."""

import ast
import contextlib
import os
import re
from collections.abc import Iterable, Sequence

COMPUTED = "*"  # in ``Written.names`` if the code sets attributes under names that it computes
_LONGEST = 200_000  # characters of a cell or file whose syntax is examined; of a longer one, only its words are read


class Written:
    """The names that the session's code sets.

    Attributes:
        names: each "attribute" and "Owner.attribute" that the code sets or deletes, and each text in its code with
            the words in it.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._cells = 0
        self._files: dict[str, float] = {}

    def skip(self, names: Iterable[str], cells: int) -> None:
        """Take over the names of the first ``cells`` cells, which another kernel has read."""
        self.names |= set(names)
        self._cells = cells

    def read(self, cells: Sequence[str], files: Iterable[str]) -> set[str]:
        """Return the names, after reading the cells and Python files that are new since the last call."""
        for text in cells[self._cells :]:
            self._read(text)
        self._cells = len(cells)
        for path in files:
            with contextlib.suppress(OSError):
                changed = os.stat(path).st_mtime
                if self._files.get(path) != changed:
                    with open(path, encoding="utf-8", errors="replace") as file:
                        self._read(file.read(_LONGEST))
                    self._files[path] = changed
        return self.names

    def _read(self, text: str) -> None:
        try:
            tree = ast.parse(text) if len(text) <= _LONGEST else None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            tree = None
        if tree is None:
            self.names.update(re.findall(r"\w+", text))
            return
        for node in ast.walk(tree):
            self._visit(node)

    def _visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            if node.attr == "__dict__":
                self.names.add(COMPUTED)
            if not isinstance(node.ctx, ast.Load):
                self._add(node.value, node.attr)
        elif isinstance(node, ast.Name) and node.id == "vars":
            self.names.add(COMPUTED)
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            owner, name = node.args[:2]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                self._add(owner, name.value)
            elif isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
                self.names.add(COMPUTED)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.names.add(node.value[:200])
            if "=" in node.value or " " in node.value:  # code for exec, or of a magic
                self._read(node.value)

    def _add(self, owner: ast.expr, attribute: str) -> None:
        name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        self.names |= {attribute, f"{name}.{attribute}"}
