"""Jupyter's messages as the host reads them: a kernel's channels, and what comes on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Channel = Literal["shell", "control", "iopub", "stdin"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the kernel, with a genuine signature. All of it is a claim of hostile code."""

    channel: str
    kind: str
    parent_id: str
    content: dict[str, Any]
    buffers: Sequence[bytes]
    metadata: bytes = b"{}"
    """JSON that nobody has checked."""


Handler = Callable[[Message], None]
Accept = Callable[[str, int], bool]
