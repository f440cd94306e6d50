"""The records that the history returns, such as one session, one cell, one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SessionState = Literal["live", "asleep", "ended"]


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session in the history.

    Attributes:
        parent_id: the session that this one was forked from; None if it was not forked.
        owner: the process that owns the session, in the form of ``Instance.name``; None if no process owns it.
        state: "live" (it has a kernel, or had one when its owner died), "asleep" (it has only a checkpoint) or "ended".
        end_reason: why the session ended; None while it has not.
        created_at, last_used_at: seconds since the epoch.
        kernel_id: the kernel that the session had last.
        cells: the number of its last cell.
        bytes: the size of its code and outputs; checkpoints are not included.
    """

    session_id: str
    agent_id: str
    parent_id: str | None
    owner: str | None
    state: SessionState
    end_reason: str | None
    created_at: float
    last_used_at: float
    kernel_id: str
    runtime: str
    cells: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return what callers may know of the session, as JSON."""
        return {
            "session_id": self.session_id,
            "agent_id": self.agent_id,
            "kernel_id": self.kernel_id,
            "state": self.state,
            "end_reason": self.end_reason,
            "created_at": self.created_at,
            "last_used_at": self.last_used_at,
            "cell_count": self.cells,
            "parent_id": self.parent_id,
            "runtime": self.runtime,
            "bytes": self.bytes,
        }


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One cell in the history.

    Attributes:
        outcome: as in ``ExecutionResult``; "running" until the outcome is known.
        started_at, ended_at: seconds since the epoch.
        result: ``ExecutionResult.as_dict()``; ``{"status": "running"}`` until the outcome is known.
    """

    number: int
    kernel_id: str
    code: str
    started_at: float
    ended_at: float | None
    outcome: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """One command in the history.

    Attributes:
        command: the arguments; one line if ``shell`` is true.
        outcome: as in ``CommandResult``; "running" until the outcome is known.
        started_at, ended_at: seconds since the epoch.
        result: ``CommandResult.as_dict()``, with at most 64 KiB of each stream; ``{}`` until the outcome is known.
    """

    number: int
    kernel_id: str
    command: tuple[str, ...]
    shell: bool
    started_at: float
    ended_at: float | None
    outcome: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """One checkpoint file in the history.

    Attributes:
        created_at: seconds since the epoch.
        cell: the number of the last cell whose effects are in the checkpoint.
        asked_for: whether the caller requested the checkpoint; False if Cellblock made it by itself.
        bytes: the size of the file.
        lost: what could not be captured, each as ``{"name", "kind", "reason"}``.
    """

    checkpoint_id: str
    session_id: str
    created_at: float
    cell: int
    asked_for: bool
    bytes: int
    lost: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One token of a server. The token itself is not kept.

    Attributes:
        group: the group whose sessions its bearer sees.
        policies: the names of the policies that its sessions may have; the first is the default.
        rights: what it allows beyond its group's sessions, such as "operator".
        digest: SHA-256 of its secret, in hex.
        created_at, expires_at, revoked_at: seconds since the epoch; None for one that does not expire, or is not
            revoked.
    """

    token_id: str
    name: str
    group: str
    policies: tuple[str, ...]
    rights: frozenset[str]
    digest: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


Expiry = Literal["end", "hibernate"]


@dataclass(frozen=True, slots=True)
class HandleRecord:
    """What a server keeps of one session beside the session itself.

    Attributes:
        group: whose session it is. No other group sees it.
        name: the agent, as its group calls it.
        policy: the name of its policy.
        image: the sandbox image; "": the policy's.
        token_id: the token that made it; "" where there are no tokens.
        environment: variables of every cell and command.
        labels: what the client wants to keep with it.
        expires_at: seconds since the epoch; None: it does not expire.
        on_expiry: what happens then.
    """

    session_id: str
    group: str
    name: str
    policy: str
    image: str
    token_id: str
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    expires_at: float | None
    on_expiry: Expiry
