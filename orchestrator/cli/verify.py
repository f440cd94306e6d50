"""`cellblock verify`: probes every promise on real kernels of this host, and shows the results."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree as ET  # written, never parsed

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.cli.policies import PolicyName
from orchestrator.cli.render import console, errors, plain, run_async, show_table
from orchestrator.container.engine import Engine, gvisor_fault
from orchestrator.errors import InvalidInputError, UnknownRuntimeError
from orchestrator.isolation.benchmark import ItemResult, judge
from orchestrator.isolation.claims import Claim
from orchestrator.isolation.controls import CONTROLS
from orchestrator.isolation.verification import CLAIMS, Check, Finding, Report, check_controls, laboratory
from orchestrator.isolation.verification import verify as run_probes
from orchestrator.policy.policy import Policy
from orchestrator.settings import Settings

_COLOURS = {"holds": "green", "fails": "bold red", "does not apply": "dim", "the host lacks it": "yellow"}
_GREEN, _RED, _NONE = "[green]green[/]", "[bold red]RED[/]", "[dim]-[/]"


SelfTest = Annotated[
    bool, typer.Option("--self-test", help="Also probe containers that each lack a defence: the probes must turn red.")
]
Runtimes = Annotated[
    list[str] | None, typer.Option("--runtime", help="A runtime to verify; repeatable. Default: runc and runsc.")
]


def _known_control(name: str) -> str:
    if name and name not in (known := [control.name for control in CONTROLS]):
        raise typer.BadParameter(f"there is no control {plain(name)!r}. Known ones: {', '.join(known)}.")
    return name


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the probes run, which take minutes."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{plain(str(path))} is a folder, or its folder does not exist.")
    return path


ControlName = Annotated[
    str,
    typer.Option(
        "--control",
        help="Instead, probe a container that lacks a defence (see --list); show what turns red.",
        callback=_known_control,
    ),
]
Cis = Annotated[
    bool,
    typer.Option("--cis", help="Instead, check a kernel's container against section 5 of the CIS Docker Benchmark."),
]
List = Annotated[bool, typer.Option("--list", help="Instead, list the claims and the controls. Needs no engine.")]
ToJson = Annotated[
    Path | None, typer.Option("--json", help="Write the findings to this file as JSON.", callback=_in_a_folder)
]
ToJunit = Annotated[
    Path | None, typer.Option("--junit", help="Write the findings to this file as JUnit XML.", callback=_in_a_folder)
]


def verify(
    self_test: SelfTest = False,
    runtime: Runtimes = None,
    policy: PolicyName = "",
    control: ControlName = "",
    cis: Cis = False,
    claims: List = False,
    to_json: ToJson = None,
    to_junit: ToJunit = None,
) -> None:
    """Probe every promise of the sandbox on this host, with the real image, policy and runtimes. Takes under 3 minutes.

    Exit status: 0 if everything is green, 1 if anything is red or cannot be probed.

    Example: cellblock verify --self-test --junit verify.xml
    """
    if claims:
        _list()
        return
    settings = Settings.load()
    if policy:
        settings = settings.model_copy(update={"policy": policy})
    begun = time.monotonic()
    try:
        if cis:
            raise typer.Exit(run_async(_show_benchmark(settings, runtime)))
        if control:
            raise typer.Exit(run_async(_show_control(settings, runtime, control)))
        report = run_async(_verify(settings, runtime, self_test))
    except UnknownRuntimeError as error:
        if not runtime:
            raise
        raise typer.BadParameter(plain(error.message), param_hint="--runtime") from error
    _show(report, time.monotonic() - begun)
    if to_json is not None:
        _save(to_json, json.dumps(_as_dict(report), indent=2) + "\n")
    if to_junit is not None:
        _save(to_junit, _as_junit(report))
    raise typer.Exit(0 if report.green else 1)


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}.") from error


async def _verify(settings: Settings, runtime: list[str] | None, self_test: bool) -> Report:
    runtimes = runtime or await _runtimes(settings)
    steps = len(runtimes) * len(CLAIMS)
    if self_test:
        steps += sum(name in control.reds for control in CONTROLS for name in runtimes)
    with _progress() as bar:
        task = bar.add_task("verifying", total=steps)

        def step(name: str) -> None:
            bar.update(task, advance=1, description=name)

        return await run_probes(settings, runtimes, self_test=self_test, progress=step)


async def _show_control(settings: Settings, runtime: list[str] | None, name: str) -> int:
    chosen = [control for control in CONTROLS if control.name == name]
    checks: list[Check] = []
    for each in runtime or await _runtimes(settings):
        async with laboratory(settings, each) as bench:
            checks += await check_controls(bench, chosen)
    for check in checks:
        table = Table("claim", "evidence", title=f"{check.runtime}: a container that lacks {check.control.lacks}")
        for claim, evidence in check.reds.items():
            table.add_row(f"[red]{claim}[/]", _text(evidence))
        if check.reds:
            show_table(table)
        else:
            console.print(f"{check.runtime}: nothing turned red. {_text(check.fault)}")
    return 1 if any(check.reds or check.fault for check in checks) else 0


async def _show_benchmark(settings: Settings, runtime: list[str] | None) -> int:
    found: dict[str, list[ItemResult]] = {}
    for each in runtime or await _runtimes(settings):
        async with laboratory(settings, each) as bench, bench.subject(whole=False) as subject:
            engine = bench.instance.engine
            found[each] = judge(await subject.record(), await engine.retry(engine.client.info))
    table = Table("item", *found, "evidence", title="CIS Docker Benchmark 1.6.0, section 5", title_justify="left")
    for items in zip(*found.values(), strict=True):
        marks = [f"[{_COLOURS[item.standing]}]{item.standing}[/]" for item in items]
        evidence = dict.fromkeys(_text(item.evidence) for item in items)
        table.add_row(f"{items[0].number} {items[0].title}", *marks, "\n".join(evidence))
    show_table(table)
    return int(any(item.standing == "fails" for items in found.values() for item in items))


async def _runtimes(settings: Settings) -> list[str]:
    """Return those of runc and runsc that the engine has and the policy allows."""
    engine = await Engine.connect(settings.engine_timeout)
    try:
        runtimes: dict[str, Any] = (await engine.retry(engine.client.info))["Runtimes"]
    finally:
        engine.close()
    fault = gvisor_fault(runtimes)
    if Policy.load(settings.policy).runtime == "require-runsc":
        return ["runsc"]  # if it is missing, the error says so
    if fault:
        errors.print(f"runsc is not verified: {escape(plain(fault))}.", style="yellow")
    return [name for name in ("runc", "runsc") if name in runtimes and not (name == "runsc" and fault)]


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    return Progress(*columns, console=errors, transient=True)


def _list() -> None:
    table = Table("claim", "row", "promise", title="claims", title_justify="left")
    for claim in CLAIMS:
        table.add_row(claim.name, claim.row, claim.promise)
    show_table(table)
    table = Table("control", "lacks", title="controls", title_justify="left")
    for control in CONTROLS:
        table.add_row(control.name, control.lacks)
    show_table(table)


def _show(report: Report, seconds: float) -> None:
    by_claim: dict[Claim, dict[str, Finding]] = {}
    for finding in report.findings:
        by_claim.setdefault(finding.claim, {})[finding.runtime] = finding
    table = Table("claim", "row", *report.runtimes, "evidence", title="cellblock verify", title_justify="left")
    for claim, found in by_claim.items():
        marks = [_mark(found.get(runtime)) for runtime in report.runtimes]
        table.add_row(claim.name, claim.row, *marks, _evidence(found))
    show_table(table)
    if report.checks:
        _show_checks(report)
    reds = [finding for finding in report.findings if not finding.verdict.holds]
    if report.green:
        tested = f"; {len(report.checks)} containers that lack a defence, each turned red" if report.checks else ""
        console.print(f"[green]{len(report.findings)} findings, all green{tested}. {seconds:.0f} s[/]")
    for finding in reds:
        said = f"{finding.claim.promise} {finding.verdict.evidence}"
        console.print(f"[bold red]RED[/] {finding.runtime} {finding.claim.name}: {_text(said)}")


def _show_checks(report: Report) -> None:
    table = Table("control", *report.runtimes, "turned red", title="self-test", title_justify="left")
    for control in CONTROLS:
        checks = {check.runtime: check for check in report.checks if check.control is control}
        marks = [_checked(checks.get(runtime)) for runtime in report.runtimes]
        reds = sorted({name for check in checks.values() for name in check.reds})
        table.add_row(control.name, *marks, ", ".join(reds))
    show_table(table)
    for check in report.checks:
        if not check.passed:
            said = check.fault or f"these should have turned red: {', '.join(check.missed)}"
            console.print(f"[bold red]RED[/] {check.runtime} control {check.control.name}: {_text(said)}")
    for runtime, name in report.uncovered:
        console.print(f"[bold red]RED[/] {runtime} {name}: no control turned this probe red")


def _mark(finding: Finding | None) -> str:
    return _NONE if finding is None else _GREEN if finding.verdict.holds else _RED


def _checked(check: Check | None) -> str:
    return _NONE if check is None else f"{len(check.reds)} red" if check.passed else _RED


def _evidence(found: dict[str, Finding]) -> str:
    said = {runtime: finding.verdict.evidence for runtime, finding in found.items()}
    if len(set(said.values())) == 1:
        return _text(next(iter(said.values())))
    return "\n".join(f"{runtime}: {_text(evidence)}" for runtime, evidence in said.items())


def _text(hostile: str) -> str:
    return escape(plain(hostile))


def _as_dict(report: Report) -> dict[str, Any]:
    return {
        "green": report.green,
        "runtimes": list(report.runtimes),
        "findings": [
            {
                "claim": finding.claim.name,
                "row": finding.claim.row,
                "promise": finding.claim.promise,
                "runtime": finding.runtime,
                "holds": finding.verdict.holds,
                "evidence": finding.verdict.evidence,
                "seconds": round(finding.seconds, 3),
            }
            for finding in report.findings
        ],
        "controls": [
            {
                "control": check.control.name,
                "lacks": check.control.lacks,
                "runtime": check.runtime,
                "passed": check.passed,
                "turned_red": check.reds,
                "missed": list(check.missed),
                "fault": check.fault,
            }
            for check in report.checks
        ],
        "never_red": [{"runtime": runtime, "claim": claim} for runtime, claim in report.uncovered],
    }


def _as_junit(report: Report) -> str:
    suites = ET.Element("testsuites")
    for runtime in report.runtimes:
        findings = [finding for finding in report.findings if finding.runtime == runtime]
        suite = _suite(suites, f"cellblock.{runtime}", [finding.verdict.holds for finding in findings])
        for finding in findings:
            _case(suite, finding.claim.name, finding.verdict.holds, finding.verdict.evidence, finding.seconds)
        checks = [check for check in report.checks if check.runtime == runtime]
        if checks:
            suite = _suite(suites, f"cellblock.{runtime}.self-test", [check.passed for check in checks])
            for check in checks:
                _case(suite, check.control.name, check.passed, check.fault or f"not red: {', '.join(check.missed)}")
            for _, claim in (entry for entry in report.uncovered if entry[0] == runtime):
                _case(suite, f"{claim} has a control", False, "no control turned this probe red")
    ET.indent(suites)
    text: str = ET.tostring(suites, encoding="unicode")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + text + "\n"


def _suite(parent: ET.Element, name: str, good: list[bool]) -> ET.Element:
    return ET.SubElement(parent, "testsuite", name=name, tests=str(len(good)), failures=str(good.count(False)))


def _case(suite: ET.Element, name: str, good: bool, said: str, seconds: float = 0.0) -> None:
    case = ET.SubElement(suite, "testcase", classname=suite.attrib["name"], name=name, time=f"{seconds:.3f}")
    text = plain(said)
    if good:
        ET.SubElement(case, "system-out").text = text
    else:
        ET.SubElement(case, "failure", message=text[:200]).text = text
