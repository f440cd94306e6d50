"""One engine for all tests of this folder: each test has it running, whatever the one before did to it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
