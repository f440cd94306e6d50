"""One private engine for all tests of this folder, running at the start of each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.engineproxy import EngineProxy, engine_proxy
from tests.faults.privateengine import PrivateEngine, private_engine


@pytest.fixture(scope="package")
def _engine() -> Iterator[PrivateEngine]:
    # A short path, because the path of a socket may have at most 107 characters.
    with private_engine(Path(tempfile.mkdtemp(prefix="cb-engine-"))) as engine:
        yield engine


@pytest.fixture
def engine(_engine: PrivateEngine) -> PrivateEngine:
    _engine.ensure_running()
    return _engine


@pytest.fixture
def state(state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this process use the test's own state folder."""
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(state))
    return state


@pytest.fixture
def proxy(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProxy]:
    """Start a proxy in front of the engine. A test uses it by setting DOCKER_HOST."""
    folder = Path(tempfile.mkdtemp(prefix="cb-proxy-"))
    with engine_proxy(engine.url, folder) as proxy:
        yield proxy
    shutil.rmtree(folder, ignore_errors=True)
