"""`cellblock policy`: what policies there are, whether one is sound, and what each setting does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from orchestrator.cli.render import console, plain
from orchestrator.container.hostconfig import KERNEL_MOUNT, ContainerSpec, create_request
from orchestrator.policy.policy import Policy, keys, policy_path, shipped
from orchestrator.settings import Settings

app = typer.Typer(
    help="List, check and explain policies.\n\nExample: cellblock policy explain strict", no_args_is_help=True
)
_LONGEST = 100  # characters of a value in a table

Named = Annotated[str, typer.Argument(metavar="NAME", help="A policy's name, or the path of a TOML file.")]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one setting does.

    Attributes:
        becomes: dotted paths into the request for the container; none for what the orchestrator itself keeps to.
        row: of docs/threat-model.md.
        stops: what it is against.
    """

    becomes: tuple[str, ...]
    row: str
    stops: str


MEANINGS = {
    "runtime": Meaning(("HostConfig.Runtime",), "H5", "bugs of the host's kernel in reach: runsc is in between"),
    "seccomp": Meaning(("HostConfig.SecurityOpt.1",), "H5", "calls that data work never needs and escapes are made of"),
    "preload": Meaning((), "H4", "a first cell that waits for its imports: every kernel pays for them, in memory too"),
    "limits.cpu_percent": Meaning(("HostConfig.CpuQuota", "HostConfig.CpuPeriod"), "H3", "a busy loop"),
    "limits.memory_mb": Meaning(("HostConfig.Memory", "HostConfig.MemorySwap"), "H4", "a memory bomb; no swap on top"),
    "limits.pids": Meaning(("HostConfig.PidsLimit", "HostConfig.Ulimits.nproc"), "H3", "fork and thread bombs"),
    "limits.open_files": Meaning(("HostConfig.Ulimits.nofile",), "H3", "a descriptor bomb"),
    "limits.execution_time_s": Meaning((), "O2", "a cell that never ends: interrupted, then its kernel is killed"),
    "limits.output_mb": Meaning((), "O1", "endless output: dropped and said; it also bounds one message"),
    "limits.idle_timeout_s": Meaning((), "H3", "kernels that nobody uses, and nobody ended"),
    "limits.warn_percent": Meaning((), "H4", "surprise: past it a result warns of memory and time that run out"),
    "tmpfs.work_mb": Meaning(("HostConfig.Tmpfs./work",), "H2", "filling the disk: files are in memory, and sized"),
    "tmpfs.tmp_mb": Meaning(("HostConfig.Tmpfs./tmp",), "H2", "filling the disk"),
    "tmpfs.shm_mb": Meaning(("HostConfig.ShmSize",), "H2", "filling the memory that processes share"),
    "output.mime_types": Meaning((), "O4", "HTML and the like, which runs where it is shown"),
    "output.messages": Meaning((), "O1", "millions of tiny outputs"),
    "output.displays": Meaning((), "O1", "pictures without end"),
    "output.past_limit": Meaning((), "O1", "a cell that goes on putting out what nobody sees: stop interrupts it"),
    "channels.stdin": Meaning((), "O6", "a cell that hangs its caller, or asks its user for a password"),
    "channels.comms": Meaning((), "O6", "messages that nobody expects"),
    "audit.code": Meaning((), "O2", "doubt about what was run: its digest is kept, or all of it"),
    "audit.fsync": Meaning((), "H2", "entries lost with the machine's power"),
    "sessions.hibernate": Meaning((), "H4", "kernels held by agents that do nothing"),
    "sessions.incomplete": Meaning((), "H4", "kernels held for ever by state that no checkpoint can hold"),
    "sessions.checkpoint_every": Meaning((), "H4", "work lost with a kernel that dies"),
    "sessions.checkpoint_mb": Meaning((), "H2", "a full disk: the largest file of one checkpoint"),
    "sessions.checkpoint_time_s": Meaning((), "O6", "a kernel that never ends capturing or loading its state"),
    "pool.warm": Meaning((), "H3", "the wait for a start: as many are ready before they are asked for"),
    "pool.max_age_s": Meaning((), "H3", "kernels that wait for days: older ones are replaced"),
    "pool.check_every_s": Meaning((), "H3", "an agent that is handed a kernel which does not answer"),
    "pool.exhausted": Meaning((), "H3", "callers that wait for others' kernels: fail refuses them at once"),
    "pool.queue": Meaning((), "H4", "callers without end: more than so many are refused"),
    "scheduling.aging_s": Meaning((), "H3", "low priority for ever: so much waiting is worth one step of it"),
    "scheduling.group_quota": Meaning((), "H3", "one group of agents that takes every kernel"),
    "scheduling.memory_reserve_mb": Meaning((), "H4", "a host without memory for its own processes"),
    "scheduling.memory_overcommit": Meaning((), "H4", "memory promised to more kernels than the host has it for"),
    "scheduling.cpu_overcommit": Meaning((), "H3", "more kernels than cores can serve"),
    "groups": Meaning((), "H3", "one group of agents at another's cost: weight and quota of each"),
    "environment": Meaning(("Env",), "X2", "names of the host: what stands here is all that a kernel is told"),
    "data": Meaning(("HostConfig.Mounts",), "O5", "changed data: read-only, never followed out of its folder"),
}  # fmt: skip


@app.command(name="list")
def list_policies() -> None:
    """List the policies that come with cellblock; * marks the one that new kernels get.

    Example: cellblock policy list
    """
    chosen = Settings.load().policy
    table = Table("policy", "runtime", "CPU", "memory", "a cell", "what for")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for name, path in shipped().items():
        policy = Policy.load(name)
        limits = policy.limits
        summary = path.read_text().partition("\n")[0].lstrip("# ").partition(": ")[2].partition(".")[0]
        table.add_row(
            f"{name} *" if name == chosen else name,
            policy.runtime,
            f"{limits.cpu_percent:g} %",
            f"{limits.memory_mb} MiB",
            f"{limits.execution_time_s:g} s",
            summary,
        )
    console.print(table)
    if chosen not in shipped():
        console.print(f"New kernels get {escape(plain(chosen))} (CELLBLOCK_POLICY).")


@app.command()
def show(name: Named) -> None:
    """Print a policy as it stands in its file, to read or to start your own from.

    Example: cellblock policy show strict > mine.toml
    """
    Policy.load(name)
    typer.echo(policy_path(name).read_text(encoding="utf-8-sig"), nl=False)


@app.command()
def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="The TOML file.")]) -> None:
    """Check a policy of your own: every fault, with its line. Exit status: 0 when it is sound, 1 when it is not.

    Example: cellblock policy check mine.toml
    """
    policy = Policy.load(str(file if "/" in str(file) else Path.cwd() / file))
    console.print(f"[green]sound:[/] {escape(plain(str(file)))}: {len(_settings(policy))} settings.")


@app.command()
def explain(name: Named) -> None:
    """Show each setting of a policy: what it becomes in Docker, and which attack it stops.

    Example: cellblock policy explain data-science
    """
    policy = Policy.load(name)
    request = _specimen(policy)
    columns = (Column(name, overflow="fold") for name in ("setting", "in Docker", "row", "stops"))
    table = Table(*columns, title=f"under {request['HostConfig']['Runtime']}", title_justify="left")
    for key, value in _settings(policy).items():
        meaning = MEANINGS[key.split(".")[0] if key.startswith(("environment.", "data.", "groups.")) else key]
        setting = f"{escape(key)}\n[bold]{_text(value)}[/]"
        table.add_row(setting, _in_docker(request, key, meaning), meaning.row, meaning.stops)
    console.print(table)
    console.print(
        "Rows are those of docs/threat-model.md. Whatever a policy says, no container is privileged or root, has a "
        "capability, a network, a namespace of the host, a writable mount or a tmpfs without a size."
    )


def _settings(policy: Policy) -> dict[str, Any]:
    """Every setting and its value; a table that has lines, by its lines."""
    found: dict[str, Any] = {}
    for key, _default in keys():
        value: Any = policy
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, dict) and value:
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return found


def _specimen(policy: Policy) -> dict[str, Any]:
    """The request for a container of this policy, as the engine would get it."""
    runtime = "runsc" if policy.choose_runtime("") in ("auto", "runsc") else "runc"
    spec = ContainerSpec(
        "cellblock-…", "…", runtime, Path("/…/wire"), Settings.load().uid_base, "…", "…", ("…", "…"), "…"
    )
    return create_request(spec, policy, policy.resource_limits())


def _in_docker(request: dict[str, Any], key: str, meaning: Meaning) -> str:
    name = key.partition(".")[2]
    if key.startswith("environment."):
        return f"Env {escape(name)}"
    if key.startswith("data."):
        mount = next(mount for mount in request["HostConfig"]["Mounts"] if mount["Target"] == f"/data/{name}")
        return escape(f"Mount {mount['Target']}, {'read-only' if mount['ReadOnly'] else 'WRITABLE'}")
    if key in ("environment", "data"):
        return "[dim]nothing[/]" if key == "environment" else f"[dim]{KERNEL_MOUNT} alone[/]"
    if key == "seccomp":
        return f"SecurityOpt seccomp=… ({len(request['HostConfig']['SecurityOpt'][1])} bytes)"
    if not meaning.becomes:
        return "[dim]kept by the orchestrator[/]"
    return "\n".join(f"{path.removeprefix('HostConfig.')}={_text(_at(request, path))}" for path in meaning.becomes)


def _at(request: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(request, list):  # the ulimits, by name
            request = next(limit["Hard"] for limit in request if limit["Name"] == part)
        else:
            request = request[part]
    return request


def _text(value: Any) -> str:
    match value:
        case bool():
            said = str(value).lower()
        case float():
            said = f"{value:g}"
        case tuple():
            said = ", ".join(value)
        case dict():
            said = "none"
        case _:
            said = str(value)
    said = plain(said or "none")
    return escape(said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…")
