"""The rows that `cellblock ps` and `cellblock top` show: every kernel of every running instance of this host."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from orchestrator.cli.render import plain
from orchestrator.operator.controlsocket import ControlClient, control_clients
from orchestrator.settings import Settings

COLUMNS = ("kernel", "agent", "runtime", "state", "CPU %", "memory MiB", "tmpfs", "pids", "cells", "running", "age")
_ANSWER = 2.0  # seconds for an instance to answer
_BAR = 8  # characters
_NEAR = 0.8  # share of a limit from which on usage is shown in red
_STATES = {"busy": "bold green", "ready": "cyan", "ending": "red"}


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel.

    Attributes:
        control: reaches the instance that owns the kernel.
        kernel: the kernel's entry in the instance's overview.
    """

    control: ControlClient
    kernel: dict[str, Any]

    @property
    def kernel_id(self) -> str:
        return str(self.kernel["kernel_id"])

    def cells(self) -> tuple[str, ...]:
        """Return the row as rich markup, one text for each of ``COLUMNS``."""
        kernel, usage = self.kernel, self.kernel["usage"] or {}
        state, cell = str(kernel["state"]), kernel["cell"]
        return (
            escape(plain(self.kernel_id[:12])),
            escape(plain(kernel["agent"] or "-")[:40]),
            escape(plain(kernel["runtime"])),
            f"[{_STATES.get(state, 'default')}]{escape(state)}[/]",
            _share(usage.get("cpu_percent"), usage.get("cpu_limit_percent")),
            _share(usage.get("memory_mb"), usage.get("memory_limit_mb")),
            "-" if usage.get("tmpfs_mb") is None else f"{usage['tmpfs_mb']:.0f}",
            str(usage.get("pids", "-")),
            str(kernel["cells"]),
            "-" if cell is None else f"#{cell['number']} {span(cell['age_s'])}",
            span(kernel["age_s"]),
        )


@dataclass(frozen=True, slots=True)
class HostView:
    """The instances of this host and their kernels.

    Attributes:
        overviews: the overview of each instance, in the form of ``AgentKernelManager.overview``.
        silent: the ids of instances that did not answer.
    """

    overviews: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...]
    silent: tuple[str, ...]

    def pool(self, key: str) -> int:
        """Return the sum of one count over all pools."""
        return sum(overview["pool"][key] for overview in self.overviews)


async def look(settings: Settings) -> HostView:
    """Ask every instance of this host that this user has access to."""
    found = control_clients(settings.state_path)
    answers = await asyncio.gather(*(client.ask({"do": "overview"}, _ANSWER) for client in found))
    heard = [(client, answer) for client, answer in zip(found, answers, strict=True) if answer and "kernels" in answer]
    silent = [client.instance for client, answer in zip(found, answers, strict=True) if not answer]
    rows = [Row(client, kernel) for client, answer in heard for kernel in answer["kernels"]]
    return HostView(tuple(answer for _, answer in heard), tuple(rows), tuple(silent))


def summary(host: HostView) -> str:
    """Return one line about all pools."""
    count = host.pool
    instances = "1 instance" if len(host.overviews) == 1 else f"{len(host.overviews)} instances"
    silent = f" ({len(host.silent)} more: no answer)" if host.silent else ""
    return (
        f"{instances}{silent}, {len(host.rows)} of {count('max')} kernels: {count('leased')} leased, "
        f"{count('ready')} ready, {count('starting')} starting; {count('waiting')} callers waiting"
    )


def ordered(rows: Sequence[Row], by: str) -> list[Row]:
    """Return the rows sorted: by "cpu", "memory" or "age" with the highest first, otherwise by agent."""

    def usage(row: Row, key: str) -> float:
        return float((row.kernel["usage"] or {}).get(key) or 0)

    keys = {
        "cpu": lambda row: -usage(row, "cpu_percent"),
        "memory": lambda row: -usage(row, "memory_mb"),
        "age": lambda row: -float(row.kernel["age_s"]),
    }
    return sorted(rows, key=keys.get(by, lambda row: (row.kernel["agent"] is None, str(row.kernel["agent"]))))


def span(seconds: float) -> str:
    """Return a duration in short form: 4.2s, 3m05s, 2h07m, 5d."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d"


def _share(used: float | None, limit: float | None) -> str:
    """Return a bar and both numbers, or "-" if either is unknown."""
    if used is None or not limit:
        return "-"
    share = min(1.0, used / limit)
    full = round(share * _BAR)
    colour = "red" if share >= _NEAR else "green"
    return f"[{colour}]{'━' * full}[/][dim]{'━' * (_BAR - full)}[/] {used:.0f}/{limit:g}"
