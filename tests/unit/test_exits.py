"""What a container's end means, by the engine's evidence."""

from __future__ import annotations

import pytest

from orchestrator.container.exits import classify


@pytest.mark.parametrize(
    ("code", "flag", "events", "under", "reason"),
    [
        (137, True, 0, "runc", "oom"),
        (137, False, 1, "runc", "oom"),
        (137, False, 0, "runc", "kernel_died"),  # killed, and not for its memory
        (3, True, 1, "runc", "kernel_died"),  # a child was killed for its memory, the kernel ended by itself
        (1, False, 1, "runsc", "oom"),
        (128, True, 0, "runsc", "oom"),
        (0, False, 0, "runsc", "kernel_died"),
    ],
)
def test_an_exit_is_classified_by_its_evidence(code: int, flag: bool, events: int, under: str, reason: str) -> None:
    """The OOM flag and events decide, and under runc the exit code must be that of a killed process too."""
    found = classify({"ExitCode": code, "OOMKilled": flag}, events, under)
    assert (found.reason, found.exit_code) == (reason, code)
