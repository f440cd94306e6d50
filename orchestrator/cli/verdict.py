"""Renders how a cell ended for a terminal, beside the cell's own output."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orchestrator.cli.render import plain
from orchestrator.output.amounts import amount
from orchestrator.output.events import ExecutionResult, OutputDropped, Truncation

_LONGEST = 500  # characters of an error's message

# The policy key of each limit that a result can name.
_LIMITS = {"max_output_size_mb": "limits.output_mb", "output.messages": "output.messages"}


def gap(dropped: OutputDropped) -> Text:
    """Return the line to print where output was dropped."""
    pieces = _pieces(dropped.dropped_bytes, dropped.dropped_messages)
    return Text(f"\n┄┄ {pieces} dropped here ┄┄", style="bold yellow")


def needs_verdict(result: ExecutionResult) -> bool:
    """Return whether the result says more than the cell's own output and its code's own error."""
    return bool(result.outcome not in ("ok", "error") or result.truncated or result.warnings)


def verdict(result: ExecutionResult) -> RenderableType:
    """Return a panel that says how the cell ended, whether the kernel is alive, and what the host measured."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    if result.error is not None and result.outcome != "error":
        rows.add_row("why", plain(f"{result.error.ename}: {result.error.evalue}"[:_LONGEST]))
    rows.add_row("kernel", _kernel(result))
    rows.add_row("used", _used(result))
    evidence = result.evidence
    rows.add_row("output", _pieces(evidence.output_bytes, evidence.output_messages))
    if result.truncated is not None:
        rows.add_row("dropped", Text(_dropped(result.truncated), style="bold yellow"))
    for warning in result.warnings:
        rows.add_row("warning", Text(warning, style="yellow"))
    colour = "green" if result.outcome == "ok" and not result.warnings and not result.truncated else "yellow"
    title = Text(f"{result.outcome} after {result.duration_s:.1f} s, under {result.runtime}", style="bold")
    colour = colour if result.status == "ok" else "red"
    return Panel(Group(rows), title=title, title_align="left", border_style=colour, expand=False)


def _kernel(result: ExecutionResult) -> str:
    if result.kernel_state == "idle":
        return "alive, with its variables"
    evidence = result.evidence
    ending = evidence.signal or (None if evidence.exit_code is None else f"exit code {evidence.exit_code}")
    return "dead, its variables are lost" + ("" if ending is None else f": {ending}")


def _used(result: ExecutionResult) -> str:
    evidence = result.evidence
    if evidence.cpu_s is None or evidence.peak_memory_mb is None:
        return "unknown: this host cannot read the container's resource use"
    killed = f"; {evidence.oom_kills} killed because memory ran out" if evidence.oom_kills else ""
    return f"{evidence.cpu_s:.1f} s of CPU, at most {evidence.peak_memory_mb:.0f} MiB of memory{killed}"


def _dropped(truncation: Truncation) -> str:
    pieces = _pieces(truncation.dropped_bytes, truncation.dropped_messages)
    limit = _LIMITS.get(truncation.reason, truncation.reason)
    return f"{pieces}, beyond {limit}"


def _pieces(size: int, messages: int) -> str:
    return f"{amount(size)} in {messages:,} {'message' if messages == 1 else 'messages'}"
