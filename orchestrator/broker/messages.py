"""Jupyter's messages between the broker and its clients, made of events and results. Pure."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from orchestrator.output.events import (
    ClearOutput,
    CommMessage,
    DisplayData,
    ErrorOutput,
    ExecuteResult,
    OutputDropped,
    OutputEvent,
    StreamOutput,
    UpdateDisplayData,
)
from orchestrator.output.result import ExecutionResult

PROTOCOL = "5.4"  # the first with iopub_welcome; 5.5 has subshells, which the kernels have not
_VERSION = re.compile(r"\d{1,4}(\.[\da-z]{1,8}){0,4}")
Channel = Literal["shell", "control", "iopub", "stdin"]
State = Literal["starting", "busy", "idle", "restarting"]


@dataclass(frozen=True, slots=True)
class JupyterMessage:
    """One message in Jupyter's wire protocol, parsed.

    Attributes:
        header: its "msg_id", "msg_type", "session", "username", "date" and "version".
        parent: the header of the request that it answers; {}: none.
        size: how many bytes a client has sent.
    """

    header: Mapping[str, Any]
    parent: Mapping[str, Any]
    content: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    buffers: Sequence[bytes] = ()
    size: int = 0

    @property
    def kind(self) -> str:
        """The type of the message, such as "execute_request"."""
        return str(self.header["msg_type"])


class MessageMaker:
    """Makes the messages of one broker: all have its session id.

    Args:
        username: what the messages name as their sender.
    """

    def __init__(self, username: str = "kernel") -> None:
        self._session = secrets.token_hex(16)
        self._username = username
        self._count = 0

    def make(
        self,
        kind: str,
        content: Mapping[str, Any],
        parent: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> JupyterMessage:
        """Make a message."""
        self._count += 1
        header = {
            "msg_id": f"{self._session}_{self._count}",
            "msg_type": kind,
            "username": self._username,
            "session": self._session,
            "date": now(),
            "version": PROTOCOL,
        }
        return JupyterMessage(header, parent, content, metadata or {}, buffers)

    def status(self, state: State, parent: Mapping[str, Any]) -> JupyterMessage:
        """Make a kernel's status."""
        return self.make("status", {"execution_state": state}, parent)

    def of_event(self, event: OutputEvent, parent: Mapping[str, Any]) -> JupyterMessage:
        """Make the message of an output."""
        if isinstance(event, CommMessage):
            content: dict[str, Any] = {"comm_id": event.comm_id, "data": event.data}
            if event.kind == "comm_open":
                content["target_name"] = event.target_name
            return self.make(event.kind, content, parent, event.metadata, event.buffers)
        return self.make(*_output(event), parent)

    def execute_request(self, code: str) -> Mapping[str, Any]:
        """Make the header of a request that no client has sent: the parent of a cell that the host runs."""
        return self.make("execute_request", {"code": code}, {}).header


def kernel_info(claimed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``kernel_info_reply``. Of what the kernel claims, only two version numbers are taken.

    Programs print the banner, and import the exporter that ``language_info`` names.
    """
    language = claimed.get("language_info")
    python = _version(language.get("version")) if isinstance(language, dict) else ""
    return {
        "status": "ok",
        "protocol_version": PROTOCOL,
        "implementation": "ipython",
        "implementation_version": _version(claimed.get("implementation_version")),
        "language_info": {
            "name": "python",
            "version": python,
            "mimetype": "text/x-python",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python",
            "file_extension": ".py",
        },
        "banner": f"Python {python}, in a sandbox of Cellblock".replace(" ,", ","),
        "help_links": [],
        "debugger": False,
        "supported_features": [],
    }


def _version(value: object) -> str:
    return value if isinstance(value, str) and _VERSION.fullmatch(value) else ""


def now() -> str:
    """Return the time as Jupyter's headers have it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def error_content(error: ErrorOutput) -> dict[str, Any]:
    """Return an error as an ``error`` message and a failed reply have it."""
    return {"ename": error.ename, "evalue": error.evalue, "traceback": list(error.traceback)}


def reply_content(result: ExecutionResult, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an ``execute_reply``.

    Args:
        extras: see ``Reply``.
    """
    content: dict[str, Any] = {
        "status": result.status,
        "execution_count": result.execution_count or 0,
        "user_expressions": extras.get("user_expressions", {}),
        "payload": extras.get("payload", []),
    }
    if result.status == "ok":
        return content
    return content | error_content(result.error or ErrorOutput(str(result.outcome), "", ()))


def _output(event: OutputEvent) -> tuple[str, dict[str, Any]]:
    match event:
        case StreamOutput():
            return "stream", {"name": event.name, "text": event.text}
        case DisplayData():
            transient = {} if event.display_id is None else {"display_id": event.display_id}
            return "display_data", {"data": event.data, "metadata": event.metadata, "transient": transient}
        case UpdateDisplayData():
            transient = {"display_id": event.display_id}
            return "update_display_data", {"data": event.data, "metadata": event.metadata, "transient": transient}
        case ExecuteResult():
            result = {"data": event.data, "metadata": event.metadata, "execution_count": event.execution_count}
            named = {} if event.display_id is None else {"transient": {"display_id": event.display_id}}
            return "execute_result", result | named
        case ErrorOutput():
            return "error", error_content(event)
        case ClearOutput():
            return "clear_output", {"wait": event.wait}
        case OutputDropped():
            left_out = f"[{event.dropped_bytes} bytes of output left out here]\n"
            return "stream", {"name": "stderr", "text": left_out}
        case CommMessage():
            raise AssertionError("unreachable: made by of_event")
