"""Cellblock: a Jupyter kernel of its own, in a locked container of its own, for every agent that runs code."""

from orchestrator.errors import CellblockError, KernelDiedError, KernelPoolExhaustedError, KernelTimeoutError
from orchestrator.limits import KernelResourceLimits
from orchestrator.manager import AgentKernelManager
from orchestrator.output.events import (
    CellFinished,
    DisplayData,
    ErrorOutput,
    Evidence,
    ExecuteResult,
    ExecutionResult,
    OutputDropped,
    StreamOutput,
    Truncation,
)
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings

__all__ = [
    "AgentKernelManager",
    "CellFinished",
    "CellblockError",
    "DisplayData",
    "ErrorOutput",
    "Evidence",
    "ExecuteResult",
    "ExecutionResult",
    "KernelDiedError",
    "KernelPool",
    "KernelPoolExhaustedError",
    "KernelResource",
    "KernelResourceLimits",
    "KernelSession",
    "KernelTimeoutError",
    "OutputDropped",
    "Settings",
    "StreamOutput",
    "Truncation",
]
