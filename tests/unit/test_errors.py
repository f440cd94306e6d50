"""Every error has a stable code, a dict form, and survives pickling and copying."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.errors import CellblockError, PolicyError, PolicyFault
from orchestrator.outcome import Outcome
from orchestrator.output.events import ExecutionResult, StreamOutput
from orchestrator.policy.policy import Policy
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.remote.failures import failure
from orchestrator.server.answers import dumps
from orchestrator.server.problems import problem
from orchestrator.sessions.registry import SessionRegistry

RESULT = ExecutionResult(
    status="error", outcome=Outcome.TIMEOUT, outputs=(StreamOutput("stdout", "x"),), error=None, msg_id="m",
    execution_count=1, duration_s=30.0, truncated=None, kernel_state="dead", runtime="runc",
)  # fmt: skip
SAYS = {"message": "it failed.", "remedy": "Try again."}
FAULTS = (PolicyFault("limits.memory_mb", 3, "is negative"),)

# Each class's code, and the arguments of one error of it. Users, dashboards and the HTTP API have these codes: one
# that changes breaks them.
ERRORS: dict[str, tuple[str, dict[str, Any]]] = {
    "CellblockError": ("cellblock", SAYS),
    "InvalidInputError": ("invalid_input", SAYS),
    "InvalidAgentIdError": ("invalid_agent_id", SAYS),
    "InvalidCodeError": ("invalid_code", SAYS),
    "UnknownKernelNameError": ("unknown_kernel_name", SAYS),
    "PolicyError": ("policy", {**SAYS, "path": Path("a.toml"), "faults": FAULTS}),
    "SandboxFloorError": ("sandbox_floor", {"breaches": ("no seccomp profile",)}),
    "SettingsError": ("settings", SAYS),
    "EngineError": ("engine", SAYS),
    "EngineUnavailableError": ("engine_unavailable", SAYS),
    "EngineTimeoutError": ("engine_timeout", SAYS),
    "EnginePermissionError": ("engine_permission", SAYS),
    "EngineSetupError": ("engine_setup", SAYS),
    "EngineUnsupportedError": ("engine_unsupported", {**SAYS, "kind": "podman"}),
    "ImageMissingError": ("image_missing", {**SAYS, "image": "cellblock-sandbox:1"}),
    "ImageBuildError": ("image_build", SAYS),
    "ImageInUseError": ("image_in_use", {**SAYS, "image": "cellblock-sandbox:1"}),
    "UnknownRuntimeError": ("unknown_runtime", {"runtime": "runsc", "available": ("runc",), "remedy": "Install it."}),
    "KernelError": ("kernel", SAYS),
    "KernelStartError": ("kernel_start", {**SAYS, "cause": "container", "log": "no space left"}),
    "UserIdTakenError": ("user_id_taken", {"uid": "70001", "container": "cellblock-1"}),
    "KernelDiedError": ("kernel_died", {**SAYS, "kernel_id": "k", "reason": Outcome.OOM, "exit_code": 137}),
    "KernelTimeoutError": ("kernel_timeout", {**SAYS, "result": RESULT}),
    "KernelPoolExhaustedError": (
        "kernel_pool_exhausted",
        {**SAYS, "max_kernels": 2, "waited": 1.5, "reason": "memory", "expected_wait": 3.0, "needed_bytes": 9,
         "free_bytes": 4},
    ),
    "PackageError": ("package", {**SAYS, "reason": "not_allowed"}),
    "CommandLimitError": ("command_limit", {**SAYS, "limit": 16}),
    "SessionBusyError": ("session_busy", {**SAYS, "agent_id": "a", "waited": 1.5}),
    "SessionElsewhereError": (
        "session_elsewhere", {**SAYS, "agent_id": "a", "owner": "boot/1/i", "pid": 7, "host": "h"}
    ),
    "SessionEndedError": ("session_ended", {**SAYS, "reason": "idle"}),
    "ManagerClosedError": ("manager_closed", {**SAYS, "reason": "shutdown"}),
    "WrongEventLoopError": ("wrong_event_loop", SAYS),
    "FileTransferError": ("file_transfer", {**SAYS, "path": "data/a.csv"}),
    "StoreError": ("store", {**SAYS, "result": RESULT}),
    "NodeLeaseError": ("node_lease", {**SAYS, "result": RESULT}),
    "NotOwnerError": ("not_owner", {**SAYS, "session_id": "s", "owner": "boot/1/i", "undone": True}),
    "QuotaExceededError": ("quota_exceeded", {**SAYS, "agent_id": "a", "used_bytes": 5, "quota_bytes": 4}),
    "CheckpointError": ("checkpoint", {**SAYS, "checkpoint": "c"}),
    "CheckpointMissingError": ("checkpoint_missing", {**SAYS, "checkpoint": "c"}),
    "CheckpointDamagedError": ("checkpoint_damaged", {**SAYS, "checkpoint": "c"}),
    "CheckpointFormatError": ("checkpoint_format", {**SAYS, "checkpoint": "c"}),
    "CheckpointForeignError": ("checkpoint_foreign", {**SAYS, "checkpoint": "c", "agent_id": "a"}),
    "CheckpointTooLargeError": ("checkpoint_too_large", {**SAYS, "checkpoint": "c", "limit_mb": 64}),
    "CheckpointStateError": ("checkpoint_state", {**SAYS, "checkpoint": "c"}),
    "NotebookError": ("notebook", SAYS),
    "NotebookCreationError": ("notebook_creation", SAYS),
    "NotebookNotFoundError": ("notebook_not_found", {**SAYS, "notebook_id": "n"}),
    "NotebookConflictError": ("notebook_conflict", {**SAYS, "path": "a.ipynb", "cells": ("c",)}),
    "KernelNotFoundError": ("kernel_not_found", {**SAYS, "kernel_name": "ir"}),
    "CellNotFoundError": ("cell_not_found", {**SAYS, "cell_id": "c"}),
    "InvalidPositionError": ("invalid_position", {**SAYS, "position": 9, "total": 3}),
    "ClusterError": ("cluster", SAYS),
    "RayMissingError": ("ray_missing", SAYS),
    "RayUnavailableError": ("ray_unavailable", SAYS),
    "ServerError": ("server", SAYS),
    "UnauthorizedError": ("unauthorized", SAYS),
    "ForbiddenError": ("forbidden", SAYS),
    "UnknownSessionError": ("unknown_session", {**SAYS, "session_id": "s"}),
    "TooManyRequestsError": ("too_many_requests", {**SAYS, "limit": 8, "retry_after": 2.0}),
    "RequestTooLargeError": ("request_too_large", {**SAYS, "limit": 1024}),
    "RequestTimeoutError": ("request_timeout", SAYS),
    "IdempotencyError": ("idempotency", {**SAYS, "key": "k"}),
    "ServerUnavailableError": ("server_unavailable", {**SAYS, "undone": True}),
    "UntrustedServerError": ("untrusted_server", SAYS),
    "IncompatibleServerError": (
        "incompatible_server", {**SAYS, "protocol": 3, "spoken": (1, 2), "version": "0.9"}
    ),
    "NodeLostError": (
        "node_lost",
        {**SAYS, "kernel_id": "k", "reason": Outcome.KERNEL_DIED, "exit_code": None, "node_id": "n1", "undone": True},
    ),
    "NoNodeError": (
        "no_node",
        {**SAYS, "max_kernels": 2, "waited": 1.5, "reason": "memory", "expected_wait": 3.0, "needed_bytes": 9,
         "free_bytes": 4, "refusals": (errors.NodeRefusal("n1", "kernel", "full"),)},
    ),
}  # fmt: skip


def classes(base: type[CellblockError] = CellblockError) -> Iterator[type[CellblockError]]:
    """Yield every error class that Cellblock defines, in any module."""
    if base.__module__.startswith("orchestrator."):
        yield base
    for kind in base.__subclasses__():
        yield from classes(kind)


def make(name: str) -> CellblockError:
    error: CellblockError = getattr(errors, name)(**ERRORS[name][1])
    return error


def test_every_class_has_the_code_that_users_know() -> None:
    """No class is missing here, and each code is a class's own."""
    assert {kind.__name__: kind.code for kind in classes()} == {name: code for name, (code, _) in ERRORS.items()}
    assert len({kind.code for kind in classes()}) == len(ERRORS)


def test_the_table_of_errors_shows_each_code() -> None:
    """The module's docstring names each class once, and its code on the same line."""
    table = [line.split() for line in str(errors.__doc__).splitlines()]
    for name, (code, _) in ERRORS.items():
        assert [code in words for words in table if name in words] == [True], name


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("same", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301 - made here
def test_an_error_survives_pickling_and_copying(name: str, same: Callable[[CellblockError], CellblockError]) -> None:
    """multiprocessing and Celery hand errors on by pickle: class, text, arguments, notes and every field are there."""
    error = make(name)
    error.add_note("while the nightly report ran")
    found = same(error)
    assert found is not error
    assert type(found) is type(error)
    assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("name", ERRORS)
def test_the_dict_form_is_json_and_has_every_field(name: str) -> None:
    """``code``, ``message``, ``remedy`` and ``fields`` are there, and JSON takes them strictly."""
    error = make(name)
    form = error.as_dict()
    assert set(form) == {"code", "message", "remedy", "fields"}
    assert (form["code"], form["message"], form["remedy"]) == (error.code, error.message, error.remedy)
    assert set(form["fields"]) == set(vars(error)) - {"message", "remedy"}
    assert json.loads(json.dumps(form, allow_nan=False)) == form


def test_fields_in_the_dict_form_are_plain() -> None:
    """Results, faults, paths and outcomes are as JSON has them; what JSON cannot hold is None."""
    assert make("KernelTimeoutError").as_dict()["fields"] == {"result": RESULT.as_dict()}
    assert make("KernelDiedError").as_dict()["fields"] == {"kernel_id": "k", "reason": "oom", "exit_code": 137}
    assert make("PolicyError").as_dict()["fields"] == {
        "path": "a.toml", "key": "limits.memory_mb", "line": 3,
        "faults": [{"key": "limits.memory_mb", "line": 3, "reason": "is negative"}],
    }  # fmt: skip
    error = errors.SessionBusyError("it is busy.", agent_id="a", waited=float("inf"))
    assert error.as_dict()["fields"] == {"agent_id": "a", "waited": None}


def test_an_error_shows_its_message_and_then_its_remedy() -> None:
    """``str`` ends with the remedy, where there is one."""
    assert str(make("EngineError")) == "it failed. Try again."
    assert str(errors.EngineError("it failed.")) == "it failed."
    assert str(PolicyError.of(Path("a.toml"), FAULTS)) == "a.toml:3: limits.memory_mb: is negative"


def test_a_subclass_of_a_user_keeps_the_code_that_it_is_mapped_by() -> None:
    """A class without a code of its own has its parent's."""

    class OwnError(errors.PolicyError):
        pass

    own: Any = OwnError  # mypy expects a dataclass's own arguments
    error = own("it failed.", path=Path("a.toml"), faults=FAULTS)
    assert (error.code, error.as_dict()["fields"]["line"]) == ("policy", 3)


async def test_a_session_that_another_call_holds_is_busy() -> None:
    """Whoever waits for it gets a SessionBusyError after the timeout, which says nothing of the pool."""
    registry = SessionRegistry(KernelPool(1), Policy(), lambda work: work.close())
    async with registry.locked("a", None):
        with pytest.raises(errors.SessionBusyError) as caught:
            async with registry.locked("a", 0.01):
                pass
    assert isinstance(caught.value, TimeoutError)
    assert not isinstance(caught.value, errors.KernelPoolExhaustedError)
    assert (caught.value.agent_id, caught.value.waited) == ("a", 0.01)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_a_server_is_the_same_to_its_client(name: str) -> None:
    """Every class has an HTTP status, and its problem+json becomes the class again, with its text and its fields."""
    error = make(name)
    form = json.loads(dumps(problem(error)))
    assert 400 <= form["status"] < 600
    found = failure(form, form["status"])
    assert type(found) is type(error)
    assert (str(found), found.code, found.as_dict()) == (str(error), error.code, error.as_dict())


@pytest.mark.parametrize(
    "form", [None, [], "x", {}, {"code": 1}, {"code": "nosuch", "detail": "d"}, {"detail": "\ud800"}]
)
def test_any_other_answer_is_a_server_error(form: object) -> None:
    assert type(failure(form, 502)) is errors.ServerError
