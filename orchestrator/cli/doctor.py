"""`cellblock doctor`: reports what this host can promise, and a fix for each weakness."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil
import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from orchestrator.cli.render import AsJson, console, errors, plain, run_async, show_json, show_table
from orchestrator.container.engine import Engine, gvisor_fault
from orchestrator.container.enginekind import unsupported
from orchestrator.errors import CellblockError, ImageMissingError
from orchestrator.host.weakness import look, weaknesses
from orchestrator.image.recipe import Recipe
from orchestrator.limits import MIB
from orchestrator.manager import AgentKernelManager
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings

Condition = Literal["good", "weak", "broken"]
_LOOKED_FOR = ("gVisor", "runc", "limits", "swap", "cgroups", "access control", "seccomp", "vsock", "engine's address",
               "Ray", "CPU")  # fmt: skip
_MARKS = {"good": "[green]good[/]", "weak": "[yellow]weak[/]", "broken": "[bold red]broken[/]"}
_PROMISES = {
    "runsc": "runsc (gVisor): no known escape, host leak, exfiltration or access to other sandboxes.",
    "runc": "runc: the same checks pass, but code in a cell can exploit a bug in this host's kernel or in runc.",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line of the report.

    Attributes:
        condition: "broken" if kernels cannot run, "weak" if the host promises less, otherwise "good".
        fix: what to do about it; empty if no fix is known.
        consequence: what follows if it is not fixed.
    """

    subject: str
    condition: Condition
    found: str
    fix: str = ""
    consequence: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check the engine, the runtimes, the image and this host, and run one kernel under each runtime.

    For each weakness, prints its consequence and a fix. Use `cellblock verify` to test the promises themselves.

    Exit status: 0 if kernels can run, 1 if they cannot.

    Example: cellblock doctor
    """
    settings = Settings.load()
    usable: list[str] = []
    with errors.status("checking this host and starting a kernel under each runtime"):
        diagnoses = run_async(_examine(settings, usable))
    if as_json:
        found = [asdict(diagnosis) for diagnosis in diagnoses]
        show_json({"usable": usable, "runtime": _chosen(settings, usable), "diagnoses": found})
        raise typer.Exit(0 if usable else 1)
    _report(diagnoses, usable, settings)
    raise typer.Exit(0 if usable else 1)


async def _examine(settings: Settings, usable: list[str]) -> list[Diagnosis]:
    diagnoses = list(_host(settings))
    try:
        engine = await Engine.connect(settings.engine_timeout)
    except CellblockError as error:
        return [*diagnoses, Diagnosis("engine", "broken", error.message, error.remedy)]
    try:
        info: dict[str, Any] = await engine.retry(engine.client.info)
        version: dict[str, Any] = await engine.retry(engine.client.version)
        if (refusal := unsupported(info, version)) is not None:
            return [*diagnoses, Diagnosis("engine", "broken", refusal.message, refusal.remedy)]
        diagnoses += _engine(info, version)
        diagnoses.append(await _image(engine, settings))
    finally:
        engine.close()
    if all(diagnosis.condition != "broken" for diagnosis in diagnoses):
        for runtime in _candidates(info["Runtimes"]):
            diagnoses.append(await _trial(runtime, settings, usable))
    return diagnoses


def _host(settings: Settings) -> Iterator[Diagnosis]:
    memory = psutil.virtual_memory().total // MIB
    each = Policy.load(settings.policy).limits.memory_mb
    yield Diagnosis("memory", "good", f"{memory} MiB: room for {max(0, memory // each)} kernels of {each} MiB")


def _engine(info: dict[str, Any], version: dict[str, Any]) -> Iterator[Diagnosis]:
    yield Diagnosis("engine", "good", f"Docker {info.get('ServerVersion')} on {info.get('OperatingSystem')}")
    runtimes = info["Runtimes"]
    yield Diagnosis("runtimes", "good", ", ".join(sorted(runtimes)))
    components = {part.get("Name"): part.get("Version", "") for part in version.get("Components") or ()}
    found = list(weaknesses(look(), info, gvisor_fault(runtimes), components.get("runc", "")))
    for one in found:
        yield Diagnosis(one.subject, "broken" if one.broken else "weak", one.found, one.fix, one.consequence)
    strong = [name for name in _LOOKED_FOR if name not in {one.subject for one in found}]
    if strong:
        yield Diagnosis("also checked", "good", ", ".join(strong))


async def _image(engine: Engine, settings: Settings) -> Diagnosis:
    image = Policy.load(settings.policy).image
    name = await asyncio.to_thread(lambda: Recipe.of(settings, image).name)
    try:
        found = await engine.resolve_image(name)
    except ImageMissingError as error:
        return Diagnosis("image", "broken", error.message, error.remedy)
    details = await engine.retry(engine.client.api.inspect_image, found)
    return Diagnosis("image", "good", f"{name}, {details['Size'] // 10**6} MB")


def _candidates(runtimes: dict[str, Any]) -> list[str]:
    gvisor = [] if gvisor_fault(runtimes) else ["runsc"]
    return gvisor + [name for name in ("runc",) if name in runtimes]


async def _trial(runtime: str, settings: Settings, usable: list[str]) -> Diagnosis:
    subject = f"a kernel under {runtime}"
    chosen = settings.model_copy(update={"runtime": runtime, "warm_kernels": 0})
    try:
        manager = AgentKernelManager(max_kernels=1, settings=chosen)
        async with manager, manager.acquire_kernel("doctor", timeout=settings.start_timeout) as (_kernel, session):
            result = await manager.execute_code(session, "6 * 7")
    except CellblockError as error:
        return Diagnosis(subject, "weak", error.message, error.remedy)
    if result["result"] != "42":
        return Diagnosis(subject, "weak", f"6 * 7 gave {result['result']!r}")
    usable.append(runtime)
    return Diagnosis(subject, "good", f"6 * 7 = 42, in {1000 * result['duration_s']:.0f} ms")


def _chosen(settings: Settings, usable: list[str]) -> str:
    """Return the runtime of new kernels; "" if no kernel can run."""
    wanted = settings.runtime or Policy.load(settings.policy).runtime
    return "" if not usable else usable[0] if wanted == "auto" else wanted


def _report(diagnoses: list[Diagnosis], usable: list[str], settings: Settings) -> None:
    table = Table("what", "state", "found", title="cellblock doctor", title_justify="left")
    for diagnosis in diagnoses:
        table.add_row(diagnosis.subject, _MARKS[diagnosis.condition], escape(plain(diagnosis.found)))
    show_table(table)
    for diagnosis in diagnoses:
        if diagnosis.condition != "good":
            said = plain(diagnosis.consequence or diagnosis.found)
            console.print(f"{_MARKS[diagnosis.condition]} {diagnosis.subject}: {escape(said)}")
            console.print(Padding(f"[bold]Fix:[/] {escape(plain(diagnosis.fix or 'none is known.'))}", (0, 0, 0, 2)))
    if not usable:
        console.print("[bold red]Kernels cannot run on this host[/] until the broken items above are fixed.")
        return
    chosen = _chosen(settings, usable)
    console.print(f"New kernels run under [bold]{escape(chosen)}[/]. What this host promises:")
    console.print(f"  {_PROMISES.get(chosen, 'nothing: cellblock does not check this runtime.')}")
