"""The claims and the negative controls are consistent; tests/isolation runs them on real kernels."""

from __future__ import annotations

from orchestrator.isolation.controls import CONTROLS
from orchestrator.isolation.verification import CLAIMS

# The defences that are easiest to forget when a container is started by hand. Each has its own control.
NAMED = {"privileged", "seccomp-unconfined", "writable-mount", "host-network", "bridge-network", "root",
         "no-memory-limit", "unsized-tmpfs", "docker-socket"}  # fmt: skip


def test_the_named_controls_exist() -> None:
    """Each defence that is easy to forget has a control."""
    assert {control.name for control in CONTROLS} >= NAMED


def test_names_are_unique() -> None:
    """No two claims, and no two controls, have the same name."""
    for items in (CLAIMS, CONTROLS):
        names = [item.name for item in items]
        assert len(names) == len(set(names))


def test_controls_name_claims_that_exist() -> None:
    """Each claim that a control should turn red exists."""
    known = {claim.name for claim in CLAIMS}
    named = {name for control in CONTROLS for reds in control.reds.values() for name in reds}
    assert named <= known
