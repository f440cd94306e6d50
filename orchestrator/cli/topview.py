"""The terminal application behind `cellblock top`."""

from __future__ import annotations

from typing import ClassVar

import psutil
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, Static

from orchestrator.cli.kernelrows import ACT, COLUMNS, HostView, Row, look, ordered, refusal, summary
from orchestrator.cli.render import plain
from orchestrator.limits import MIB
from orchestrator.settings import Settings

_INTERVAL = 1.0  # seconds between two updates
_ORDERS = ("agent", "cpu", "memory", "age")


class Confirm(ModalScreen[bool]):
    """Asks for confirmation before a kernel is killed."""

    CSS = "Confirm { align: center middle; } Vertical { width: 64; height: 5; border: heavy red; padding: 0 2; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape", "answer(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(Text(self._question))
            yield Label("Its variables will be lost. y: kill it, n: keep it")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Top(App[None]):
    """Shows the kernels of all instances, updated every second."""

    CSS = "#summary { height: 2; padding: 0 1; } DataTable { height: 1fr; }"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "interrupt", "interrupt the cell"),
        Binding("k", "kill", "kill the kernel"),
        Binding("s", "sort", "order"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._order = 0
        self._rows: dict[str, Row] = {}

    def compose(self) -> ComposeResult:
        yield Static(id="summary")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Footer()

    async def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for name in COLUMNS:
            table.add_column(name, key=name)
        await self._refresh()
        self.set_interval(_INTERVAL, self._refresh)

    async def _refresh(self) -> None:
        host = await look(self._settings)
        self.query_one("#summary", Static).update(self._summary(host))
        table = self.query_one(DataTable)
        chosen = self._chosen()
        rows = ordered(host.rows, _ORDERS[self._order])
        self._rows = {row.key: row for row in rows}
        if [key.value for key in table.rows] == list(self._rows):
            for row in rows:
                for name, cell in zip(COLUMNS, row.cells(bars=True), strict=True):
                    table.update_cell(row.key, name, Text.from_markup(cell), update_width=True)
            return
        table.clear()
        for row in rows:
            table.add_row(*map(Text.from_markup, row.cells(bars=True)), key=row.key)
        if chosen is not None and chosen.key in self._rows:
            table.move_cursor(row=list(self._rows).index(chosen.key))

    def _summary(self, host: HostView) -> Text:
        memory = psutil.virtual_memory()
        used, total = (memory.total - memory.available) / MIB / 1024, memory.total / MIB / 1024
        machine = (
            f"host: CPU {psutil.cpu_percent():.0f} % of {psutil.cpu_count()} cores, memory {used:.1f}/{total:.1f} GiB"
        )
        return Text(f"{summary(host)}\n{machine}; order: {_ORDERS[self._order]}")

    def _chosen(self) -> Row | None:
        table = self.query_one(DataTable)
        keys = list(self._rows)
        return self._rows[keys[table.cursor_row]] if 0 <= table.cursor_row < len(keys) else None

    async def action_sort(self) -> None:
        self._order = (self._order + 1) % len(_ORDERS)
        await self._refresh()

    async def action_interrupt(self) -> None:
        await self._act("interrupt", self._chosen())

    def action_kill(self) -> None:
        row = self._chosen()
        if row is None:
            return

        async def answered(kill: bool | None) -> None:
            if kill:
                await self._act("kill", row)

        self.push_screen(
            Confirm(f"Kill kernel {plain(row.kernel_id[:12])} of agent {plain(row.agent) or '-'}?"), answered
        )

    async def _act(self, action: str, row: Row | None) -> None:
        if row is None:
            return
        reply = await row.control.ask({"do": action, "kernel": row.kernel_id}, ACT)
        done = reply is not None and any(reply.get(result) for result in ("interrupted", "killed"))
        said = f"{action}: done" if done else "the instance does not answer"
        if reply is not None and not done:
            said = refusal(action, reply)
        self.notify(said, severity="information" if done else "warning", markup=False)
        await self._refresh()
