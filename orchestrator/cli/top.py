"""`cellblock top`: the kernels of this host, live, with keys to interrupt and to kill."""

from __future__ import annotations

from orchestrator.settings import Settings


def top() -> None:
    """Watch every kernel of this host: agents, states, CPU and memory beside their limits, what runs and for how long.

    Keys: up and down choose a kernel, i interrupts its cell, k kills it, s changes the order, q ends.

    Example: cellblock top
    """
    from orchestrator.cli.topview import Top  # textual takes 0.3 s to import, which no other command should wait for

    Top(Settings.load()).run()
