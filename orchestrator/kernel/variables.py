"""Asks a live kernel for the variables of its session, over its control channel, also while a cell runs."""

from __future__ import annotations

from orchestrator.kernel.boundedjson import MalformedError, load
from orchestrator.kernel.kernel import Kernel
from orchestrator.output.variableinfo import VariableInfo, parse_variables

_PATIENCE = 30.0  # seconds
_LARGEST = 1024 * 1024  # bytes of the list


async def list_variables(kernel: Kernel) -> tuple[VariableInfo, ...]:
    """Return the variables, in the order of their names.

    Raises:
        TimeoutError: the kernel does not answer within 30 s.
        KernelDiedError: the kernel died.
    """
    reply = await kernel.request("control", "variables_request", {}, timeout=_PATIENCE)
    data = bytes(reply.buffers[0]) if reply.buffers else b""
    try:
        return parse_variables(load(data)) if len(data) <= _LARGEST else ()
    except MalformedError:
        return ()
