"""Cells of our own that leave no trace in a kernel: they warm it up, and import what the policy preloads."""

from __future__ import annotations

from orchestrator.errors import KernelStartError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.output.printable import printable

# The first real cell would otherwise pay for the first use of the compiler and of the display machinery. Measured: a
# first cell took 16 ms after one silent cell, 8 ms after these, and later ones take 5 ms; these take 90 ms. The last
# removes what they left in `Out` and `_`, in IPython's own way: it would leave alone a `_` that it finds changed.
_FORGET = """
get_ipython().displayhook.flush()
del _0
get_ipython().push(dict.fromkeys(("_", "__", "___"), ""), interactive=False)
"""
_FIRST_CELLS = [("1", False)] * 3 + [(_FORGET, True)]


def silent_cell(code: str, *, silent: bool = True) -> dict[str, object]:
    """Return the content of a request that runs code outside the history."""
    return {"code": code, "silent": silent, "store_history": False, "allow_stdin": False}


async def run_first_cells(kernel: Kernel) -> None:
    """Warm the kernel up. The caller bounds the wait.

    Raises:
        KernelDiedError: the kernel died.
    """
    for code, silent in _FIRST_CELLS:
        await _run(kernel, code, silent=silent)


async def preload(kernel: Kernel, module: str) -> None:
    """Import a module without leaving its name behind. The caller bounds the wait.

    Raises:
        KernelStartError: the module cannot be imported.
        KernelDiedError: the kernel died.
    """
    reply = await _run(kernel, f"__import__('importlib').import_module({module!r});")
    if reply.content.get("status") != "ok":
        error = printable(f"{reply.content.get('ename')}: {reply.content.get('evalue')}")
        raise KernelStartError(
            f"the policy preloads {module!r}, which this image cannot import: {error}.",
            cause="policy",
            remedy="Remove the module from the policy's `preload`, or add it to the image.",
        )


async def _run(kernel: Kernel, code: str, *, silent: bool = True) -> Message:
    return await kernel.request("shell", "execute_request", silent_cell(code, silent=silent), timeout=None)
