"""Shows the progress of the agents: one live row per agent on a terminal, otherwise one line per step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from spreadsheet.agents import Agent
from spreadsheet.terminal import plain


@dataclass
class Row:
    """The progress of one agent."""

    steps: int
    step: int = 0
    title: str = "waiting for a kernel"
    said: str = ""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    failed: bool = False

    def elapsed(self) -> float:
        return (self.ended or time.monotonic()) - self.started


class Progress:
    """Shows the progress of each agent until its ``with`` block ends."""

    def __init__(self, console: Console, agents: Sequence[Agent]) -> None:
        self._console = console
        self._rows = {agent.name: Row(len(agent.cells())) for agent in agents}
        self._spinner = Spinner("dots")
        self._live = Live(self, console=console, refresh_per_second=8) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def begin(self, agent: Agent, title: str) -> None:
        """Show the start of a step that is not a cell."""
        row = self._rows[agent.name]
        row.title, row.said = title, ""
        self._print_step(agent, row)

    def step(self, agent: Agent, title: str) -> None:
        """Show the start of the agent's next cell."""
        self._rows[agent.name].step += 1
        self.begin(agent, title)

    def say(self, agent: Agent, text: str) -> None:
        """Show the last line of what the agent's cell printed."""
        lines = text.strip().splitlines()
        if lines:
            self._rows[agent.name].said = lines[-1]

    def end(self, agent: Agent, *, failed: bool) -> None:
        """Show that the agent has finished or failed."""
        row = self._rows[agent.name]
        row.ended, row.failed, row.said = time.monotonic(), failed, ""
        row.title = f"failed at: {row.title}" if failed else "done"
        self._print_step(agent, row)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, row in self._rows.items():
            table.add_row(
                self._sign(row),
                Text(name, style="bold"),
                f"{row.step}/{row.steps}",
                plain(row.title, longest=40),
                Text(f"{row.elapsed():5.1f} s"),
                plain(row.said, style="dim", longest=60),
            )
        return table

    def _sign(self, row: Row) -> Text | Spinner:
        if row.ended is None:
            return self._spinner
        return Text("✗", style="red") if row.failed else Text("✓", style="green")

    def _print_step(self, agent: Agent, row: Row) -> None:
        if self._live is None:
            line = f"{row.elapsed():6.1f} s  {agent.name:<14} {row.step}/{row.steps}  "
            self._console.print(Text(line).append_text(plain(row.title)))
