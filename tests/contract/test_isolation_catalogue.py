"""The claims and the controls fit together; what they say of real kernels is tested in tests/isolation."""

from __future__ import annotations

from orchestrator.isolation.controls import CONTROLS
from orchestrator.isolation.verification import CLAIMS

# The locks that whoever starts a container by hand forgets most easily: each has a control of its own.
NAMED = {"privileged", "seccomp-unconfined", "writable-mount", "host-network", "bridge-network", "root",
         "no-memory-limit", "unsized-tmpfs", "docker-socket"}  # fmt: skip


def test_the_named_controls_are_there() -> None:
    assert {control.name for control in CONTROLS} >= NAMED


def test_names_are_unique() -> None:
    for items in (CLAIMS, CONTROLS):
        names = [item.name for item in items]
        assert len(names) == len(set(names))


def test_controls_name_claims_that_exist() -> None:
    known = {claim.name for claim in CLAIMS}
    named = {name for control in CONTROLS for reds in control.reds.values() for name in reds}
    assert named <= known
