"""`cellblock top`: shows the kernels of this host live, with keys to interrupt a cell and to kill a kernel."""

from __future__ import annotations

from orchestrator.settings import Settings


def top() -> None:
    """Watch every kernel of this host: agent, state, CPU and memory with their limits, and the running cell.

    Keys: up and down select a kernel, i interrupts its cell, k kills it, s changes the order, q quits.

    Example: cellblock top
    """
    from orchestrator.cli.topview import Top  # importing textual takes 0.3 s, which other commands avoid

    Top(Settings.load()).run()
