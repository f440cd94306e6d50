"""`cellblock policy`: lists, prints, checks and explains policies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from orchestrator.cli.render import AsJson, console, plain, shorten, show_json, show_table
from orchestrator.container.hostconfig import KERNEL_MOUNT, ContainerSpec, create_request
from orchestrator.errors import PolicyError
from orchestrator.policy.policy import Policy, keys, policy_path, shipped
from orchestrator.settings import Settings

app = typer.Typer(
    help="List, print, check and explain policies.\n\nExample: cellblock policy explain strict", no_args_is_help=True
)
_LONGEST = 100  # characters of a value in a table


def existing_policy(name: str) -> str:
    """Return the value of an option that names a policy. Typer calls it.

    Raises:
        typer.BadParameter: there is no such policy or file. The command exits with 2.
    """
    try:
        found = not name or policy_path(name).is_file()
    except PolicyError as error:
        raise typer.BadParameter(f"{plain(error.message)} {error.remedy}") from error
    if not found:
        raise typer.BadParameter(f"there is no file {plain(name)}.")
    return name


PolicyName = Annotated[
    str, typer.Option("--policy", help="A policy's name or file. Default: CELLBLOCK_POLICY.", callback=existing_policy)
]
Named = Annotated[str, typer.Argument(metavar="NAME", help="A policy's name, or the path of a TOML file.")]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one setting does.

    Attributes:
        becomes: dotted paths into the container request. Empty for a setting that the orchestrator enforces itself.
        row: the row of docs/threat-model.md that it belongs to.
        stops: the attack or problem that it prevents.
    """

    becomes: tuple[str, ...]
    row: str
    stops: str


MEANINGS = {
    "runtime": Meaning(("HostConfig.Runtime",), "H5", "exploits of the host's kernel; runsc has its own"),
    "seccomp": Meaning(("HostConfig.SecurityOpt.1",), "H5", "system calls that escapes need and data work does not"),
    "preload": Meaning((), "H4", "a slow first cell: imports run before the lease, and use memory in every kernel"),
    "limits.cpu_percent": Meaning(("HostConfig.CpuQuota", "HostConfig.CpuPeriod"), "H3", "a busy loop"),
    "limits.memory_mb": Meaning(("HostConfig.Memory", "HostConfig.MemorySwap"), "H4", "a memory bomb, and use of swap"),
    "limits.pids": Meaning(("HostConfig.PidsLimit", "HostConfig.Ulimits.nproc"), "H3", "fork and thread bombs"),
    "limits.open_files": Meaning(("HostConfig.Ulimits.nofile",), "H3", "a descriptor bomb"),
    "limits.execution_time_s": Meaning((), "O2", "an endless cell: interrupted, then its kernel is killed"),
    "limits.output_mb": Meaning((), "O1", "endless output: the rest is dropped and reported"),
    "limits.commands": Meaning((), "H3", "commands without end beside the cells: one more is refused"),
    "limits.command_time_s": Meaning((), "O2", "an endless command: killed with all that it has started"),
    "limits.idle_timeout_s": Meaning((), "H3", "idle kernels that were never ended"),
    "limits.warn_percent": Meaning((), "H4", "surprise: results warn beyond this share of memory and time"),
    "tmpfs.work_mb": Meaning(("HostConfig.Tmpfs./work",), "H2", "a full disk: files are in memory, with a size limit"),
    "tmpfs.tmp_mb": Meaning(("HostConfig.Tmpfs./tmp",), "H2", "a full disk"),
    "tmpfs.shm_mb": Meaning(("HostConfig.ShmSize",), "H2", "exhausting shared memory"),
    "output.mime_types": Meaning((), "O4", "HTML and other content that runs where it is displayed"),
    "output.messages": Meaning((), "O1", "millions of tiny outputs"),
    "output.displays": Meaning((), "O1", "endless pictures"),
    "output.past_limit": Meaning((), "O1", "a cell whose further output is dropped: with stop it is interrupted"),
    "channels.stdin": Meaning((), "O6", "a cell that hangs its caller, or asks its user for a password"),
    "channels.comms": Meaning((), "O6", "comm messages that the caller does not expect"),
    "audit.code": Meaning((), "O2", "doubt about which code ran: the audit log keeps its digest, or all of it"),
    "jupyter.folder": Meaning((), "O5", "files beside a notebook: read-only where the policy names a place, else none"),
    "audit.fsync": Meaning((), "H2", "audit entries lost in a power failure"),
    "sessions.hibernate": Meaning((), "H4", "kernels held by idle agents"),
    "sessions.incomplete": Meaning((), "H4", "kernels held for ever because their state cannot be checkpointed"),
    "sessions.checkpoint_every": Meaning((), "H4", "work lost when a kernel dies"),
    "sessions.checkpoint_mb": Meaning((), "H2", "a full disk: the maximum size of one checkpoint"),
    "image.requirements": Meaning((), "O7", "packages that nobody has looked at: the image has those of a lock file"),
    "image.python": Meaning((), "O7", "another Python than the code was written for"),
    "packages.allow": Meaning((), "O7", "packages that nobody has looked at: none is installed unless it is listed"),
    "packages.index": Meaning((), "O7", "packages of another index than the operator's"),
    "packages.max_mb": Meaning((), "O7", "packages that fill the host's cache"),
    "tools.calls": Meaning((), "O7", "a cell that calls the host's functions without end: more calls are refused"),
    "tools.concurrent": Meaning((), "O7", "a cell that has the host run many functions at once"),
    "tools.argument_kb": Meaning((), "O7", "arguments that the host has to check for long"),
    "tools.result_kb": Meaning((), "O7", "results that the kernel cannot hold"),
    "tools.time_s": Meaning((), "O2", "a cell that never ends, since its clock stops while a tool runs"),
    "sessions.checkpoint_time_s": Meaning((), "O6", "a kernel that never finishes saving or loading its state"),
    "pool.warm": Meaning((), "H3", "waiting for a start: this many kernels are kept ready"),
    "pool.max_age_s": Meaning((), "H3", "stale kernels: older ready kernels are replaced"),
    "pool.check_every_s": Meaning((), "H3", "leasing a kernel that does not answer"),
    "pool.exhausted": Meaning((), "H3", "callers that wait for a kernel: with fail they are refused at once"),
    "pool.queue": Meaning((), "H4", "an endless queue of callers: more than this many are refused"),
    "scheduling.aging_s": Meaning((), "H3", "starvation: waiting this long raises a caller's priority by one step"),
    "scheduling.group_quota": Meaning((), "H3", "one group of agents that takes every kernel"),
    "scheduling.memory_reserve_mb": Meaning((), "H4", "a host without memory for its own processes"),
    "scheduling.memory_overcommit": Meaning((), "H4", "kernels whose memory limits exceed the host's memory"),
    "scheduling.cpu_overcommit": Meaning((), "H3", "more kernels than cores can serve"),
    "groups": Meaning((), "H3", "one group of agents slowing another: the weight and quota of each group"),
    "environment": Meaning(("Env",), "X2", "names of the host: a kernel gets only the variables listed here"),
    "data": Meaning(("HostConfig.Mounts",), "O5", "changed data: read-only, and links stay inside the folder"),
}  # fmt: skip


@app.command(name="list")
def list_policies(as_json: AsJson = False) -> None:
    """List the policies that come with cellblock. An asterisk marks the one that new kernels use.

    Example: cellblock policy list
    """
    chosen = Settings.load().policy
    if as_json:
        show_json([{"policy": name, "chosen": name == chosen, **_settings(Policy.load(name))} for name in shipped()])
        return
    table = Table("policy", "runtime", "CPU", "memory", "time per cell", "purpose")
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
    show_table(table)
    if chosen not in shipped():
        console.print(f"New kernels use {escape(plain(chosen))} (CELLBLOCK_POLICY).")


@app.command()
def show(name: Named, as_json: AsJson = False) -> None:
    """Print a policy's file, for example as a start for your own policy; with --json, every setting and its value.

    Example: cellblock policy show strict > mine.toml
    """
    policy = Policy.load(name)
    if as_json:
        show_json(_settings(policy))
        return
    typer.echo(policy_path(name).read_text(encoding="utf-8-sig"), nl=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy file, in TOML.")], as_json: AsJson = False
) -> None:
    """Check a policy file, and report every fault with its line. Exit status: 0 if it is valid, 1 if it is not.

    Example: cellblock policy check mine.toml
    """
    try:
        policy = Policy.load(str(file if "/" in str(file) else Path.cwd() / file))
    except PolicyError as error:
        if as_json:
            show_json({"valid": False, "fault": error.message})
            raise typer.Exit(1) from None
        raise
    if as_json:
        show_json({"valid": True, "settings": _settings(policy)})
        return
    console.print(f"[green]valid:[/] {escape(plain(str(file)))}: {len(_settings(policy))} settings.")


@app.command()
def explain(name: Named, as_json: AsJson = False) -> None:
    """Show each setting of a policy: its effect in Docker, and the attack that it stops.

    Example: cellblock policy explain data-science
    """
    policy = Policy.load(name)
    request = _specimen(policy)
    columns = (Column(name, overflow="fold") for name in ("setting", "in Docker", "row", "stops"))
    table = Table(*columns, title=f"under {request['HostConfig']['Runtime']}", title_justify="left")
    if as_json:
        show_json([_explained(request, key, value) for key, value in _settings(policy).items()])
        return
    for key, value in _settings(policy).items():
        meaning = _meaning(key)
        setting = f"{escape(key)}\n[bold]{_text(value)}[/]"
        table.add_row(setting, _in_docker(request, key, meaning), meaning.row, meaning.stops)
    show_table(table)
    console.print(
        "The rows are those of docs/threat-model.md. Under every policy, no container is privileged, runs as root, or "
        "has a capability, a network, a namespace of the host, a writable mount or a tmpfs without a size."
    )


def _settings(policy: Policy) -> dict[str, Any]:
    """Return every setting and its value. A table that is not empty contributes one setting per line."""
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


def _meaning(key: str) -> Meaning:
    return MEANINGS[key.split(".")[0] if key.startswith(("environment.", "data.", "groups.")) else key]


def _explained(request: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    meaning = _meaning(key)
    in_docker = Text.from_markup(_in_docker(request, key, meaning)).plain
    return {"setting": key, "value": value, "in_docker": in_docker, "row": meaning.row, "stops": meaning.stops}


def _specimen(policy: Policy) -> dict[str, Any]:
    """Return the container request that the engine would get for this policy."""
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
        return "[dim]nothing[/]" if key == "environment" else f"[dim]only {KERNEL_MOUNT}[/]"
    if key == "seccomp":
        return f"SecurityOpt seccomp=… ({len(request['HostConfig']['SecurityOpt'][1])} bytes)"
    if not meaning.becomes:
        return "[dim]enforced by the orchestrator[/]"
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
    return escape(shorten(said, _LONGEST))
