"""The parts of IPython's shell that every cell needs, and that a cell may replace."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

PARTS = (
    "builtin_trap",
    "compile",
    "compiler_class",
    "display_formatter",
    "display_pub",
    "display_trap",
    "displayhook",
    "events",
    "history_manager",
    "input_transformer_manager",
    "logger",
    "payload_manager",
    "user_ns_hidden",
)


def _itself(value: Any) -> Any:
    return value


def _lists(shell: Any) -> Iterator[tuple[str, Callable[[], Any], list[Any]]]:
    """Yield each list of functions that every cell runs: its name, what returns it now, and what is in it."""
    manager = shell.input_transformer_manager
    for name in ("cleanup_transforms", "line_transforms", "token_transformers"):
        kept = getattr(manager, name)
        yield name, partial(_itself, kept), list(kept)
    for name in ("input_transformers_post", "ast_transformers"):
        yield name, partial(getattr, shell, name), list(getattr(shell, name))


class ShellParts:
    """The shell's parts as they were before the first cell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._parts = {name: getattr(shell, name) for name in PARTS if hasattr(shell, name)}
        self._lists = list(_lists(shell))

    def changed(self) -> list[Any]:
        """Return what is not as it was before the first cell. Keeps it alive, so that it can be compared later."""
        missing = ShellParts
        parts = [now for name, part in self._parts.items() if (now := getattr(self._shell, name, missing)) is not part]
        lists = [now() for _, now, was in self._lists if list(map(id, now())) != list(map(id, was))]
        return parts + [one for each in lists for one in each]

    def restore(self) -> list[str]:
        """Undo all changes. Return the names of what the session had changed."""
        names = []
        for name, part in self._parts.items():
            if getattr(self._shell, name, None) is not part:
                setattr(self._shell, name, part)
                names.append(f"get_ipython().{name}")
        for name, now, was in self._lists:
            if list(map(id, now())) != list(map(id, was)):
                now()[:] = was
                names.append(f"IPython's {name}")
        return names
