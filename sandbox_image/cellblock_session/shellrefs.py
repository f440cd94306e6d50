"""References to the shell and its parts: a checkpoint names what variables hold of them, instead of saving it."""

from __future__ import annotations

import sys
from typing import Any

_HOMES = ("IPython.", "ipykernel.", "traitlets.", "cellblock_kernel.")


class Variables:
    """Stands for the session's variables themselves, as in ``g = globals()``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return find_variables, ()


def parts() -> dict[int, str]:
    """Return the shell (""), and those of its attributes that are parts of IPython or of the kernel, by id."""
    shell = running_shell()
    if shell is None:
        return {}
    found = {
        id(value): name
        for name, value in {**vars(shell), **getattr(shell, "_trait_values", {})}.items()
        if type(value).__module__.startswith(_HOMES) and not isinstance(value, type) and name.isidentifier()
    }
    return found | {id(shell): ""}


def running_shell() -> Any:
    """Return the shell of this kernel; None where there is none."""
    module = sys.modules.get("IPython.core.interactiveshell")
    return None if module is None else module.InteractiveShell._instance


def find_part(name: str) -> Any:
    """Return the shell, or a part of it. A checkpoint calls it when it is loaded.

    Raises:
        AttributeError: the shell has no such part.
    """
    shell = running_shell()
    return getattr(shell, name) if name else shell


def find_variables() -> dict[str, Any]:
    """Return the session's variables. A checkpoint calls it when it is loaded."""
    found: dict[str, Any] = running_shell().user_ns
    return found
