"""What a claim is: one promise about a sandbox, and the probe that can refute it.

The claims themselves stand in ``confinement`` (what a cell finds inside), ``record`` (what the engine made), ``bombs``
and ``wire`` (what an attack does to everybody else). Tests and ``cellblock verify`` run the same ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.isolation.subject import Subject


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe found.

    Attributes:
        holds: whether the promise was kept.
        evidence: one line of what was seen. May quote a sandbox: hostile text, escape it.
    """

    holds: bool
    evidence: str


Probe = Callable[["Subject"], Awaitable[Verdict]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One promise.

    Attributes:
        name: as a test would be called, without its ``test_``.
        row: of ``docs/threat-model.md``.
        promise: one sentence.
        probe: tries to refute it on one live kernel.
        attacks: the probe needs a kernel of its own, since it may not survive.
    """

    name: str
    row: str
    promise: str
    probe: Probe
    attacks: bool = False


def verdict(faults: list[str], holds: str) -> Verdict:
    """Return a verdict that holds when there are no faults; else it names them."""
    return Verdict(not faults, "; ".join(faults) if faults else holds)
