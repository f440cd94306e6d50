"""Fixtures of all tests: the engine's runtimes, and managers on them. Everything here is real."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
from sqlalchemy import create_engine, text

from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession, Settings
from orchestrator.container.engine import connect, gvisor_fault
from tests.filescheduling import FileScheduling
from tests.postgres import postgres_server

# A shell that starts something in the background has it ignore SIGINT, and whatever that starts too: the programs that
# these tests interrupt would be deaf.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes is no promise
hypothesis.settings.load_profile("any machine")

os.environ.setdefault("CELLBLOCK_AUDIT_LOG", "off")  # the tests of it say where


@pytest.fixture(scope="module", autouse=True)
def _data_folder_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a module's tests share has its data apart from the machine's, and from every other module's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLBLOCK_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a data folder of its own: sessions outlive managers."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("CELLBLOCK_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder of the test's own with a short path: those of unix sockets end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        yield Path(folder)


REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
EVERY_RUNTIME = bool(os.environ.get("CELLBLOCK_TEST_EVERY_RUNTIME"))

T = TypeVar("T")
ManagerMaker = Callable[..., AgentKernelManager]


@functools.cache  # asked for each test that takes a runtime
def engine_runtimes() -> list[str]:
    """Return the runtimes that kernels can run under here; none without an engine, and then tests fail, not skip."""
    client = connect(30)
    try:
        runtimes = client.info()["Runtimes"]
    finally:
        client.close()
    return ["runc"] if gvisor_fault(runtimes) else ["runc", "runsc"]


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    return FileScheduling(config, log)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes ``runtime`` once under each runtime of the engine; one marked ``one_runtime``, once.

    CELLBLOCK_TEST_EVERY_RUNTIME runs those too under each.
    """
    if "runtime" in metafunc.fixturenames:
        is_one = metafunc.definition.get_closest_marker("one_runtime") and not EVERY_RUNTIME
        runtimes = engine_runtimes()
        metafunc.parametrize("runtime", runtimes[:1] if is_one else runtimes, scope="module")


def make_manager(
    runtime: str,
    *,
    max_kernels: int = 2,
    warm: int = 0,
    limits: KernelResourceLimits | None = None,
    **settings: object,
) -> AgentKernelManager:
    """Make a manager on one runtime; ``settings`` are those of the host."""
    chosen = Settings.load().model_copy(update={"runtime": runtime, "warm_kernels": warm, **settings})
    return AgentKernelManager(max_kernels=max_kernels, resource_limits=limits, settings=chosen)


@contextlib.asynccontextmanager
async def one_session(runtime: str, **settings: Any) -> AsyncIterator[tuple[AgentKernelManager, KernelSession]]:
    """Open a manager, and one agent's session in it; ``settings`` as for ``make_manager``."""
    async with (
        make_manager(runtime, **settings) as manager,
        manager.acquire_kernel("agent", timeout=60) as (_kernel, session),
    ):
        yield manager, session


async def awaited(value: T | Awaitable[T]) -> T:
    """Return what a call returned that a manager answers at once, and the manager of a server after a wait."""
    return await value if inspect.isawaitable(value) else value


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of real workbooks; it is handed over beside the repository, and is no part of it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: the tests on real workbooks need it")
    return folder


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> str:
    """The URL of the server's database, emptied."""
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.db"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url
