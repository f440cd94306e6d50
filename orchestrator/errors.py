"""Every exception that Cellblock raises on purpose, each with the stable ``code`` that HTTP, MCP and the CLI map.

    CellblockError                             cellblock                the base of all of them
    ├── InvalidInputError (ValueError)         invalid_input            an argument is unusable; nothing was started
    │   ├── InvalidAgentIdError                invalid_agent_id
    │   ├── InvalidCodeError                   invalid_code
    │   ├── UnknownKernelNameError             unknown_kernel_name
    │   └── PolicyError                        policy                   names the file, key and line
    ├── SandboxFloorError                      sandbox_floor            a container would lack a mandatory restriction
    ├── SettingsError (ValueError)             settings                 a CELLBLOCK_* variable or a line of .env
    ├── EngineError                            engine                   the Docker engine
    │   ├── EngineUnavailableError (ConnectionError)  engine_unavailable
    │   │   └── EngineTimeoutError (TimeoutError)     engine_timeout
    │   ├── EnginePermissionError (PermissionError)   engine_permission
    │   ├── EngineSetupError                   engine_setup             it could not be installed or started
    │   ├── EngineUnsupportedError             engine_unsupported       rootless, with userns-remap, or Podman
    │   ├── ImageMissingError (LookupError)    image_missing
    │   ├── ImageBuildError                    image_build
    │   ├── ImageInUseError                    image_in_use
    │   └── UnknownRuntimeError (LookupError)  unknown_runtime
    ├── KernelError                            kernel                   one kernel, or the pool of kernels
    │   ├── KernelStartError                   kernel_start
    │   │   └── UserIdTakenError               user_id_taken
    │   ├── KernelDiedError                    kernel_died
    │   │   └── NodeLostError                  node_lost                its node's lease ended while a call ran
    │   ├── KernelTimeoutError (TimeoutError)  kernel_timeout           a cell exceeded its time limit
    │   ├── KernelPoolExhaustedError (TimeoutError)   kernel_pool_exhausted
    │   │   └── NoNodeError                    no_node                  no node of the cluster takes the session
    │   ├── CommandLimitError                  command_limit            as many commands run as may
    │   ├── SessionBusyError (TimeoutError)    session_busy             another call is using the agent's session
    │   └── SessionElsewhereError              session_elsewhere        another process owns the agent's session
    ├── SessionEndedError (LookupError)        session_ended            acquire the kernel again
    │   └── ManagerClosedError (RuntimeError)  manager_closed           and so all of its sessions; make a new manager
    ├── WrongEventLoopError (RuntimeError)     wrong_event_loop
    ├── FileTransferError (OSError)            file_transfer
    ├── PackageError                           package                  packages cannot be installed
    ├── NotebookError                          notebook                 a notebook, and not the code in its cells
    │   ├── NotebookCreationError              notebook_creation        it cannot be made, or its file be opened
    │   ├── NotebookNotFoundError (LookupError)       notebook_not_found
    │   ├── NotebookConflictError              notebook_conflict        others changed its file; nothing was written
    │   ├── KernelNotFoundError (LookupError)  kernel_not_found         it is for a kernel that sandboxes do not have
    │   ├── CellNotFoundError (LookupError)    cell_not_found
    │   └── InvalidPositionError (IndexError)  invalid_position
    ├── StoreError (OSError)                   store                    the history or a checkpoint file
    │   ├── NodeLeaseError                     node_lease               the lease of this node of a cluster has ended
    │   └── QuotaExceededError                 quota_exceeded           the agent keeps as much as it may
    ├── NotOwnerError                          not_owner                another process has taken the session over
    ├── CheckpointError                        checkpoint               the running session is unharmed
    │   ├── CheckpointMissingError (LookupError)      checkpoint_missing
    │   ├── CheckpointDamagedError             checkpoint_damaged       truncated, altered, or from another host
    │   ├── CheckpointFormatError              checkpoint_format        written by another version of Cellblock
    │   ├── CheckpointForeignError (PermissionError)  checkpoint_foreign
    │   ├── CheckpointTooLargeError            checkpoint_too_large
    │   └── CheckpointStateError               checkpoint_state         the kernel could not save or load its state
    ├── ClusterError                           cluster                  hosts that form one Cellblock
    │   ├── RayMissingError (ImportError)      ray_missing              the extra `ray` is not installed
    │   └── RayUnavailableError (ConnectionError)     ray_unavailable
    └── ServerError                            server                   a server refused a request, or is not there
        ├── UnauthorizedError (PermissionError)       unauthorized
        ├── ForbiddenError (PermissionError)   forbidden
        ├── UnknownSessionError (LookupError)  unknown_session
        ├── TooManyRequestsError               too_many_requests
        ├── RequestTooLargeError               request_too_large
        ├── RequestTimeoutError (TimeoutError) request_timeout          the client sends, or reads, too slowly
        ├── IdempotencyError                   idempotency              the key belongs to another request
        ├── UntrustedServerError               untrusted_server         its certificate is not accepted
        ├── IncompatibleServerError            incompatible_server      it speaks another version of the protocol
        └── ServerUnavailableError (ConnectionError)  server_unavailable

An exception of the *code in a cell* is never raised here: it is a result with ``status == "error"``.
"""

from __future__ import annotations

import copyreg
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, dataclass_transform

from orchestrator.outcome import Outcome

if TYPE_CHECKING:
    from orchestrator.output.events import ExecutionResult


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(field,))
class _Coded:
    """Makes each subclass a dataclass, and sets its ``code``. Without annotated fields it inherits ``__init__``."""

    code: ClassVar[str]

    def __init_subclass__(cls, *, code: str = "") -> None:
        super().__init_subclass__()
        cls.code = code or cls.code
        dataclass(init="__annotations__" in vars(cls), eq=False, repr=False, kw_only=True)(cls)


class CellblockError(_Coded, Exception, code="cellblock"):
    """The base of all errors. Each can be pickled and copied, with its fields.

    Attributes:
        code: the stable name of the class, in snake case.
        message: what happened, and what state remains.
        remedy: what the user can do, in one sentence, which also ends ``str(error)``; may be empty.
    """

    message: str = field(kw_only=False)
    remedy: str = ""

    def __post_init__(self) -> None:
        self.args = (self.message,)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields instead of the arguments, which are keywords of each class's own."""
        return copyreg.__newobj__, (type(self),), {**vars(self), "args": self.args}  # type: ignore[attr-defined]

    def as_dict(self) -> dict[str, Any]:
        """Return ``code``, ``message``, ``remedy`` and ``fields``, for JSON."""
        own = {name: value for name, value in vars(self).items() if name not in ("message", "remedy", "__notes__")}
        fields = json.loads(json.dumps(own, default=_plain), parse_constant=lambda _infinite: None)
        return {"code": self.code, "message": self.message, "remedy": self.remedy, "fields": fields}


def _plain(value: Any) -> Any:
    """Return what JSON has no type for: a result and a fault as a dict, anything else as text."""
    return value.as_dict() if hasattr(value, "as_dict") else asdict(value) if is_dataclass(value) else str(value)  # type: ignore[arg-type]


class InvalidInputError(CellblockError, ValueError, code="invalid_input"):
    """An argument cannot be used. Nothing was started and nothing changed."""


class InvalidAgentIdError(InvalidInputError, code="invalid_agent_id"):
    """An agent id that is empty, too long, or contains characters that are unsafe in paths, logs or terminals."""


class InvalidCodeError(InvalidInputError, code="invalid_code"):
    """Invalid source code: empty, not text, too long, or not representable as UTF-8."""


class UnknownKernelNameError(InvalidInputError, code="unknown_kernel_name"):
    """The sandbox image has no kernel of this name."""


@dataclass(frozen=True, slots=True)
class PolicyFault:
    """One fault of a policy file: its dotted key ("" for none), its first line (None: unknown), and what is wrong."""

    key: str
    line: int | None
    reason: str


class PolicyError(InvalidInputError, code="policy"):
    """A policy cannot be used.

    Attributes:
        path: the policy file; None where no policy has the given name.
        faults: every fault in the file.
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
        """Return an error that names every fault, each on a line as ``FILE:LINE: key: reason``."""
        lines = [f"{path}:{fault.line or '?'}: {f'{fault.key}: ' * bool(fault.key)}{fault.reason}" for fault in faults]
        return cls("\n".join(lines), path=path, faults=faults)


class SandboxFloorError(CellblockError, code="sandbox_floor"):
    """A container was requested without a restriction that every sandbox has. Nothing was started.

    Attributes:
        breaches: the restrictions that the request lacks.
    """

    def __init__(self, breaches: Sequence[str]) -> None:
        super().__init__(
            f"refused to start a container below the floor: {'; '.join(breaches)}.",
            remedy="This is a fault of Cellblock, not of the policy: please report it.",
        )
        self.breaches = tuple(breaches)


class SettingsError(CellblockError, ValueError, code="settings"):
    """A CELLBLOCK_* variable, or a line of .env, cannot be used."""


class EngineError(CellblockError, code="engine"):
    """The Docker engine refused a request, failed, or did not answer in time."""


class EngineUnavailableError(EngineError, ConnectionError, code="engine_unavailable"):
    """No Docker engine answers."""


class EngineTimeoutError(EngineUnavailableError, TimeoutError, code="engine_timeout"):
    """The Docker engine accepted the request and did not answer in time; it may still carry the request out."""


class EnginePermissionError(EngineError, PermissionError, code="engine_permission"):
    """This user may not talk to the Docker engine."""


class EngineSetupError(EngineError, code="engine_setup"):
    """The engine could not be installed, started or stopped."""


class EngineUnsupportedError(EngineError, code="engine_unsupported"):
    """The engine is of a kind that cannot keep what Cellblock promises. Nothing was started.

    Attributes:
        kind: "rootless", "userns-remap" or "podman".
    """

    kind: str


class ImageMissingError(EngineError, LookupError, code="image_missing"):
    """The engine has no sandbox image of this name, or none that matches its sources.

    Attributes:
        image: the image's name.
    """

    image: str


class ImageInUseError(EngineError, code="image_in_use"):
    """An image was not removed: a container is made of it, or another image is built on it.

    Attributes:
        image: the image's name.
    """

    image: str


class ImageBuildError(EngineError, code="image_build"):
    """The sandbox image could not be built. An earlier image is untouched."""


class UnknownRuntimeError(EngineError, LookupError, code="unknown_runtime"):
    """The engine has no such container runtime.

    Attributes:
        runtime: the requested runtime.
        available: the runtimes that the engine has.
    """

    def __init__(self, runtime: str, available: tuple[str, ...], *, remedy: str = "") -> None:
        known = ", ".join(available) or "none"
        super().__init__(f"the engine has no runtime {runtime!r}; it has: {known}.", remedy=remedy)
        self.runtime = runtime
        self.available = available


class KernelError(CellblockError, code="kernel"):
    """One kernel, or the pool of kernels, failed."""


class KernelStartError(KernelError, code="kernel_start"):
    """A kernel did not become ready. Its container and directory were removed.

    Attributes:
        cause: "container": its container ended; "timeout": it took too long; "host": this host lacks a resource for
            it; "policy": a module that the policy preloads cannot be imported.
        log: the last lines that the container wrote while it started; may be empty.
    """

    def __init__(
        self, message: str, *, cause: Literal["container", "timeout", "host", "policy"], log: str = "", remedy: str = ""
    ) -> None:
        said = f"Its log ends with: {log.strip()[-500:]}" if log.strip() else "Run `cellblock doctor`."
        super().__init__(message, remedy=remedy or said)
        self.cause = cause
        self.log = log


class UserIdTakenError(KernelStartError, code="user_id_taken"):
    """Another live container of the engine has the user id of the new kernel. Nothing was started.

    Attributes:
        uid: the user id.
        container: the name of the container that has it.
    """

    def __init__(self, uid: str, container: str) -> None:
        super().__init__(
            f"the live container {container} already has user id {uid}.",
            cause="host",
            remedy="Give each host process that shares this engine a range of its own: CELLBLOCK_UID_BASE.",
        )
        self.uid = uid
        self.container = container


class KernelDiedError(KernelError, code="kernel_died"):
    """The session's kernel is gone, with its variables; the session's history remains.

    Attributes:
        kernel_id: the kernel that ended.
        reason: why, one of the outcomes that end a kernel, such as "oom" or "kernel_died".
        exit_code: of the container's first process; None while the engine has not reported one.
    """

    kernel_id: str
    reason: Outcome
    exit_code: int | None = None


class NodeLostError(KernelDiedError, code="node_lost"):
    """The lease of the session's node ended during a call: the node acknowledges nothing any longer.

    The session's history and its checkpoints remain; its next call goes to another node.

    Attributes:
        node_id: the node.
        undone: whether the node has not begun what was asked. If false, this is not known.
    """

    kernel_id: str = ""
    reason: Outcome = Outcome.KERNEL_DIED
    node_id: str
    undone: bool


class KernelTimeoutError(KernelError, TimeoutError, code="kernel_timeout"):
    """A cell exceeded its time limit and was stopped.

    Attributes:
        result: everything that the cell printed, and ``result.kernel_state``: "idle" when the interrupt ended the
            cell (the variables remain), "dead" when the kernel had to be killed.
    """

    result: ExecutionResult


Scarcity = Literal["max_kernels", "memory", "cpu", "quota", "queue", "starting", "backoff", "draining"]


class KernelPoolExhaustedError(KernelError, TimeoutError, code="kernel_pool_exhausted"):
    """No kernel became free in time, or none can. The caller holds nothing.

    Attributes:
        max_kernels: the pool's size.
        waited: seconds; 0 where the caller was refused at once.
        reason: what was scarce: "max_kernels": agents have all kernels; "memory", "cpu": the host has no room for one
            more; "quota": the group has all kernels that it may have; "queue": too many callers wait already;
            "starting": the kernel was still starting; "backoff": kernels of this agent died one after another, and its
            next one has to wait for ``expected_wait`` seconds; "draining": the host gives its sessions to others.
        expected_wait: estimated seconds that the group's next caller would wait; None where there is no estimate.
        needed_bytes, free_bytes: memory that one more kernel would reserve, and unreserved memory; else None.
    """

    max_kernels: int
    waited: float
    reason: Scarcity
    expected_wait: float | None = None
    needed_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NodeRefusal:
    """What one node of a cluster said: its id, the error's code, and the error's text."""

    node_id: str
    code: str
    message: str


class NoNodeError(KernelPoolExhaustedError, code="no_node"):
    """No node of the cluster takes the session. The caller holds nothing.

    The other fields are those of the refusal with the shortest expected wait.

    Attributes:
        refusals: what each node that was asked said.
    """

    refusals: tuple[NodeRefusal, ...] = ()


class CommandLimitError(KernelError, code="command_limit"):
    """A session runs as many commands at once as its policy allows. The new one was not started.

    Attributes:
        limit: how many may run at once.
    """

    limit: int


class SessionBusyError(KernelError, TimeoutError, code="session_busy"):
    """Another call is waking, moving or ending the agent's session, and did not finish in time. Nothing changed.

    Attributes:
        agent_id: the session's agent.
        waited: seconds.
    """

    agent_id: str
    waited: float
    remedy: str = "Try again in a moment, or with a longer timeout."


class SessionElsewhereError(KernelError, code="session_elsewhere"):
    """Another process owns the agent's session. Nothing changed.

    Attributes:
        agent_id: the session's agent.
        owner: the process's name in the store.
        pid, host: its process id and host name, as that process sees them; None where they are not known.
    """

    agent_id: str
    owner: str
    pid: int | None = None
    host: str | None = None


class SessionEndedError(CellblockError, LookupError, code="session_ended"):
    """The session has no kernel any longer: it is over, or it sleeps.

    Attributes:
        reason: why it ended: an outcome that ends a session, such as "idle", or the caller's own text.
    """

    reason: str


class ManagerClosedError(SessionEndedError, RuntimeError, code="manager_closed"):
    """The manager has been shut down, or is shutting down, and all of its sessions end or sleep with it."""

    reason: str = Outcome.SHUTDOWN
    message: str = field(default="the manager has been shut down.", kw_only=False)
    remedy: str = "Make a new manager: it continues each session that has a checkpoint."


class WrongEventLoopError(CellblockError, RuntimeError, code="wrong_event_loop"):
    """A manager, or a session or kernel of it, was used outside of its event loop. Nothing was done."""


FileFault = Literal[
    "missing",
    "permission",
    "exists",
    "is_folder",
    "not_a_folder",
    "not_empty",
    "full",
    "too_large",
    "slow",
    "other",
]


class FileTransferError(CellblockError, OSError, code="file_transfer"):
    """A file could not be copied, read or changed. No partial file remains on either side.

    Attributes:
        path: the file, as the caller named it.
        fault: what is wrong, where that is known.
    """

    path: str
    fault: FileFault = "other"


PackageFault = Literal[
    "malformed", "not_allowed", "too_large", "wrong_hash", "no_wheel", "index", "unreachable", "sandbox"
]


class PackageError(CellblockError, code="package"):
    """Packages cannot be installed in a session. Nothing was installed, unless ``reason`` is "sandbox".

    Attributes:
        reason: "malformed": no requirement; "not_allowed": the policy does not allow it; "too_large"; "wrong_hash";
            "no_wheel": the index has none that fits; "index": the index's answer cannot be used; "unreachable": the
            index does not answer, and the cache does not have it; "sandbox": the sandbox could not take a wheel.
    """

    reason: PackageFault


class NotebookError(CellblockError, code="notebook"):
    """A notebook cannot be used as asked, or has become too large. It is unchanged."""


class NotebookCreationError(NotebookError, code="notebook_creation"):
    """A notebook cannot be made, or a file cannot be opened as one. Nothing was made."""


class NotebookNotFoundError(NotebookError, LookupError, code="notebook_not_found"):
    """The session has no open notebook of this id.

    Attributes:
        notebook_id: as the caller named it.
    """

    notebook_id: str


class NotebookConflictError(NotebookError, code="notebook_conflict"):
    """The notebook's file was changed by others in a way that cannot be merged. Notebook and file are unchanged.

    Attributes:
        path: the file.
        cells: the cells that both sides changed, by id; none where the file is another notebook.
    """

    path: str
    cells: tuple[str, ...] = ()


class KernelNotFoundError(NotebookError, LookupError, code="kernel_not_found"):
    """A notebook is for a kernel that sandboxes do not have. Nothing was made.

    Attributes:
        kernel_name: the kernel.
    """

    kernel_name: str


class CellNotFoundError(NotebookError, LookupError, code="cell_not_found"):
    """A notebook has no cell of this id. Nothing changed.

    Attributes:
        cell_id: as the caller named it.
    """

    cell_id: str

    @classmethod
    def of(cls, cell_id: str) -> Self:
        """Return the error for a cell id that the notebook does not have."""
        return cls(f"there is no cell {str(cell_id)[:64]!r} in the notebook.", cell_id=str(cell_id)[:64])


class InvalidPositionError(NotebookError, IndexError, code="invalid_position"):
    """A position is outside of the notebook. Nothing changed.

    Attributes:
        position: as the caller named it.
        total: how many cells the notebook has.
    """

    position: int
    total: int


class StoreError(CellblockError, OSError, code="store"):
    """The history, or a checkpoint file, cannot be read or written. No partial entry remains.

    Attributes:
        result: the result of a cell that ran and whose result could not be stored; else None.
    """

    result: ExecutionResult | None = None


class NodeLeaseError(StoreError, code="node_lease"):
    """The lease of this node of a cluster has ended, so that nothing is acknowledged. No partial entry remains."""


class NotOwnerError(CellblockError, code="not_owner"):
    """Another process has taken the session over, so that what this one wanted to write was refused.

    Nothing of it is written, now or later. The session goes on where it is now; its kernel here is ended.

    Attributes:
        session_id: the session.
        owner: the process that owns it now, by its name in the store; "" for a session that sleeps or has ended.
        undone: whether nothing of the call was done. If false, the cell has run, and its end was refused.
    """

    session_id: str
    owner: str = ""
    undone: bool = False


class QuotaExceededError(StoreError, code="quota_exceeded"):
    """An agent keeps as much history and as many checkpoints as it may. Nothing was run or written.

    The session, its kernel and what it keeps are unchanged; files can still be copied out of it.

    Attributes:
        agent_id: the agent.
        used_bytes: what it keeps: code, results, outputs and checkpoints of all its sessions in this data folder.
        quota_bytes: what it may keep.
    """

    agent_id: str
    used_bytes: int
    quota_bytes: int


class CheckpointError(CellblockError, code="checkpoint"):
    """A checkpoint cannot be made or used. The running session and its kernel are unchanged.

    Attributes:
        checkpoint: the checkpoint's id, or its file's name; "" where it has none yet.
    """

    checkpoint: str = ""


class CheckpointMissingError(CheckpointError, LookupError, code="checkpoint_missing"):
    """There is no such checkpoint, or its file is gone."""


class CheckpointDamagedError(CheckpointError, code="checkpoint_damaged"):
    """The file is truncated or altered, or was not written with this host's key. Its contents were not loaded."""


class CheckpointFormatError(CheckpointError, code="checkpoint_format"):
    """Another version of Cellblock wrote the file, in another format."""


class CheckpointForeignError(CheckpointError, PermissionError, code="checkpoint_foreign"):
    """The checkpoint belongs to another agent.

    Attributes:
        agent_id: the agent that asked for it.
    """

    agent_id: str


class CheckpointTooLargeError(CheckpointError, code="checkpoint_too_large"):
    """The state exceeds the policy's limit. Nothing was stored.

    Attributes:
        limit_mb: the limit, in MiB.
    """

    limit_mb: int


class CheckpointStateError(CheckpointError, code="checkpoint_state"):
    """The kernel did not save its state, or a fresh kernel did not load it: code in it failed, or took too long."""


class ClusterError(CellblockError, code="cluster"):
    """A host could not be made part of a cluster, or be taken out. Servers and sessions that ran go on."""


class RayMissingError(ClusterError, ImportError, code="ray_missing"):
    """Ray is not installed. Nothing was started."""


class RayUnavailableError(ClusterError, ConnectionError, code="ray_unavailable"):
    """Ray does not answer, or refuses the token. Servers that run go on without it."""


class ServerError(CellblockError, code="server"):
    """A server of Cellblock refused a request, failed, or is not there."""


class UnauthorizedError(ServerError, PermissionError, code="unauthorized"):
    """A request has no token, or one that is unknown, revoked or expired. Nothing was done."""


class ForbiddenError(ServerError, PermissionError, code="forbidden"):
    """A token does not allow the request. Nothing was done."""


class UnknownSessionError(ServerError, LookupError, code="unknown_session"):
    """There is no such session, or it is another group's. Nothing was done.

    Attributes:
        session_id: as the caller named it.
    """

    session_id: str


class TooManyRequestsError(ServerError, code="too_many_requests"):
    """A token has as many requests or streams open as it may. Nothing was done.

    Attributes:
        limit: how many it may have open at once.
        retry_after: seconds after which to try again.
    """

    limit: int
    retry_after: float = 1.0


class RequestTooLargeError(ServerError, code="request_too_large"):
    """A request's body or its headers are too large. Nothing was done.

    Attributes:
        limit: bytes.
    """

    limit: int


class RequestTimeoutError(ServerError, TimeoutError, code="request_timeout"):
    """A client sent its request, or read its answer, too slowly. The connection is closed."""


class IdempotencyError(ServerError, code="idempotency"):
    """An idempotency key was used before, for another request. Nothing was done.

    Attributes:
        key: the key.
    """

    key: str


class UntrustedServerError(ServerError, code="untrusted_server"):
    """The server's certificate is not accepted. Nothing was sent to it."""


class IncompatibleServerError(ServerError, code="incompatible_server"):
    """The server speaks another version of the protocol. Nothing was done.

    Attributes:
        protocol: the server's.
        spoken: the oldest and the newest that this client speaks.
        version: of Cellblock, on the server.
    """

    protocol: int
    spoken: tuple[int, int]
    version: str = ""


class ServerUnavailableError(ServerError, ConnectionError, code="server_unavailable"):
    """No server answers, or it shuts down and takes no new work.

    Attributes:
        undone: whether nothing of the request was done. If false, this is not known.
    """

    undone: bool = False
