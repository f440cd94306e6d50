"""The rows that `cellblock ps` and `cellblock top` show: every kernel of this host's instances, or of all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rich.markup import escape

from orchestrator.cli.render import plain, shorten
from orchestrator.errors import InvalidInputError
from orchestrator.operator.controlsocket import control_clients_of_host, user_name
from orchestrator.operator.overviewform import is_overview
from orchestrator.settings import Settings

ACT = 15.0  # seconds for an instance to interrupt a cell or to kill a kernel
_BEHIND = ("agent", "runtime", "state", "CPU %", "memory MiB", "tmpfs", "pids", "cells", "running", "age")
_ANSWER = 2.0  # seconds for an instance to answer
_BAR = 8  # characters
_LONGEST_AGENT = 40  # characters
_LONGEST_REFUSAL = 500  # characters
_NEAR = 0.8  # share of a limit from which on usage is shown in red
DONE = {"interrupt": "interrupted", "hibernate": "hibernated", "kill": "killed"}  # what a reply says of an action
_NOT_DONE = {
    "interrupt": "no cell is running",
    "hibernate": "the session is in use, or its state cannot be captured",
    "kill": "the kernel has already ended",
}
_STATES = {"busy": "bold green", "ready": "cyan", "ending": "red"}


class Control(Protocol):
    """Who owns kernels, and can act on them: an instance of this host (``ControlClient``) or a node (``NodeControl``).

    ``str`` names it in messages.
    """

    @property
    def key(self) -> str:
        """A name that no other one has."""

    @property
    def place(self) -> str:
        """What the rows of its kernels say about where they are."""

    async def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send a request, and return the reply; None if none comes in time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel.

    Attributes:
        control: who owns the kernel.
        kernel: the kernel's entry in the instance's overview.
    """

    control: Control
    kernel: dict[str, Any]

    @property
    def kernel_id(self) -> str:
        return str(self.kernel["kernel_id"])

    @property
    def key(self) -> str:
        """A name that no row of another manager has, whatever ids that manager reports."""
        return f"{self.control.key} {self.kernel_id}"

    async def act(self, action: str) -> dict[str, Any] | None:
        """Interrupt, hibernate or kill. Return the reply; None if none comes."""
        return await self.control.ask(
            {"do": action, "kernel": self.kernel_id, "session": self.kernel.get("session")}, ACT
        )

    def is_named(self, name: str) -> bool:
        """Return whether this is the kernel, session or agent of that full id."""
        return name in (self.kernel_id, self.kernel.get("session"), self.kernel.get("agent"))

    def begins_with(self, name: str) -> bool:
        """Return whether the id of its kernel, session or agent begins with ``name``."""
        return any(
            str(each or "").startswith(name) for each in (self.kernel_id, self.kernel.get("session"), self.agent)
        )

    @property
    def agent(self) -> str:
        return str(self.kernel.get("agent") or "")

    def cells(self, *, bars: bool) -> tuple[str, ...]:
        """Return the row as rich markup, one text for each of ``HostView.columns``.

        Args:
            bars: whether shares of a limit are drawn as bars too.
        """
        kernel, usage = self.kernel, self.kernel.get("usage") or {}
        state, cell = str(kernel["state"]), kernel.get("cell")
        return (
            escape(plain(self.kernel_id[:12])),
            escape(plain(self.control.place)),
            escape(shorten(plain(self.agent or "-"), _LONGEST_AGENT)),
            escape(plain(kernel["runtime"])),
            f"[{_STATES.get(state, 'default')}]{escape(state)}[/]",
            _share(usage.get("cpu_percent"), usage.get("cpu_limit_percent"), bars),
            _share(usage.get("memory_mb"), usage.get("memory_limit_mb"), bars),
            "-" if usage.get("tmpfs_mb") is None else f"{usage['tmpfs_mb']:.0f}",
            str(usage.get("pids", "-")),
            str(kernel["cells"]),
            "-" if cell is None else f"#{cell['number']} {span(cell['age_s'])}",
            span(kernel["age_s"]),
        )


@dataclass(frozen=True, slots=True)
class SilentNode:
    """A node that has not said what runs there, and why."""

    node: str
    fault: str

    def cells(self) -> tuple[str, ...]:
        """Return a row of the table, as ``Row.cells``."""
        said = f"[red]{escape(plain(self.fault))}[/]"
        return ("-", escape(plain(self.node)), said, *["-"] * (len(_BEHIND) - 1))


@dataclass(frozen=True, slots=True)
class HostView:
    """Instances and their kernels: of this host, or of all nodes of a cluster.

    Attributes:
        overviews: the overview of each instance, in the form of ``AgentKernelManager.overview``.
        silent: the ids of instances that did not answer.
        of: what the second column names.
        silent_nodes: those that did not answer.
    """

    overviews: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...]
    silent: tuple[str, ...]
    of: Literal["user", "node"] = "user"
    silent_nodes: tuple[SilentNode, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The titles of the table's columns."""
        return ("kernel", self.of, *_BEHIND)

    def pool(self, key: str) -> int:
        """Return the sum of one count over all pools."""
        return sum(overview["pool"][key] for overview in self.overviews)


async def look(settings: Settings) -> HostView:
    """Ask every instance of this host that this user may ask: root sees those of every user.

    With CELLBLOCK_STATE_DIR, this user's instances with other state folders are left out.
    """
    found = control_clients_of_host(settings.state_path, only=bool(settings.state_dir))
    answers = await asyncio.gather(*(client.ask({"do": "overview"}, _ANSWER) for client in found))
    heard = [
        (client, {**answer, "uid": client.uid, "user": user_name(client.uid)})
        for client, answer in zip(found, answers, strict=True)
        if answer and is_overview(answer)
    ]
    silent = {client.instance for client in found} - {client.instance for client, _ in heard}
    rows = [Row(client, kernel) for client, answer in heard for kernel in answer["kernels"]]
    return HostView(tuple(answer for _, answer in heard), tuple(rows), tuple(sorted(silent)))


def find_kernel(host: HostView, name: str) -> Row:
    """Return the one kernel that has this kernel, session or agent id, or the only one whose id begins with it.

    Raises:
        InvalidInputError: there is none, or there are several.
    """
    found = [row for row in host.rows if row.is_named(name)]
    found = found or [row for row in host.rows if name and row.begins_with(name)]
    if not found:
        raise InvalidInputError(
            f"no running kernel, session or agent has the id {name!r}.",
            remedy="`cellblock ps` shows all kernels. A session that sleeps has no kernel.",
        )
    if len(found) > 1:
        listed = ", ".join(
            f"{row.kernel_id[:12]} ({row.agent or 'ready'}, {host.of} {row.control.place})" for row in found[:3]
        )
        raise InvalidInputError(f"{len(found)} kernels match {name!r}: {listed}{', …' if len(found) > 3 else ''}")
    return found[0]


def refusal(action: str, reply: dict[str, Any]) -> str:
    """Return why an instance has not done something to a kernel, from its reply."""
    return plain(str(reply.get("error", _NOT_DONE[action])))[:_LONGEST_REFUSAL]


def summary(host: HostView) -> str:
    """Return one line about all pools."""
    count = host.pool
    instances = "1 instance" if len(host.overviews) == 1 else f"{len(host.overviews)} instances"
    unheard = len(host.silent) + len(host.silent_nodes)
    silent = f" ({unheard} more{' nodes' * bool(host.silent_nodes)}: no answer)" if unheard else ""
    return (
        f"{instances}{silent}, {len(host.rows)} of {count('max')} kernels: {count('leased')} leased, "
        f"{count('ready')} ready, {count('starting')} starting; {count('waiting')} callers waiting"
    )


def ordered(rows: Sequence[Row], by: str) -> list[Row]:
    """Return the rows sorted: by "cpu", "memory" or "age" with the highest first, otherwise by agent."""

    def usage(row: Row, key: str) -> float:
        return float((row.kernel.get("usage") or {}).get(key) or 0)

    keys = {
        "cpu": lambda row: -usage(row, "cpu_percent"),
        "memory": lambda row: -usage(row, "memory_mb"),
        "age": lambda row: -float(row.kernel["age_s"]),
    }
    return sorted(rows, key=keys.get(by, lambda row: (not row.agent, row.agent)))


def span(seconds: float) -> str:
    """Return a duration in short form: 4.2s, 3m05s, 2h07m, 5d."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d"


def _share(used: float | None, limit: float | None, bars: bool) -> str:
    """Return a bar and both numbers, or "-" if either is unknown."""
    if used is None or not limit:
        return "-"
    if not bars:
        return f"{used:.0f}/{limit:g}"
    share = min(1.0, used / limit)
    full = round(share * _BAR)
    colour = "red" if share >= _NEAR else "green"
    return f"[{colour}]{'━' * full}[/][dim]{'━' * (_BAR - full)}[/] {used:.0f}/{limit:g}"
