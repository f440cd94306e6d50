"""Defines a claim: one promise about a sandbox, and the probe that can refute it.

The claims are in ``confinement`` (what a cell finds inside), ``record`` (how the engine configured the container),
``bombs`` (what a cell does with the resources that it gets) and ``wire_claims`` (what a kernel sends). The tests and
``cellblock verify`` run the same claims.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.isolation.subject import Subject


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a probe.

    Attributes:
        holds: whether the promise was kept.
        evidence: one line that says what the probe saw. It may quote a sandbox: treat it as hostile text and escape it.
    """

    holds: bool
    evidence: str


Probe = Callable[["Subject"], Awaitable[Verdict]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One promise about a sandbox.

    Attributes:
        name: the identifier, written like a test's name without ``test_``.
        row: the row of ``docs/threat-model.md`` that the promise belongs to.
        promise: the promise in one sentence.
        probe: tries to refute the promise on one live kernel.
        attacks: whether the probe needs a kernel of its own, because the kernel may not survive it.
    """

    name: str
    row: str
    promise: str
    probe: Probe
    attacks: bool = False


def verdict(faults: list[str], holds: str) -> Verdict:
    """Return a verdict that holds if ``faults`` is empty; otherwise its evidence lists the faults."""
    return Verdict(not faults, "; ".join(faults) if faults else holds)
