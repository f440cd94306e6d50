"""Kills a working orchestrator repeatedly at random moments, and checks what the next start recovers.

Run it with ``make crashes``; ``test_crashes.py`` is a short version. The orchestrator writes what it has acknowledged
to a journal, a line each, which is compared with the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import command
from orchestrator import AgentKernelManager, Settings
from orchestrator.container.engine import connect
from orchestrator.container.hostconfig import INSTANCE_LABEL, KERNEL_LABEL
from orchestrator.errors import CellblockError
from orchestrator.store.history import History
from tests.conftest import REPOSITORY, engine_runtimes

CLEANED = 30.0  # seconds until the next start must have adopted or removed everything
LONGEST = 4.0  # maximum seconds of work before a kill
AGENTS = 5
KERNELS = 3
COUNT = "n = globals().get('n', 0) + 1; open('n', 'w').write(str(n)); n"

console = Console()


async def work(journal: Path) -> None:
    """Count in five sessions on three kernels, with checkpoints and hibernation, and write the journal."""
    with journal.open("ab", buffering=0) as handle:

        def note(**entry: object) -> None:
            handle.write(json.dumps(entry).encode() + b"\n")

        async with AgentKernelManager(max_kernels=KERNELS) as manager:
            print(json.dumps(sorted(manager.pool.kernels)), flush=True)
            sys.stdin.readline()
            await asyncio.gather(*(_count(manager, f"agent-{number}", note) for number in range(AGENTS)))


async def _count(manager: AgentKernelManager, agent: str, note: Any) -> None:
    chance = random.Random()  # noqa: S311 - not a secret
    while True:
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            for _ in range(chance.randrange(1, 4)):
                result = await manager.execute_code(session, COUNT)
                assert result["status"] == "ok", result
                value = int(result["result"])
                note(agent=agent, session=session.session_id, cell=session.cell_count, value=value)
            if chance.random() < 0.3:
                made = await manager.checkpoint(session)
                note(agent=agent, session=session.session_id, checkpoint=made.checkpoint_id, value=value)
        if chance.random() < 0.2:
            await manager.hibernate(agent)


@dataclass
class Findings:
    """What was found after a series of kills.

    Attributes:
        slowest: seconds of the slowest start.
        cells, checkpoints: how many were acknowledged.
        orphans, lost_cells, lost_checkpoints, untrue: the names of what is wrong.
    """

    kills: int = 0
    slowest: float = 0.0
    cells: int = 0
    checkpoints: int = 0
    orphans: list[str] = field(default_factory=list)
    lost_cells: list[str] = field(default_factory=list)
    lost_checkpoints: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.orphans or self.lost_cells or self.lost_checkpoints or self.untrue)


class Crashes:
    """One series of kills, with its own folders.

    Args:
        folder: with a short path.
    """

    def __init__(self, folder: Path, runtime: str, seed: int) -> None:
        self.found = Findings()
        self._folder = folder
        self._state = folder / "s"
        self._journal = folder / "journal"
        self._journal.touch()
        self._chance = random.Random(seed)  # noqa: S311 - the seed reproduces a series
        self._settings = Settings.load().model_copy(
            update={
                "runtime": runtime,
                "warm_kernels": 0,
                "state_dir": str(self._state),
                "data_dir": str(folder / "data"),
            }
        )
        self._environment = os.environ | {
            "CELLBLOCK_RUNTIME": runtime,
            "CELLBLOCK_WARM_KERNELS": "0",
            "CELLBLOCK_STATE_DIR": str(self._state),
            "CELLBLOCK_DATA_DIR": str(folder / "data"),
        }

    def crash(self) -> None:
        """Start the work and kill it: usually while it works, sometimes while it recovers from the last kill."""
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crashes", "--work", str(self._journal)],
            cwd=REPOSITORY,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if self._chance.random() < 0.2:
                time.sleep(self._chance.uniform(0.5, 2.0))
                return
            self._look(process, begun)
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            if not self._journal.stat().st_size or self._chance.random() < 0.5:
                self._wait_for_work()
            time.sleep(self._chance.uniform(0.0, LONGEST))
            if process.poll() is not None:
                raise AssertionError(process.communicate()[1][-3000:])
        finally:
            process.kill()
            process.communicate()
            self.found.kills += 1

    def _wait_for_work(self) -> None:
        """Wait until the journal grows, however slow the machine is."""
        before, end = self._journal.stat().st_size, time.monotonic() + CLEANED
        while self._journal.stat().st_size == before and time.monotonic() < end:
            time.sleep(0.02)

    def _look(self, process: subprocess.Popen[str], begun: float) -> None:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 2 * CLEANED)
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            raise AssertionError(f"it did not start: {process.communicate()[1][-3000:]}")
        self.found.slowest = max(self.found.slowest, time.monotonic() - begun)
        mine = set(json.loads(line))
        self.found.orphans += [f"container {kernel}" for kernel in containers(self._state) ^ mine]
        here = {folder.name for folder in self._state.glob("i-*/*") if folder.is_dir()}
        self.found.orphans += [f"folder {name}" for name in here ^ {kernel[:12] for kernel in mine}]

    async def judge(self, progress: Progress | None = None) -> Findings:
        """Start a last time, and compare the journal with what is left."""
        entries = [json.loads(line) for line in self._journal.read_text().splitlines()]
        cells = [entry for entry in entries if "cell" in entry]
        made = [entry for entry in entries if "checkpoint" in entry]
        self.found.cells, self.found.checkpoints = len(cells), len(made)
        async with AgentKernelManager(max_kernels=KERNELS, settings=self._settings) as manager:
            self._compare_history(cells)
            self._compare_counts(entries)
            task = None if progress is None else progress.add_task("restoring", total=len(made))
            for entry in made:
                try:
                    async with manager.acquire_kernel(entry["agent"], timeout=120) as (_kernel, session):
                        await manager.restore(session, entry["checkpoint"])
                        result = await manager.execute_code(session, "n, int(open('n').read())")
                    if result["result"] != f"({entry['value']}, {entry['value']})":
                        self.found.lost_checkpoints.append(f"{entry}: {result['result']}, {result['error']}")
                except CellblockError as error:
                    self.found.lost_checkpoints.append(f"{entry}: {error}")
                if progress is not None and task is not None:
                    progress.advance(task)
            for entry in made:
                await manager.end_session(entry["agent"])
        self.found.orphans += [f"container {kernel} in the end" for kernel in containers(self._state)]
        self.found.orphans += [str(path) for path in self._state.rglob("*")]
        return self.found

    def _compare_history(self, cells: list[dict[str, Any]]) -> None:
        history = History.open(self._settings.history_url, self._settings.data_path)
        with contextlib.closing(history):
            kept = {
                (record.session_id, cell.number): cell
                for record in history.sessions()
                for cell in history.cells(record.session_id)
            }
        for entry in cells:
            cell = kept.get((entry["session"], entry["cell"]))
            if cell is None or cell.outcome != "ok" or cell.result["result"] != str(entry["value"]):
                self.found.lost_cells.append(f"{entry}: {cell}")
        self.found.untrue += [f"cell {key} still runs" for key, cell in kept.items() if cell.outcome == "running"]

    def _compare_counts(self, entries: list[dict[str, Any]]) -> None:
        """Check that no count is below its newest checkpoint or above its cells: none was lost or ran twice."""
        checkpoints: dict[str, int] = {}
        last: dict[str, tuple[int, int]] = {}
        for entry in entries:
            session, value = entry["session"], entry["value"]
            if "checkpoint" in entry:
                checkpoints[session] = value
                continue
            number, before = last.get(session, (0, 0))
            if not checkpoints.get(session, 0) < value <= before + entry["cell"] - number:
                self.found.untrue.append(f"{entry} after {before} at cell {number}")
            last[session] = entry["cell"], value


def containers(state: Path) -> set[str]:
    """Return the ids of the kernels that have a wire folder in a state folder."""
    with contextlib.closing(connect(60)) as client:
        found = client.api.containers(all=True, filters={"label": INSTANCE_LABEL})
        return {
            one["Labels"][KERNEL_LABEL]
            for one in found
            if any(mount["Source"].startswith(f"{state}/") for mount in one["Mounts"])
        }


def run(times: int, runtime: str, seed: int) -> Findings:
    """Run a series of kills with a progress bar, and return what was found."""
    with tempfile.TemporaryDirectory(prefix="cb-crash-") as folder, Progress(console=console, transient=True) as shown:
        crashes = Crashes(Path(folder), runtime, seed)
        task = shown.add_task(f"kills under {runtime}", total=times)
        for _ in range(times):
            crashes.crash()
            shown.advance(task)
        return asyncio.run(crashes.judge(shown))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runtime", action="append", help="default: every one of the engine's")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        asyncio.run(work(arguments.work))
        return 0
    runtimes = arguments.runtime or engine_runtimes()
    table = Table("runtime", "kills", "orphans", "cells", "lost", "checkpoints", "lost", "untrue", "slowest start s")
    clean = True
    for runtime in runtimes:
        found = run(arguments.times // len(runtimes), runtime, arguments.seed)
        clean = clean and found.clean
        counts = [found.kills, len(found.orphans), found.cells, len(found.lost_cells)]
        counts += [found.checkpoints, len(found.lost_checkpoints), len(found.untrue)]
        table.add_row(runtime, *map(str, counts), f"{found.slowest:.1f}")
        for fault in [*found.orphans, *found.lost_cells, *found.lost_checkpoints, *found.untrue][:20]:
            console.print(fault, style="red", markup=False)
    console.print(table)
    return int(not clean)


if __name__ == "__main__":
    command.run_main(main)
