"""One engine for all tests of this folder: each test has it running, whatever the one before did to it."""

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
    # A short path of its own: an engine's sockets lie deep, and a socket's path has 107 characters at most.
    with private_engine(Path(tempfile.mkdtemp(prefix="cb-engine-"))) as engine:
        yield engine


@pytest.fixture
def engine(_engine: PrivateEngine) -> PrivateEngine:
    _engine.ensure_running()
    return _engine


@pytest.fixture
def state(state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever is in it is this test's."""
    monkeypatch.setenv("CELLBLOCK_STATE_DIR", str(state))
    return state


@pytest.fixture
def proxy(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProxy]:
    """A proxy before the engine. A test that wants to go through it says so with DOCKER_HOST."""
    folder = Path(tempfile.mkdtemp(prefix="cb-proxy-"))
    with engine_proxy(engine.url, folder) as proxy:
        yield proxy
    shutil.rmtree(folder, ignore_errors=True)
