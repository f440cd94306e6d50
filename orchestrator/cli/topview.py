"""The terminal application behind `cellblock top`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

import psutil
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, Static

from orchestrator.cli.kernelrows import DONE, HostView, Row, ordered, refusal, summary
from orchestrator.cli.render import plain
from orchestrator.errors import CellblockError
from orchestrator.limits import MIB

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
    """Shows kernels, updated every second.

    Args:
        look: returns what runs now.
    """

    CSS = "#summary { height: 2; padding: 0 1; } DataTable { height: 1fr; }"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "interrupt", "interrupt the cell"),
        Binding("h", "hibernate", "hibernate the session"),
        Binding("k", "kill", "kill the kernel"),
        Binding("s", "sort", "order"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, look: Callable[[], Awaitable[HostView]]) -> None:
        super().__init__()
        self._look = look
        self._order = 0
        self._rows: dict[str, Row] = {}

    def compose(self) -> ComposeResult:
        yield Static(id="summary")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Footer()

    async def on_mount(self) -> None:
        await self._refresh()
        self.set_interval(_INTERVAL, self._refresh)

    async def _refresh(self) -> None:
        try:
            host = await self._look()
        except CellblockError as error:  # the last table stays
            self.query_one("#summary", Static).update(Text(plain(str(error))))
            return
        self.query_one("#summary", Static).update(self._summary(host))
        table = self.query_one(DataTable)
        for name in () if table.columns else host.columns:
            table.add_column(name, key=name)
        chosen = self._chosen()
        rows = ordered(host.rows, _ORDERS[self._order])
        self._rows = {row.key: row for row in rows}
        shown = {row.key: row.cells(bars=True) for row in rows} | {
            node.node: node.cells() for node in host.silent_nodes
        }
        if [key.value for key in table.rows] == list(shown):
            for key, cells in shown.items():
                for name, cell in zip(host.columns, cells, strict=True):
                    table.update_cell(key, name, Text.from_markup(cell), update_width=True)
            return
        table.clear()
        for key, cells in shown.items():
            table.add_row(*map(Text.from_markup, cells), key=key)
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

    async def action_hibernate(self) -> None:
        await self._act("hibernate", self._chosen())

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
        reply = await row.act(action)
        done = reply is not None and reply.get(DONE[action]) is True
        said = f"{action}: done" if done else f"{row.control} does not answer"
        if reply is not None and not done:
            said = refusal(action, reply)
        self.notify(said, severity="information" if done else "warning", markup=False)
        await self._refresh()
