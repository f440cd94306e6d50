"""Cellblock: a Jupyter kernel of its own, in a locked container of its own, for every agent that runs code."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from orchestrator.broker.leasedkernel import (
    LeasedKernel,
)
from orchestrator.celloptions import (
    CellOptions,
)
from orchestrator.container.usage import (
    Usage,
)
from orchestrator.errors import (
    CellblockError,
    CellNotFoundError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointForeignError,
    CheckpointFormatError,
    CheckpointMissingError,
    CheckpointStateError,
    CheckpointTooLargeError,
    ClusterError,
    CommandLimitError,
    EngineError,
    EnginePermissionError,
    EngineSetupError,
    EngineTimeoutError,
    EngineUnavailableError,
    EngineUnsupportedError,
    FileFault,
    FileTransferError,
    ForbiddenError,
    IdempotencyError,
    ImageBuildError,
    ImageInUseError,
    ImageMissingError,
    IncompatibleServerError,
    InvalidAgentIdError,
    InvalidCodeError,
    InvalidInputError,
    InvalidPositionError,
    KernelDiedError,
    KernelError,
    KernelNotFoundError,
    KernelPoolExhaustedError,
    KernelStartError,
    KernelTimeoutError,
    ManagerClosedError,
    NodeLeaseError,
    NodeLostError,
    NodeRefusal,
    NoNodeError,
    NotebookConflictError,
    NotebookCreationError,
    NotebookError,
    NotebookNotFoundError,
    NotOwnerError,
    PackageError,
    PolicyError,
    PolicyFault,
    QuotaExceededError,
    RayMissingError,
    RayUnavailableError,
    RequestTimeoutError,
    RequestTooLargeError,
    SandboxFloorError,
    Scarcity,
    ServerError,
    ServerUnavailableError,
    SessionBusyError,
    SessionElsewhereError,
    SessionEndedError,
    SettingsError,
    StoreError,
    TooManyRequestsError,
    UnauthorizedError,
    UnknownKernelNameError,
    UnknownRuntimeError,
    UnknownSessionError,
    UntrustedServerError,
    UserIdTakenError,
    WrongEventLoopError,
)
from orchestrator.kernel.kernel import (
    Kernel,
)
from orchestrator.limits import (
    KernelResourceLimits,
)
from orchestrator.manager import (
    AgentKernelManager,
)
from orchestrator.operator.monitor import (
    Monitor,
    Sample,
)
from orchestrator.outcome import (
    Outcome,
)
from orchestrator.output.commandresult import (
    CommandFinished,
    CommandOutput,
    CommandResult,
)
from orchestrator.output.events import (
    CellFinished,
    ClearOutput,
    CommMessage,
    DisplayData,
    ErrorOutput,
    Event,
    Evidence,
    ExecuteResult,
    ExecutionResult,
    InputHandler,
    InputRequest,
    KernelState,
    Output,
    OutputDropped,
    OutputEvent,
    Status,
    StreamOutput,
    Truncation,
    UpdateDisplayData,
)
from orchestrator.output.fileinfo import (
    ChangedFile,
    FileInfo,
)
from orchestrator.output.variableinfo import (
    VariableInfo,
)
from orchestrator.policy.policy import (
    Policy,
)
from orchestrator.pool.kernelpool import (
    KernelPool,
)
from orchestrator.pool.kernelresource import (
    KernelResource,
)
from orchestrator.pool.scheduler import (
    LeaseRequest,
)
from orchestrator.sessions.cellhandle import (
    RunningCell,
)
from orchestrator.sessions.checkpoint import (
    Checkpoint,
)
from orchestrator.sessions.commandhandle import (
    CommandEvent,
    RunningCommand,
)
from orchestrator.sessions.recovery import (
    Recovery,
)
from orchestrator.sessions.restored import (
    Lost,
    Restored,
)
from orchestrator.sessions.session import (
    KernelSession,
)
from orchestrator.settings import (
    Settings,
)
from orchestrator.telemetry import (
    Telemetry,
)
from orchestrator.tool import (
    Tool,
)

if TYPE_CHECKING:
    from orchestrator.notebooks.cell import Cell, CellType
    from orchestrator.notebooks.cellexecutionresult import CellExecutionResult
    from orchestrator.notebooks.cellselector import CellSelector
    from orchestrator.notebooks.dispatcher import Dispatcher
    from orchestrator.notebooks.notebookdocument import NotebookDocument
    from orchestrator.notebooks.notebooks import Notebooks

__version__ = version("cellblock")
_NOTEBOOKS = {
    "Cell": "cell",
    "CellExecutionResult": "cellexecutionresult",
    "CellSelector": "cellselector",
    "CellType": "cell",
    "Dispatcher": "dispatcher",
    "NotebookDocument": "notebookdocument",
    "Notebooks": "notebooks",
}  # whose room needs nbformat, and 0.1 s of CPU for its import: it is imported when one of them is used

__all__ = [
    "AgentKernelManager",
    "Cell",
    "CellExecutionResult",
    "CellFinished",
    "CellNotFoundError",
    "CellOptions",
    "CellSelector",
    "CellType",
    "CellblockError",
    "ChangedFile",
    "Checkpoint",
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointForeignError",
    "CheckpointFormatError",
    "CheckpointMissingError",
    "CheckpointStateError",
    "CheckpointTooLargeError",
    "ClearOutput",
    "ClusterError",
    "CommMessage",
    "CommandEvent",
    "CommandFinished",
    "CommandLimitError",
    "CommandOutput",
    "CommandResult",
    "Dispatcher",
    "DisplayData",
    "EngineError",
    "EnginePermissionError",
    "EngineSetupError",
    "EngineTimeoutError",
    "EngineUnavailableError",
    "EngineUnsupportedError",
    "ErrorOutput",
    "Event",
    "Evidence",
    "ExecuteResult",
    "ExecutionResult",
    "FileFault",
    "FileInfo",
    "FileTransferError",
    "ForbiddenError",
    "IdempotencyError",
    "ImageBuildError",
    "ImageInUseError",
    "ImageMissingError",
    "IncompatibleServerError",
    "InputHandler",
    "InputRequest",
    "InvalidAgentIdError",
    "InvalidCodeError",
    "InvalidInputError",
    "InvalidPositionError",
    "Kernel",
    "KernelDiedError",
    "KernelError",
    "KernelNotFoundError",
    "KernelPool",
    "KernelPoolExhaustedError",
    "KernelResource",
    "KernelResourceLimits",
    "KernelSession",
    "KernelStartError",
    "KernelState",
    "KernelTimeoutError",
    "LeaseRequest",
    "LeasedKernel",
    "Lost",
    "ManagerClosedError",
    "Monitor",
    "NoNodeError",
    "NodeLeaseError",
    "NodeLostError",
    "NodeRefusal",
    "NotOwnerError",
    "NotebookConflictError",
    "NotebookCreationError",
    "NotebookDocument",
    "NotebookError",
    "NotebookNotFoundError",
    "Notebooks",
    "Outcome",
    "Output",
    "OutputDropped",
    "OutputEvent",
    "PackageError",
    "Policy",
    "PolicyError",
    "PolicyFault",
    "QuotaExceededError",
    "RayMissingError",
    "RayUnavailableError",
    "Recovery",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "Restored",
    "RunningCell",
    "RunningCommand",
    "Sample",
    "SandboxFloorError",
    "Scarcity",
    "ServerError",
    "ServerUnavailableError",
    "SessionBusyError",
    "SessionElsewhereError",
    "SessionEndedError",
    "Settings",
    "SettingsError",
    "Status",
    "StoreError",
    "StreamOutput",
    "Telemetry",
    "TooManyRequestsError",
    "Tool",
    "Truncation",
    "UnauthorizedError",
    "UnknownKernelNameError",
    "UnknownRuntimeError",
    "UnknownSessionError",
    "UntrustedServerError",
    "UpdateDisplayData",
    "Usage",
    "UserIdTakenError",
    "VariableInfo",
    "WrongEventLoopError",
]


def __getattr__(name: str) -> object:
    """Return one of the names of ``notebooks``. Python calls it for a name that this module has not."""
    if name not in _NOTEBOOKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.notebooks.{_NOTEBOOKS[name]}"), name)
