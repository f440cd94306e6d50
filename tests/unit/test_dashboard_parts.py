"""The dashboard without a browser: what a page gets of a cell, frames, usage, and the audit log's end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import InvalidInputError
from orchestrator.server.dashboard import frames as frames_module
from orchestrator.server.dashboard.frames import LARGEST, Frames
from orchestrator.server.native.abridged import Abridgement, whole_output
from orchestrator.server.usagehistory import UsageHistory
from orchestrator.store.auditchain import append
from orchestrator.store.auditreading import newest
from orchestrator.store.history import CellRecord
from tests.dashboard.vendored import REPOSITORY, digests, libraries


def record(*outputs: dict[str, Any], number: int = 1, code: str = "1") -> CellRecord:
    return CellRecord(number, "k1", code, 1.0, 2.0, "ok", {"outputs": list(outputs), "execution_count": number})


def shown(**data: Any) -> dict[str, Any]:
    (cell,) = Abridgement().cells([record({"output_type": "display_data", "data": data})])
    output: dict[str, Any] = cell["outputs"][0]
    return output


def test_an_output_has_its_best_form() -> None:
    """The order is that of Jupyter's pages; a form that only programs read is shown as text."""
    both = {"text/plain": "plain", "image/png": "aGk=", "text/html": "<b>x</b>"}
    assert shown(**both) == {
        "index": 0,
        "kind": "data",
        "mime": "text/html",
        "too_large": [],
        "text": "<b>x</b>",
        "length": 8,
    }
    assert shown(**{"application/json": {"a": 1}})["text"] == '{\n "a": 1\n}'
    assert shown()["text"] == ""


def test_what_is_too_large_for_a_page_is_named_and_left_out() -> None:
    large = shown(**{"text/html": "x" * 600_000, "text/plain": "y" * 100_000})
    assert large["too_large"] == [{"mime": "text/html", "length": 600_000}]
    assert (large["mime"], len(large["text"]), large["length"]) == ("text/plain", 64 * 1024, 100_000)


def test_an_answer_is_bounded_whatever_its_cells_have() -> None:
    """The newest cell has its share first."""
    picture = {"output_type": "display_data", "data": {"image/png": "A" * 6_000_000, "text/plain": "picture"}}
    cells = Abridgement().cells([record(*[picture] * 3, number=number) for number in (1, 2)])
    assert len(json.dumps(cells)) < 17_000_000
    assert [[output["mime"] for output in cell["outputs"]] for cell in cells] == [
        ["text/plain", "text/plain", "text/plain"],
        ["image/png", "image/png", "text/plain"],
    ]
    (many,) = Abridgement().cells([record(*[{"output_type": "stream", "name": "stdout", "text": "x"}] * 250)])
    assert (len(many["outputs"]), many["outputs_left_out"]) == (100, 150)


def test_an_output_is_returned_whole() -> None:
    cell = record(
        {"output_type": "stream", "name": "stdout", "text": "x" * 100_000},
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["a", "b"]},
        {"output_type": "display_data", "data": {"text/html": "<b>", "text/plain": "p"}},
    )
    assert len(whole_output(cell, 0, None)) == 100_000
    assert whole_output(cell, 1, None) == "a\nb"
    assert whole_output(cell, 2, None) == "p"
    assert whole_output(cell, 2, "text/html") == "<b>"
    for index, mime in ((3, None), (2, "image/png")):
        with pytest.raises(InvalidInputError):
            whole_output(cell, index, mime)


def test_a_frame_is_fetched_once_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = Frames()
    name = frames.add("t1", b"<p>")
    assert frames.take(name) == b"<p>"
    assert frames.take(name) is None
    late = frames.add("t1", b"<p>")
    monkeypatch.setattr(frames_module, "_WAITS", -1.0)
    assert frames.take(late) is None
    with pytest.raises(InvalidInputError):
        frames.add("t1", bytes(LARGEST + 1))


def test_no_caller_pushes_out_the_frames_of_another() -> None:
    frames = Frames()
    mine = frames.add("t1", b"mine")
    names = [frames.add("t2", b"flood") for _ in range(100)]
    assert frames.take(mine) == b"mine"
    assert [frames.take(name) is not None for name in names].count(True) == 16


@dataclass
class Manager:
    """As much of a manager as usage is read from."""

    kernels: dict[str, str]
    latest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = SimpleNamespace(policy="default")
        self.monitor = self
        self.sessions = {
            agent: SimpleNamespace(kernel_id=kernel, agent_id=agent, session_id=f"s-{kernel}")
            for kernel, agent in self.kernels.items()
        }
        sample = SimpleNamespace(usage=SimpleNamespace(memory=50 * 1024 * 1024), cpu_percent=12.34)
        self.latest = dict.fromkeys(self.kernels, sample)


def test_usage_is_kept_for_an_hour_and_shown_to_its_group() -> None:
    manager: Any = Manager({"k1": "alice:a", "k2": "bob:b"})
    usage = UsageHistory(lambda: [manager])
    for number in range(1000):
        usage.note(5.0 * number)
    (series,) = usage.as_list("alice", 0)
    assert (series["agent"], series["session"], len(series["points"])) == ("alice:a", "s-k1", 720)
    assert series["points"][-1] == (4995.0, 50.0, 12.3)
    assert [len(each["points"]) for each in usage.as_list(None, 4980.0)] == [3, 3]
    assert usage.as_list("ali", 0) == []
    del manager.latest["k1"]
    usage.note(4995.0 + 3599)
    assert {each["kernel_id"] for each in usage.as_list(None, 0)} == {"k1", "k2"}
    usage.note(4995.0 + 3601)
    assert {each["kernel_id"] for each in usage.as_list(None, 0)} == {"k2"}


def test_the_end_of_the_audit_log_is_read_without_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    assert newest(log, 10, 1000) == []
    append(log, [{"time": "t", "event": "e", "number": number} for number in range(100)], fsync=False, rotate_at=2**30)
    assert [entry["number"] for entry in newest(log, 3, 100_000)] == [97, 98, 99]
    few = newest(log, 100, 1000)
    assert 1 <= len(few) <= 5
    assert few[-1]["number"] == 99


def test_the_libraries_are_those_of_the_list() -> None:
    """Every file is what VENDOR.toml says, and has its licence beside it; nothing else is there."""
    found = set()
    for name, library in libraries().items():
        assert digests(library) == library["files"], name
        assert "LICENSE" in library["files"]
        found |= {Path(library["folder"]) / Path(path).name for path in library["files"]}
    vendor = REPOSITORY / "orchestrator" / "server" / "dashboard" / "vendor"
    here = {path.relative_to(REPOSITORY) for path in vendor.rglob("*") if path.is_file() and path.name != "VENDOR.toml"}
    assert here == {path for path in found if path.parts[0] == "orchestrator"}
