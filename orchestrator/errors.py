"""Every exception that Cellblock raises on purpose.

    CellblockError
    ├── InvalidInputError (ValueError)         what the caller passed cannot be used; nothing was started
    │   ├── InvalidAgentIdError
    │   ├── InvalidCodeError
    │   ├── UnknownKernelNameError
    │   └── PolicyError                        a policy file, named by file, key and line
    ├── SandboxFloorError                      a container without one of the locks that all have
    ├── SettingsError (ValueError)             a CELLBLOCK_* variable or a line of .env
    ├── EngineError                            the Docker engine
    │   ├── EngineUnavailableError (ConnectionError)
    │   │   └── EngineTimeoutError (TimeoutError)   it is there, and hangs
    │   ├── EnginePermissionError (PermissionError)
    │   ├── EngineSetupError                   the engine could not be installed or started
    │   ├── ImageMissingError (LookupError)
    │   ├── ImageBuildError
    │   └── UnknownRuntimeError (LookupError)
    ├── KernelError                            one kernel, or the pool of them
    │   ├── KernelStartError
    │   ├── KernelDiedError
    │   ├── KernelTimeoutError (TimeoutError)
    │   └── KernelPoolExhaustedError (TimeoutError)
    ├── SessionEndedError (LookupError)        the session is over; acquire the kernel again
    ├── ManagerClosedError (RuntimeError)
    ├── FileTransferError (OSError)            a file could not travel; no half of it is left
    ├── StoreError (OSError)                   the history or a checkpoint's file cannot be read or written
    └── CheckpointError                        a checkpoint cannot be made or used; the running session is unharmed
        ├── CheckpointMissingError (LookupError)
        ├── CheckpointDamagedError             truncated, altered, or no checkpoint of this host at all
        ├── CheckpointFormatError              written by another version of Cellblock
        ├── CheckpointForeignError (PermissionError)  another agent's
        ├── CheckpointTooLargeError
        └── CheckpointStateError               the kernel could not capture or load the state

An error of the *code in a cell* is never an exception: it is a result with ``status == "error"``.

Every error has a ``remedy``: one sentence that says what the user can do. ``str(error)`` ends with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from orchestrator.outcome import Outcome

if TYPE_CHECKING:
    from orchestrator.output.events import ExecutionResult


class CellblockError(Exception):
    """Base of all of them.

    Attributes:
        message: what happened, and what state remains.
        remedy: what the user can do; may be empty.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class InvalidInputError(CellblockError, ValueError):
    """What the caller passed cannot be used. Nothing was started and nothing changed."""


class InvalidAgentIdError(InvalidInputError):
    """An agent id that is empty, too long, or holds characters that break paths, logs or terminals."""


class InvalidCodeError(InvalidInputError):
    """Code that is no code: empty, not text, too long, or not representable as UTF-8."""


class UnknownKernelNameError(InvalidInputError):
    """The sandbox image has no kernel of this name."""


@dataclass(frozen=True, slots=True)
class PolicyFault:
    """One fault of a policy file: the dotted key ("" for none), the line it begins in if that is known, and why."""

    key: str
    line: int | None
    reason: str


class PolicyError(InvalidInputError):
    """A policy that cannot be used.

    Attributes:
        path: the policy file, or None where a name was not found.
        faults: every fault that was found in it.
        key, line: of the first fault; "" and None where there is none.
    """

    def __init__(
        self, message: str, *, path: Path | None = None, faults: Sequence[PolicyFault] = (), remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.path = path
        self.faults = tuple(faults)
        self.key = self.faults[0].key if self.faults else ""
        self.line = self.faults[0].line if self.faults else None

    @classmethod
    def of(cls, path: Path, faults: Sequence[PolicyFault]) -> Self:
        """Name every fault, each on a line as ``FILE:LINE: key: reason``."""
        lines = [f"{path}:{fault.line or '?'}: {f'{fault.key}: ' * bool(fault.key)}{fault.reason}" for fault in faults]
        return cls("\n".join(lines), path=path, faults=faults)


class SandboxFloorError(CellblockError):
    """A container was asked for that lacks a lock that every sandbox has. Nothing was started.

    Attributes:
        breaches: what it lacks.
    """

    def __init__(self, breaches: Sequence[str]) -> None:
        super().__init__(
            f"refused to start a container below the floor: {'; '.join(breaches)}.",
            remedy="This is a fault of Cellblock, not of the policy: please report it.",
        )
        self.breaches = tuple(breaches)


class SettingsError(CellblockError, ValueError):
    """A CELLBLOCK_* variable, or a line of .env, that cannot be used."""


class EngineError(CellblockError):
    """The Docker engine refused, failed or did not answer in time."""


class EngineUnavailableError(EngineError, ConnectionError):
    """No Docker engine answers."""


class EngineTimeoutError(EngineUnavailableError, TimeoutError):
    """The Docker engine is there, and did not answer in time; it may yet do what it was asked."""


class EnginePermissionError(EngineError, PermissionError):
    """A Docker engine is there, and this user may not talk to it."""


class EngineSetupError(EngineError):
    """The engine could not be installed, started or stopped."""


class ImageMissingError(EngineError, LookupError):
    """The engine has no sandbox image of this name, or none that matches its sources.

    Attributes:
        image: the image that was looked for.
    """

    def __init__(self, message: str, *, image: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.image = image


class ImageBuildError(EngineError):
    """The sandbox image could not be built. An earlier image is untouched."""


class UnknownRuntimeError(EngineError, LookupError):
    """The engine has no such container runtime.

    Attributes:
        runtime: the one that was asked for.
        available: those that the engine has.
    """

    def __init__(self, runtime: str, available: tuple[str, ...], *, remedy: str = "") -> None:
        known = ", ".join(available) or "none"
        super().__init__(f"the engine has no runtime {runtime!r}; it has: {known}.", remedy=remedy)
        self.runtime = runtime
        self.available = available


class KernelError(CellblockError):
    """One kernel, or the pool of them."""


class KernelStartError(KernelError):
    """A kernel did not become ready. Its container and directory are gone.

    Attributes:
        cause: "container" when its container ended, "timeout" when it took too long, "host" when this host could not
            provide for it, "policy" when a module that the policy preloads cannot be imported.
        log: the last lines that the container wrote while it started; may be empty.
    """

    def __init__(
        self, message: str, *, cause: Literal["container", "timeout", "host", "policy"], log: str = "", remedy: str = ""
    ) -> None:
        said = f"Its last words: {log.strip()[-500:]}" if log.strip() else "Run `cellblock doctor`."
        super().__init__(message, remedy=remedy or said)
        self.cause = cause
        self.log = log


class UserIdTakenError(KernelStartError):
    """The user id that a kernel was to have is that of another live container on its engine. Nothing was started.

    Attributes:
        uid: the id.
        container: the other's name.
    """

    def __init__(self, uid: str, container: str) -> None:
        super().__init__(
            f"user id {uid} is that of the live container {container}.",
            cause="host",
            remedy="Give each host process that shares this engine a range of its own: CELLBLOCK_UID_BASE.",
        )
        self.uid = uid
        self.container = container


class KernelDiedError(KernelError):
    """The session's kernel is gone, and its variables with it; the session's history remains.

    Attributes:
        kernel_id: the kernel that ended.
        reason: "oom", "kernel_died" or "engine_lost".
        exit_code: of its container's first process, where the engine has said by now.
    """

    def __init__(
        self, message: str, *, kernel_id: str, reason: Outcome, exit_code: int | None = None, remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.kernel_id = kernel_id
        self.reason = reason
        self.exit_code = exit_code


class KernelTimeoutError(KernelError, TimeoutError):
    """A cell ran past its time limit and was stopped.

    Attributes:
        result: everything that the cell printed until then, and ``result.kernel_state``: "idle" when the
            interrupt sufficed (the variables are there), "dead" when the kernel had to be killed.
    """

    def __init__(self, message: str, *, result: ExecutionResult, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


Scarcity = Literal["max_kernels", "memory", "cpu", "quota", "queue", "starting", "session"]


class KernelPoolExhaustedError(KernelError, TimeoutError):
    """No kernel became free in time, or could. Nothing was taken.

    Attributes:
        max_kernels: the pool's size.
        waited: seconds; 0 where the caller was refused at once.
        reason: what there was too little of: "max_kernels": all belong to agents; "memory", "cpu": the host has no room
            for as many; "quota": the group has all that it may have; "queue": too many callers wait already;
            "starting": one was being started; "session": the agent's own session was busy.
        expected_wait: seconds that one more caller of the group would wait, from the pace at which kernels came free;
            None where nothing tells.
        needed_bytes, free_bytes: memory that one more kernel is promised, and that was not yet promised; None where
            memory is not the reason.
    """

    def __init__(
        self,
        message: str,
        *,
        max_kernels: int,
        waited: float,
        reason: Scarcity = "session",
        expected_wait: float | None = None,
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.max_kernels = max_kernels
        self.waited = waited
        self.reason = reason
        self.expected_wait = expected_wait
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class SessionEndedError(CellblockError, LookupError):
    """The session is over: its kernel has been given up.

    Attributes:
        reason: why it ended, such as "idle" or "end_session".
    """

    def __init__(self, message: str, *, reason: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason


class ManagerClosedError(CellblockError, RuntimeError):
    """The manager has been shut down, or is shutting down."""


class FileTransferError(CellblockError, OSError):
    """A file could not travel into or out of a sandbox. No half of it is left on either side.

    Attributes:
        path: the file at fault, as the caller named it.
    """

    def __init__(self, message: str, *, path: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.path = path


class StoreError(CellblockError, OSError):
    """What is to outlive the process cannot be read or written. No half of an entry is left.

    Attributes:
        result: of a cell that ran, where only its result could not be kept; else None.
    """

    def __init__(self, message: str, *, result: ExecutionResult | None = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


class CheckpointError(CellblockError):
    """A checkpoint cannot be made or used. The running session, and its kernel, are as they were.

    Attributes:
        checkpoint: its id, or the file's name; "" where there is none yet.
    """

    def __init__(self, message: str, *, checkpoint: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.checkpoint = checkpoint


class CheckpointMissingError(CheckpointError, LookupError):
    """There is no such checkpoint, or its file is gone."""


class CheckpointDamagedError(CheckpointError):
    """It is truncated or altered, or was not written with this host's key. Nothing of it was looked at."""


class CheckpointFormatError(CheckpointError):
    """Another version of Cellblock has written it, in another format."""


class CheckpointForeignError(CheckpointError, PermissionError):
    """It is another agent's.

    Attributes:
        agent_id: the agent that asked.
    """

    def __init__(self, message: str, *, agent_id: str, checkpoint: str = "", remedy: str = "") -> None:
        super().__init__(message, checkpoint=checkpoint, remedy=remedy)
        self.agent_id = agent_id


class CheckpointTooLargeError(CheckpointError):
    """The state exceeds the policy's limit. Nothing of it was kept.

    Attributes:
        limit_mb: MiB.
    """

    def __init__(self, message: str, *, limit_mb: int, checkpoint: str = "", remedy: str = "") -> None:
        super().__init__(message, checkpoint=checkpoint, remedy=remedy)
        self.limit_mb = limit_mb


class CheckpointStateError(CheckpointError):
    """The kernel did not capture its state, or a fresh one did not load it: code in it failed, or took too long."""
