"""The public surface: its names, their types as a user's mypy sees them, and what importing them brings in."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
import types
import zipfile
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import pytest

import cellblock
import cellblock.sync
import orchestrator
import orchestrator.errors
import orchestrator.output.events
from cellblock.servermanager import ServerManager
from cellblock.sync import Manager
from orchestrator.jupyter import relaystart
from orchestrator.remote.remotemanager import RemoteKernelManager
from tests.conftest import REPOSITORY

ERRORS = {
    "CellblockError", "CheckpointDamagedError", "CheckpointError", "CheckpointForeignError", "CheckpointFormatError",
    "CheckpointMissingError", "CheckpointStateError", "CheckpointTooLargeError", "CommandLimitError", "EngineError",
    "EnginePermissionError", "EngineSetupError", "EngineTimeoutError", "EngineUnavailableError",
    "EngineUnsupportedError", "FileFault", "FileTransferError",
    "ImageBuildError", "ImageInUseError", "ImageMissingError",
    "InvalidAgentIdError", "InvalidCodeError", "InvalidInputError",
    "KernelDiedError", "KernelError", "KernelPoolExhaustedError", "KernelStartError", "KernelTimeoutError",
    "ManagerClosedError", "NodeLeaseError", "NotOwnerError",
    "PackageError", "PolicyError", "PolicyFault", "QuotaExceededError", "SandboxFloorError",
    "Scarcity",
    "SessionBusyError", "SessionElsewhereError", "SessionEndedError",
    "SettingsError", "StoreError", "UnknownKernelNameError", "UnknownRuntimeError", "UserIdTakenError",
    "WrongEventLoopError",
    "ClusterError", "RayMissingError", "RayUnavailableError",
    "CellNotFoundError", "InvalidPositionError", "KernelNotFoundError", "NotebookConflictError",
    "NotebookCreationError", "NotebookError", "NotebookNotFoundError",
    "ForbiddenError", "IdempotencyError", "RequestTimeoutError", "RequestTooLargeError", "ServerError",
    "ServerUnavailableError", "TooManyRequestsError", "UnauthorizedError", "UnknownSessionError",
    "IncompatibleServerError", "NoNodeError", "NodeLostError", "NodeRefusal", "UntrustedServerError",
}  # fmt: skip
EVENTS = {
    "CellFinished", "ClearOutput", "CommMessage", "DisplayData", "ErrorOutput", "Event", "Evidence", "ExecuteResult",
    "ExecutionResult", "InputHandler", "InputRequest", "KernelState", "Outcome", "Output", "OutputDropped",
    "OutputEvent", "Status", "StreamOutput", "Truncation", "UpdateDisplayData",
}  # fmt: skip
OTHERS = {
    "AgentKernelManager", "Cell", "CellExecutionResult", "CellOptions", "CellSelector", "CellType", "ChangedFile",
    "Checkpoint", "CommandEvent", "CommandFinished", "CommandOutput", "CommandResult", "Dispatcher", "FileInfo",
    "Kernel", "KernelPool", "KernelResource", "KernelResourceLimits", "KernelSession", "LeaseRequest", "LeasedKernel",
    "Lost", "Monitor", "NotebookDocument", "Notebooks", "Policy", "Recovery", "Restored", "RunningCell",
    "RunningCommand", "Sample", "Settings", "Telemetry", "Tool", "Usage", "VariableInfo",
}  # fmt: skip
OF_THE_COMMAND_LINE = ("rich", "textual", "typer")


def defined_in(module: types.ModuleType) -> set[str]:
    """Return the public classes that a module defines."""
    classes = {name for name, value in vars(module).items() if inspect.isclass(value) and not name.startswith("_")}
    return {name for name in classes if getattr(module, name).__module__ == module.__name__}


def test_the_public_names_are_exactly_these() -> None:
    """A name that goes away, or is added by accident, is noticed; each can be imported."""
    assert len(orchestrator.__all__) == len(set(orchestrator.__all__))
    assert set(orchestrator.__all__) == ERRORS | EVENTS | OTHERS
    assert all(hasattr(orchestrator, name) for name in orchestrator.__all__)


def test_every_error_and_event_is_public() -> None:
    """A class added to ``errors`` or ``events`` has to be exported."""
    assert defined_in(orchestrator.errors) <= ERRORS
    assert defined_in(orchestrator.output.events) <= EVENTS


def test_cellblock_hands_on_the_same_objects() -> None:
    assert cellblock.__all__ == orchestrator.__all__
    assert all(getattr(cellblock, name) is getattr(orchestrator, name) for name in orchestrator.__all__)


def test_the_version_is_that_of_the_package(repository: Path) -> None:
    """pyproject.toml, the package's metadata and ``__version__`` agree; the command shows it."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert cellblock.__version__ == orchestrator.__version__ == version("cellblock") == project["version"]
    done = run_python("from orchestrator.cli.entry import main; import sys; sys.argv[1:] = ['--version']; main()")
    assert (done.returncode, done.stdout) == (0, f"cellblock {project['version']}\n"), done.stderr


def test_the_synchronous_manager_has_every_public_method_and_its_parameters() -> None:
    """The reference's three synchronous methods are coroutines in the manager's other spelling, and not repeated."""
    names = {name for name in dir(orchestrator.AgentKernelManager) if not name.startswith("_")}
    twins = {"save_checkpoint", "restore_checkpoint", "save_session_as_notebook"}
    assert names - twins <= set(dir(Manager))
    for name in names - twins - {"shutdown"}:
        ours, theirs = inspect.getattr_static(Manager, name), getattr(orchestrator.AgentKernelManager, name)
        if callable(theirs):
            assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters, name


def test_the_synchronous_manager_of_a_server_has_every_method_and_its_parameters() -> None:
    names = {name for name in dir(RemoteKernelManager) if not name.startswith("_")} - {"shutdown"}
    assert names | {"shutdown"} == {name for name in dir(ServerManager) if not name.startswith("_")}
    for name in names:
        ours, theirs = inspect.getattr_static(ServerManager, name), getattr(RemoteKernelManager, name)
        assert inspect.signature(ours) == inspect.signature(theirs), name


@pytest.mark.parametrize("name", ["Notebooks", "Dispatcher"])
def test_the_synchronous_notebooks_have_every_method_and_its_parameters(name: str) -> None:
    theirs, ours = getattr(orchestrator, name), getattr(cellblock.sync, name)
    names = {each for each in dir(theirs) if not each.startswith("_")}
    assert names == {each for each in dir(ours) if not each.startswith("_")}
    for each in names:
        if callable(getattr(theirs, each)):
            assert inspect.signature(getattr(ours, each)) == inspect.signature(getattr(theirs, each)), each


def test_the_synchronous_manager_needs_no_engine_to_be_made_and_shut_down() -> None:
    """It refuses what AgentKernelManager refuses; after ``shutdown``, which may be repeated, it refuses all calls."""
    with pytest.raises(orchestrator.UnknownKernelNameError):
        Manager(kernel_name="julia")
    manager = Manager(3, keep_sessions=True)
    assert (manager.max_kernels, manager.keep_sessions, manager.sessions, manager.runtime) == (3, True, {}, "")
    manager.shutdown()
    manager.shutdown()
    with pytest.raises(orchestrator.ManagerClosedError):
        manager.start()
    context: AbstractContextManager[object] = manager.acquire_kernel("agent")
    with pytest.raises(orchestrator.ManagerClosedError), context:
        pass


def test_a_users_file_with_every_public_call_is_typed(repository: Path, tmp_path: Path) -> None:
    """mypy --strict, with no settings of this project, finds the mistakes below it and nothing else."""
    source = f"{(repository / 'tests' / 'contract' / 'typed_user.py').read_text()}\n{MISTAKES}"
    (tmp_path / "user.py").write_text(source)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "--follow-imports=silent", str(tmp_path / "user.py")],
        cwd=repository, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    wrong = {number for number, line in enumerate(source.splitlines(), start=1) if "# wrong" in line}
    assert {int(number) for number in re.findall(r"user\.py:(\d+): error: ", done.stdout)} == wrong, done.stdout


MISTAKES = """
def mistakes(manager: Manager, session: KernelSession) -> None:
    manager.execute(session, 1)  # wrong: not a string
    manager.execute(session, "1", tries=3)  # wrong: no such parameter
    manager.put_file(session, b"")  # wrong: a parameter is missing
    number: int = manager.execute(session, "1").stdout  # wrong: a string
    with manager.acquire_kernel(1) as (kernel, _):  # wrong: not a string
        print(kernel)
    for event in manager.stream_code(session, "1"):
        text: str = event  # wrong: an event
    Manager("many")  # wrong: not a number
    manager.sessions = {}  # wrong: read only
"""


def run_python(program: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python in which the modules of the names in ``blocked`` cannot be imported."""
    setup = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))"
    return subprocess.run(
        [sys.executable, "-c", f"{setup}\n{program}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_kernel_of_jupyter_starts_without_what_it_does_not_need() -> None:
    """The relay is imported at each start: neither nbformat nor jsonschema, a fifth of the time, is among it."""
    done = run_python("import orchestrator.jupyter.relay", "nbformat", "jsonschema")
    assert done.returncode == 0, done.stderr


def test_a_kernel_of_jupyter_starts_without_collecting_garbage() -> None:
    """While the relay imports the library, where it takes a third of the time; afterwards the collector is on."""
    program = f"""
import contextlib, gc, runpy, sys
seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase))
sys.argv[1:] = ["--help"]
with contextlib.suppress(SystemExit):
    runpy.run_path({relaystart.__file__!r}, run_name="__main__")
print(len(seen) < 20, gc.isenabled())
"""
    done = run_python(program)
    assert done.stdout.endswith("\nTrue True\n"), done.stdout + done.stderr


def test_the_library_imports_nothing_of_the_command_line() -> None:
    """With typer, rich and textual missing, every module outside ``cli/`` can be imported."""
    program = """
import pkgutil, importlib, cellblock, cellblock.sync, orchestrator
for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if module.name.partition("orchestrator.")[2].partition(".")[0] != "cli":
        importlib.import_module(module.name)
print(cellblock.AgentKernelManager.__name__)
"""
    done = run_python(program, *OF_THE_COMMAND_LINE)
    assert (done.returncode, done.stdout) == (0, "AgentKernelManager\n"), done.stderr


@pytest.mark.parametrize("missing", OF_THE_COMMAND_LINE)
def test_the_command_without_its_extra_says_what_to_install(missing: str) -> None:
    """One line on stderr, and exit status 2."""
    done = run_python("from orchestrator.cli.entry import main; main()", missing)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'cellblock[cli]'" in done.stderr


def test_the_wheel_has_both_packages_and_asks_for_the_command_line_only_as_an_extra(
    repository: Path, tmp_path: Path
) -> None:
    """And their ``py.typed``, policies and image sources."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        lines = content.read(metadata).decode().splitlines()
    assert names >= {
        "cellblock/__init__.py", "cellblock/sync.py", "cellblock/py.typed", "orchestrator/py.typed",
        "orchestrator/manager.py", "orchestrator/data/policies/default.toml",
        "orchestrator/data/sandbox_image/Dockerfile",
    }  # fmt: skip
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    for name in OF_THE_COMMAND_LINE:
        (requirement,) = (line for line in needed if line.startswith(name))
        assert requirement.endswith("extra == 'cli'")
