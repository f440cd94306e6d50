"""The spreadsheet example as its user runs it, on real containers."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker
import nbformat
import pytest
import spreadsheet_agents
from openpyxl import load_workbook
from rich.console import Console
from spreadsheet import make_workbook
from spreadsheet.agents import AGENTS, Agent
from spreadsheet.findings import PictureFindings
from spreadsheet.make_workbook import CHAIN_END, CHAIN_LENGTH, CHAIN_START, FAULTS, FORMULAS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "spreadsheet_agents.py"
PICTURES = {"composition.png", "sheets.png", "functions.png", "histograms.png", "missing.png"}


def environment(**changes: str) -> dict[str, str]:
    """A folder of the test's own is the working directory, so the library may not be importable from there."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def run(folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def findings(report: dict[str, Any], agent: str) -> dict[str, Any]:
    assert report["agents"][agent]["status"] == "ok", report["agents"][agent]["failure"]
    found: dict[str, Any] = report["agents"][agent]["findings"]
    return found


def check_files(folder: Path) -> None:
    """All pictures are PNGs of a readable size, all notebooks are valid and hold cells that succeeded."""
    assert {path.name for path in folder.glob("*.png")} == PICTURES
    for path in folder.glob("*.png"):
        head = path.read_bytes()[:24]
        assert (head[:8], head[12:16]) == (b"\x89PNG\r\n\x1a\n", b"IHDR")
        width, height = struct.unpack(">II", head[16:])
        assert 500 < width < 4000
        assert 100 < height < 4000
    for agent in AGENTS:
        notebook = nbformat.read(folder / f"{agent.name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert len(code) >= 5
        assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


@pytest.fixture(scope="module")
def planted(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The example without an argument: its findings, and its output folder."""
    folder = tmp_path_factory.mktemp("planted")
    done = run(folder, "--json", "found.json", CELLBLOCK_RUNTIME=runtime)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    for words in ("64 formulas", "Orders!H58", "=B4-#REF!", "SO-0020", f"Runtime: {runtime}", "composition.png"):
        assert words in done.stdout
    report = json.loads((folder / "found.json").read_text())
    assert report["runtime"] == runtime
    return report, folder / "out" / "planted_faults"


def found_faults(report: dict[str, Any]) -> set[tuple[str, str]]:
    """All that the agents found, as kinds and cells."""
    formula, pattern = findings(report, "formula-agent"), findings(report, "pattern-agent")
    found = {("typed over", fault["cell"]) for fault in formula["typed_over"]}
    found |= {("error value", fault["cell"]) for fault in formula["errors"]}
    found |= {("lost reference", fault["cell"]) for fault in formula["broken"]}
    found |= {("cycle", cell) for cycle in formula["cycles"] for cell in cycle}
    for table in pattern["tables"]:
        for column in table["columns"]:
            found |= {("missing", cell) for cell in column["missing_cells"]}
            found |= {("odd type", cell) for cell in column["odd_cells"]}
            found |= {("outlier", cell) for cell in column["outlier_cells"]}
        first = re.sub(r"\d.*", "", table["area"])
        found |= {("repeated row", f"{table['sheet']}!{first}{twin['row']}") for twin in table["duplicate_rows"]}
        later = [row for key in table["duplicate_keys"] for row in key["rows"][1:]]
        found |= {("repeated key", f"{table['sheet']}!{first}{row}") for row in later}
    return found


def test_every_planted_fault_is_found(planted: tuple[dict[str, Any], Path]) -> None:
    """The agents find every fault that was planted, and of these kinds no other."""
    planted_faults = {(fault.kind, fault.cell) for fault in FAULTS}
    # The other planted error value is also a cell of another kind than its column.
    assert found_faults(planted[0]) == planted_faults | {("odd type", "Costs!C7")}


def test_formulas_and_the_long_chain_are_found(planted: tuple[dict[str, Any], Path]) -> None:
    """The formula agent counts the formulas of each sheet, and finds the planted chain from end to end."""
    found = findings(planted[0], "formula-agent")
    assert {sheet["sheet"]: sheet["formulas"] for sheet in found["sheets"]} == FORMULAS
    assert found["chain_length"] == CHAIN_LENGTH
    assert (found["chain_start"][0], found["chain_end"][-1]) == (CHAIN_START, CHAIN_END)


def test_pictures_and_notebooks_are_saved(planted: tuple[dict[str, Any], Path]) -> None:
    """Five pictures and three notebooks are in the output folder."""
    check_files(planted[1])


def test_the_agents_find_the_same_on_living_notebooks(tmp_path: Path) -> None:
    """With --notebooks: every planted fault, the pictures, and notebooks with the agents' tasks as titles."""
    done = run(tmp_path, "--notebooks", "--json", "found.json", CELLBLOCK_RUNTIME="runc")
    assert done.returncode == 0, done.stderr + done.stdout
    planted_faults = {(fault.kind, fault.cell) for fault in FAULTS}
    assert found_faults(json.loads((tmp_path / "found.json").read_text())) == planted_faults | {
        ("odd type", "Costs!C7")
    }
    check_files(tmp_path / "out" / "planted_faults")
    for agent in AGENTS:
        notebook = nbformat.read(tmp_path / "out" / "planted_faults" / f"{agent.name}.ipynb", as_version=4)
        assert notebook.cells[0].source == f"# {agent.task}"
        assert all("execution" in cell.metadata for cell in notebook.cells[1:])


def test_a_real_workbook(tmp_path: Path, runtime: str, shared_data: Path) -> None:
    """On a workbook that nobody tidied, the figures are those that openpyxl gives on the host."""
    book = shared_data / "tesla_valuation_2024.xlsx"
    done = run(tmp_path, str(book), "--out", "out", "--json", "found.json", CELLBLOCK_RUNTIME=runtime)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "found.json").read_text())
    assert report["runtime"] == runtime
    texts = formula_texts(book)
    found = findings(report, "formula-agent")
    assert {s["sheet"]: s["formulas"] for s in found["sheets"] if s["formulas"]} == Counter(s for s, _ in texts)
    assert {f["function"]: f["calls"] for f in found["functions"]} == calls(text for _, text in texts)
    check_tables(book, findings(report, "pattern-agent")["tables"])
    check_files(tmp_path / "out")


def formula_texts(path: Path) -> list[tuple[str, str]]:
    """Each formula with its sheet; but not the empty ones that Excel saves where an array formula spills."""
    return [
        (sheet.title, str(getattr(cell.value, "text", cell.value)))
        for sheet in load_workbook(path).worksheets
        for row in sheet.iter_rows()
        for cell in row
        if cell.data_type == "f" and cell.value != "="
    ]


def calls(texts: Iterable[str]) -> Counter[str]:
    """Calls by function, told by a name before a bracket; a data table is called TABLE and has no text."""
    counted: Counter[str] = Counter()
    for text in texts:
        if text.startswith("<openpyxl.worksheet.formula.DataTableFormula"):
            counted["TABLE"] += 1
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", text)
        counted.update(name.removeprefix("_xlfn.") for name in re.findall(r"([A-Za-z_][\w.]*)\(", bare))
    return counted


def check_tables(book: Path, tables: list[dict[str, Any]]) -> None:
    """Recompute each table's size, its columns' missing values and kinds from the cells of its range."""
    assert ("Monte Carlo Simulations", "A3:R5003", 5000) in {(t["sheet"], t["area"], t["rows"]) for t in tables}
    workbook = load_workbook(book, data_only=True)
    for table in tables:
        heading, *rows = workbook[table["sheet"]][table["area"]]
        assert (len(rows), len(heading)) == (table["rows"], len(table["columns"]))
        for index, column in enumerate(table["columns"]):
            values = [row[index].value for row in rows]
            assert column["missing"] == sum(value is None or not str(value).strip() for value in values)
            assert column["kinds"].get("number", 0) == sum(isinstance(value, int | float) for value in values)
        whole = [tuple(cell.value for cell in row) for row in rows]
        assert table["duplicate_row_count"] == len(whole) - len(set(whole))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("nothing.xlsx", None, "no file"), ("text.xlsx", b"a,b\n1,2\n", "not a workbook"), (".", None, "directory")],
)
def test_what_is_no_workbook(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    """A file that is missing, no workbook or a directory gets one line on stderr and exit status 2."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run(tmp_path, name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


def test_no_engine(tmp_path: Path) -> None:
    """Without an engine the example says so in one line, and ends with 1."""
    done = run(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "engine" in done.stderr


def test_a_broken_workbook(tmp_path: Path) -> None:
    """What openpyxl cannot read fails in the sandboxes alone: the report says how, and the exit status is 1."""
    with zipfile.ZipFile(tmp_path / "broken.xlsx", "w") as archive:
        archive.writestr("nothing", "in it")
    done = run(tmp_path, "broken.xlsx", "--json", "found.json", CELLBLOCK_RUNTIME="runc")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("failed: Read every cell: KeyError") == 3
    report = json.loads((tmp_path / "found.json").read_text())
    assert {agent["status"] for agent in report["agents"].values()} == {"error"}


async def test_a_failing_agent_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that fail, lie or hand out too much are shown as failures; the others' findings are there."""
    monkeypatch.setenv("CELLBLOCK_RUNTIME", "runc")
    scripts = {
        "raises": "# %% First\nprint('here')\n# %% Second\n1 / 0\n",
        "silent": "# %% First\nprint('no findings')\n",
        "lies": "# %% First\nfrom IPython.display import display\n"
        "display({'application/json': {'pictures': [{'file': '../../escaped.png', 'title': ''}]}}, raw=True)\n",
        "forges": "# %% First\nopen('a.png', 'w').write('no picture')\nfrom IPython.display import display\n"
        "display({'application/json': {'pictures': [{'file': 'a.png', 'title': ''}]}}, raw=True)\n",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(script)
    broken = [Agent(name, "", str(tmp_path / name), PictureFindings) for name in scripts]
    book = make_workbook.write(tmp_path / "book.xlsx")
    console = Console(file=io.StringIO())
    _, outcomes = await spreadsheet_agents.analyse(book, tmp_path, console, [AGENTS[0], *broken])
    assert [outcome.failure == "" for outcome in outcomes] == [True, False, False, False, False]
    assert outcomes[0].findings is not None
    assert outcomes[1].failure == "Second: ZeroDivisionError: division by zero"
    assert [outcome.notebook is not None for outcome in outcomes] == [True] * 5
    assert [file.name for file in os.scandir(tmp_path) if file.name.endswith(".png")] == []


def test_help() -> None:
    """The help text has an example."""
    assert "example: python examples/spreadsheet_agents.py" in run(ROOT, "--help").stdout


def containers_under(folder: Path) -> list[str]:
    """The containers that have a mount from ``folder``, stopped ones included."""
    client = docker.from_env()
    try:
        listed = client.api.containers(all=True)
    finally:
        client.close()
    mounts = {entry["Id"]: [mount.get("Source", "") for mount in entry["Mounts"]] for entry in listed}
    return [name for name, sources in mounts.items() if any(source.startswith(f"{folder}/") for source in sources)]


def test_ctrl_c_leaves_nothing(tmp_path: Path, runtime: str, state: Path) -> None:
    """Ctrl-C in the middle of the work ends it within seconds, with 130 and one line; no container and file is left."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        cwd=tmp_path,
        env=environment(CELLBLOCK_RUNTIME=runtime, CELLBLOCK_STATE_DIR=str(state)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = b""
    while b"Read every cell" not in line:
        line = process.stdout.readline()
        assert line, "the example ended before an agent began"
    assert containers_under(state)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert (process.returncode, errors) == (130, b"interrupted\n")
    assert containers_under(state) == []
    assert [path for path in state.rglob("*") if not path.is_dir()] == []
