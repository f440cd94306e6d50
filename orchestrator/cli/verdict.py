"""What people are shown of how a cell ended, beside what it printed itself."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orchestrator.cli.render import plain
from orchestrator.output.events import ExecutionResult, OutputDropped, Truncation
from orchestrator.output.sizes import amount

_LONGEST = 500  # characters of an error's message

# Which of a result's limits was passed, as people set it.
_LIMITS = {"max_output_size_mb": "limits.output_mb", "output.messages": "output.messages"}


def gap(dropped: OutputDropped) -> Text:
    """The line that stands where output was left out."""
    pieces = _pieces(dropped.dropped_bytes, dropped.dropped_messages)
    return Text(f"\n┄┄ {pieces} left out here ┄┄", style="bold yellow")


def needs_telling(result: ExecutionResult) -> bool:
    """Whether there is more to say than the cell has said itself: its code's own error is not."""
    return bool(result.outcome not in ("ok", "error") or result.truncated or result.warnings)


def verdict(result: ExecutionResult) -> RenderableType:
    """How the cell ended, what became of the kernel, and what the host saw, in a frame."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    if result.error is not None and result.outcome != "error":
        rows.add_row("why", plain(f"{result.error.ename}: {result.error.evalue}"[:_LONGEST]))
    rows.add_row("kernel", _kernel(result))
    rows.add_row("used", _used(result))
    evidence = result.evidence
    rows.add_row("output", f"{_pieces(evidence.output_bytes, evidence.output_messages)} were put out")
    if result.truncated is not None:
        rows.add_row("left out", Text(_left_out(result.truncated), style="bold yellow"))
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
    return "gone, with its variables" + ("" if ending is None else f": {ending}")


def _used(result: ExecutionResult) -> str:
    evidence = result.evidence
    if evidence.cpu_s is None or evidence.peak_memory_mb is None:
        return "this host cannot read what containers use"
    killed = f"; {evidence.oom_kills} killed for want of memory" if evidence.oom_kills else ""
    return f"{evidence.cpu_s:.1f} s of CPU, at most {evidence.peak_memory_mb:.0f} MiB of memory{killed}"


def _left_out(truncation: Truncation) -> str:
    pieces = _pieces(truncation.dropped_bytes, truncation.dropped_messages)
    limit = _LIMITS.get(truncation.reason, truncation.reason)
    return f"{pieces}, past {limit}"


def _pieces(size: int, messages: int) -> str:
    return f"{amount(size)} in {messages:,} {'message' if messages == 1 else 'messages'}"
