"""Runs inside the kernel of a sandbox, never on the host: a separate namespace for each of E2B's contexts.

A cell runs the source of this module in a module of its own: the session's variables have none of it, so no checkpoint
has. It may run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from typing import Any

from IPython import get_ipython

_OWN = ("In", "Out", "_ih", "_oh", "_dh", "get_ipython", "exit", "quit", "open")  # IPython's own names


def install(shell: Any) -> None:
    """Give the shell the magics ``%%e2b_context`` and ``%e2b_forget``."""
    contexts: dict[str, types.ModuleType] = getattr(shell, "e2b_contexts", None) or {}
    folders: dict[str, str] = getattr(shell, "e2b_folders", None) or {}
    shell.e2b_contexts, shell.e2b_folders = contexts, folders

    def run(line: str, code: str) -> None:
        """Run code in the namespace and the folder of a context: ``ID`` or ``ID FOLDER``."""
        name, _, folder = line.strip().partition(" ")
        if name not in contexts:
            contexts[name] = types.ModuleType("__main__")
            contexts[name].__dict__.update({own: shell.user_ns[own] for own in _OWN if own in shell.user_ns})
            folders[name] = json.loads(folder) if folder else os.getcwd()
            os.makedirs(folders[name], exist_ok=True)
        ours = shell.user_module, shell.user_ns, os.getcwd(), sys.modules["__main__"]
        shell.user_module, shell.user_ns = contexts[name], contexts[name].__dict__
        sys.modules["__main__"] = contexts[name]
        try:
            with contextlib.suppress(OSError):
                os.chdir(folders[name])
            # Without history the inner cell leaves the outer one's number alone.
            shell.run_cell(code, store_history=False)
        finally:
            with contextlib.suppress(OSError):
                folders[name] = os.getcwd()
                os.chdir(ours[2])
            shell.user_module, shell.user_ns = ours[0], ours[1]
            sys.modules["__main__"] = ours[3]

    def forget(line: str) -> None:
        """Remove the namespace of a context."""
        contexts.pop(line.strip(), None)
        folders.pop(line.strip(), None)

    shell.register_magic_function(run, "cell", "e2b_context")
    shell.register_magic_function(forget, "line", "e2b_forget")


if (_shell := get_ipython()) is not None:
    install(_shell)
