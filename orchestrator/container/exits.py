"""Classifies how a container ended, from what the engine reports. Pure.

One exit code stands for several endings: 137 is the kernel's OOM killer, Cellblock's own kill, and any other SIGKILL;
under runsc an OOM also shows as 1 or 128 and above. So the engine's OOM flag and events decide, and the exit code is
only reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.outcome import Exit, Outcome

__all__ = ["Exit", "classify"]

_KILLED = 128 + 9  # SIGKILL


def classify(state: Mapping[str, Any], oom_events: int, runtime: str) -> Exit:
    """Return how an exited container ended.

    Under runc only the exit code of a killed process is an OOM: the engine also sets the flag when it saw a child
    process killed, maybe long before the kernel ended for another reason.

    Args:
        state: the ``State`` of the inspected container.
        oom_events: how many ``oom`` events the engine recorded for it.
        runtime: the container runtime, such as "runc".
    """
    code = state.get("ExitCode")
    oom = (bool(state.get("OOMKilled")) or oom_events > 0) and (runtime != "runc" or code == _KILLED)
    return Exit(Outcome.OOM if oom else Outcome.KERNEL_DIED, code if isinstance(code, int) else None)
