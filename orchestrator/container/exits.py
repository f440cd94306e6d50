"""What a container's end means. Pure.

One exit code carries several outcomes: 137 is the kernel's OOM killer, our own kill and anybody else's; under runsc
an OOM also shows as 1 or 128+. So the engine's oom flag and events decide, and the code is only told.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.outcome import KernelEnd, Outcome

_KILLED = 128 + 9  # SIGKILL


@dataclass(frozen=True, slots=True)
class Exit:
    """How a kernel's container ended.

    Attributes:
        reason: "oom" when the engine saw an out-of-memory kill; "timeout", "cancelled" or "output_limit" when the host
            killed it because a cell did not heed its interrupt; "engine_lost" when the engine cannot say; else
            "kernel_died".
        exit_code: of the container's first process; None where the engine could not say.
    """

    reason: KernelEnd
    exit_code: int | None

    @property
    def signal(self) -> str | None:
        """The signal that an exit code stands for."""
        try:
            return signal.Signals((self.exit_code or 0) - 128).name
        except ValueError:
            return None

    def describe(self) -> str:
        if self.reason is Outcome.OOM:
            return f"went past its memory limit and was ended (exit code {self.exit_code})"
        return f"ended (exit code {self.exit_code})"


def classify(state: Mapping[str, Any], oom_events: int, runtime: str) -> Exit:
    """Classify the ``State`` of an inspected, exited container.

    Under runc only the exit code of a killed process is an OOM: the flag also tells of a child that was killed, maybe
    long before the kernel ended for another reason.

    Args:
        oom_events: how many ``oom`` events the engine recorded for it.
    """
    code = state.get("ExitCode")
    oom = (bool(state.get("OOMKilled")) or oom_events > 0) and (runtime != "runc" or code == _KILLED)
    return Exit(Outcome.OOM if oom else Outcome.KERNEL_DIED, code if isinstance(code, int) else None)
