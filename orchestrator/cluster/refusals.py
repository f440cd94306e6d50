"""What nodes say when they do not take a session, and the error when none does. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from orchestrator.errors import (
    CellblockError,
    EngineError,
    IncompatibleServerError,
    KernelPoolExhaustedError,
    KernelStartError,
    NodeLostError,
    NodeRefusal,
    NoNodeError,
    PolicyError,
    ServerUnavailableError,
    TooManyRequestsError,
    UntrustedServerError,
)
from orchestrator.store.noderecord import NodeRecord

UNREACHED: Final = (ServerUnavailableError, NodeLostError, UntrustedServerError, IncompatibleServerError)
"""A node that cannot be spoken to. Another one may be."""
REFUSED: Final = (KernelPoolExhaustedError, KernelStartError, EngineError, PolicyError, TooManyRequestsError)
"""A node that gives a session no kernel, and has done nothing. Another one may give it one."""


def all_refused(
    refusals: Mapping[str, CellblockError], nodes: Sequence[NodeRecord], waited: float = 0.0
) -> CellblockError:
    """Return the error of a session that no node has taken.

    Args:
        refusals: by node, in the order in which the nodes were asked.
        nodes: all of the cluster.
        waited: seconds.

    Returns:
        The only refusal itself, also where each node that was asked cannot be used for one and the same reason.
    """
    kinds = {type(error) for error in refusals.values()}
    if len(refusals) == 1 or kinds in ({UntrustedServerError}, {IncompatibleServerError}, {PolicyError}):
        return next(iter(refusals.values()))
    scarce = [error for error in refusals.values() if isinstance(error, KernelPoolExhaustedError)]
    best = min(scarce, key=_expected, default=None)
    said = "; ".join(f"{node_id}: {error.message}" for node_id, error in refusals.items())
    states = Counter(node.condition for node in nodes)
    counted = ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none"
    return NoNodeError(
        f"no node of the cluster took the session (nodes: {counted}). {said}".rstrip()[:4000],
        max_kernels=sum(node.capacity.kernels for node in nodes),
        waited=waited,
        reason="max_kernels" if best is None else best.reason,
        expected_wait=None if best is None else best.expected_wait,
        needed_bytes=None if best is None else best.needed_bytes,
        free_bytes=None if best is None else best.free_bytes,
        refusals=tuple(NodeRefusal(node_id, error.code, str(error)) for node_id, error in refusals.items()),
        remedy="Try again later, or add a node.",
    )


def soonest(refusals: Mapping[str, CellblockError]) -> str | None:
    """Return the node that expects to have a kernel first; None if no node only lacks one."""
    scarce = {node_id: error for node_id, error in refusals.items() if isinstance(error, KernelPoolExhaustedError)}
    return min(scarce, key=lambda node_id: _expected(scarce[node_id]), default=None)


def _expected(error: KernelPoolExhaustedError) -> float:
    return math.inf if error.expected_wait is None else error.expected_wait
