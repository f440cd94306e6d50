"""`cellblock prune` on a real engine: what it prints is what it did, and it touches nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.image.recipe import Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History
from tests.conftest import REPOSITORY, make_manager
from tests.docker.recovering import program


@pytest.fixture(autouse=True)
def own_state(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, in which no warm kernel is just being made when its process dies.

    The programs' cells may run for long: a slow machine must not end them.
    """
    policy = tmp_path / "patient.toml"
    policy.write_text("[limits]\nexecution_time_s = 600\n")
    monkeypatch.setenv("CELLBLOCK_POLICY", str(policy))
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(state))
    monkeypatch.setenv("CELLBLOCK_WARM_KERNELS", "0")
    return state


@pytest.fixture
def strangers() -> Iterator[set[str]]:
    """Containers that are not Cellblock's, though one is named like its own. Yields their ids."""
    client = docker.from_env()
    made = []
    try:
        image = Recipe.of(Settings.load(), Image()).name
        for name in ("cellblock-stranger", "stranger"):
            name = f"{name}-{os.getpid()}"
            made += [client.containers.create(image, ["true"], name=name, network_mode="none")]
        yield {str(container.id) for container in made}
    finally:
        for container in made:
            container.remove(force=True)
        client.close()


def prune(*options: str, code: int = 0) -> tuple[str, str]:
    """Run the command. Returns what it wrote on stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.app", "prune", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def pruned(*options: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(prune("--json", *options)[0])
    return said


def containers(state: Path | None = None) -> set[str]:
    """Return the ids of the engine's containers; with a state folder, only of Cellblock's that use it."""
    client = docker.from_env()
    try:
        if state is None:
            return {each["Id"] for each in client.api.containers(all=True)}
        found = client.api.containers(all=True, filters={"label": INSTANCE_LABEL})
        return {
            each["Id"] for each in found if any(mount["Source"].startswith(f"{state}/") for mount in each["Mounts"])
        }
    finally:
        client.close()


def opened() -> History:
    settings = Settings.load()
    return History.open(settings.history_url, settings.data_path)


def test_prune_does_what_it_prints(runtime: str, own_state: Path, strangers: set[str]) -> None:
    """A dead orchestrator's containers and folder go, and its sessions sleep. A live one's, and strangers, stay."""
    with program(runtime, prefix="living-") as living:
        alive = containers(own_state)
        with program(runtime) as dead:
            leftovers = containers(own_state) - alive
            folders = {folder for folder in own_state.iterdir() if folder.is_dir()}
            dead.kill()
            dead.wait()
        found = pruned("--dry-run")
        assert leftovers <= set(found["containers"])
        assert not (strangers | alive) & set(found["containers"])
        (folder,) = map(Path, found["folders"])
        assert folder in folders
        assert len(found["sessions"]) == 3
        assert leftovers | alive | strangers <= containers()
        done = pruned()
        left = containers()
        assert done["removed"] == {
            "containers": len(set(found["containers"]) - left),
            "folders": 1,
            "old_sessions": 0,
        }
        assert done["left"] == {"containers": [], "folders": []}
        assert not leftovers & left
        assert alive | strangers <= left
        assert not folder.exists()
        assert folders - {folder} == {each for each in own_state.iterdir() if each.is_dir()}
        assert living.poll() is None
        assert done["kept_sessions"] == dict.fromkeys(found["sessions"], "asleep")
        assert done["ended_sessions"] == []
        check_asleep(found["sessions"])
        again = pruned()
        assert again["removed"]["folders"] == again["removed"]["old_sessions"] == 0
        assert again["kept_sessions"] == {}
    pruned()  # the live one has been killed now
    assert containers(own_state) == set()
    assert not list(own_state.rglob("*"))


def check_asleep(sessions: list[str]) -> None:
    """Check that these sessions sleep, and that the file of each newest checkpoint is whole."""
    history = opened()
    files = CheckpointFiles(Settings.load().data_path)
    for session in sessions:
        assert history.find(session)[0].state == "asleep"
        with files.reading(files.path(history.checkpoints_of(session)[0].checkpoint_id)) as reader:
            assert reader.header["session_id"] == session
    history.close()


@pytest.mark.one_runtime
def test_prune_says_what_it_leaves(
    runtime: str, own_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels whose sessions are in another data folder are left for a start there; their folder is named."""
    ours = os.environ["CELLBLOCK_DATA_DIR"]
    monkeypatch.setenv("CELLBLOCK_DATA_DIR", str(tmp_path / "theirs"))
    with program(runtime) as dead:
        theirs = containers(own_state)
        dead.kill()
        dead.wait()
    monkeypatch.setenv("CELLBLOCK_DATA_DIR", ours)
    done = pruned()
    assert theirs <= containers()
    assert done["removed"]["folders"] == 0
    assert [Path(folder).parent for folder in done["left"]["folders"]] == [own_state]
    said, _ = prune()
    assert "left: 0 containers and 1 folders of dead processes" in said
    assert "prune --all" in said
    monkeypatch.setenv("CELLBLOCK_DATA_DIR", str(tmp_path / "theirs"))
    assert len(pruned()["kept_sessions"]) == 3
    assert not theirs & containers()


@pytest.mark.one_runtime
async def test_prune_applies_retention_and_says_so(
    runtime: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended sessions are deleted first, then the oldest outputs of one that sleeps."""
    async with make_manager(runtime) as manager:
        for agent in ("ended", "sleeps"):
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                for number in range(4):
                    await manager.execute(session, f"print('{number}' * 1_000_000)")
        await manager.end_session("ended")
        assert await manager.hibernate("sleeps")
    monkeypatch.setenv("CELLBLOCK_HISTORY_MB", "2")
    done = pruned()
    assert done["removed"]["old_sessions"] == 1
    assert 5_900_000 < done["freed_bytes"] < 6_100_000
    files = sum(file.stat().st_size for file in data_folder.rglob("*") if file.is_file())
    assert files < 2 * 2**20 + 1_000_000
    history = opened()
    (kept,) = history.sessions()
    cells = history.cells(kept.session_id)
    history.close()
    assert kept.state == "asleep"
    assert ["outputs_deleted" in cell.result for cell in cells] == [True, True, False, False]
    said, _ = prune()
    assert "0 old sessions" in said
    assert "freed" not in said


def test_prune_fails_with_1_and_changes_nothing_without_an_engine(
    own_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = containers(own_state)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("CELLBLOCK_ENGINE_TIMEOUT", "1")
    for options in (["--dry-run"], ["--json"]):
        said, error = prune(*options, code=1)
        assert said == ""
        assert "cellblock" in error
        assert "Traceback" not in error
    monkeypatch.delenv("DOCKER_HOST")
    assert containers(own_state) == before


def test_a_wrong_option_exits_with_2() -> None:
    assert "No such option" in prune("--everything", code=2)[1]
