"""Checkpoints of a session in the reference's form: its identity and history as JSON. Pure but for the JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.errors import InvalidInputError
from orchestrator.session import KernelSession
from orchestrator.store.wholefile import write_whole

_KEYS = {"session_id": str, "kernel_id": str, "agent_id": str, "checkpoint_time": (int, float)}


def save_checkpoint(session: KernelSession, file_path: str | Path | None = None) -> dict[str, Any]:
    """Return the session's history and identity; with ``file_path``, also write them there, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    checkpoint = session.checkpoint()
    if file_path is not None:
        write_whole(Path(file_path), json.dumps(checkpoint, indent=2))
    return checkpoint


def restore_checkpoint(
    session: KernelSession, checkpoint_data: dict[str, Any] | None = None, file_path: str | Path | None = None
) -> None:
    """Give the session the history of a checkpoint. Its kernel is untouched.

    Raises:
        InvalidInputError: neither or both were given, or it is no checkpoint; the session is unchanged.
        OSError: the file cannot be read.
    """
    if (checkpoint_data is None) == (file_path is None):
        raise InvalidInputError("pass either checkpoint_data or file_path.")
    data: object = checkpoint_data
    if file_path is not None:
        try:
            data = json.loads(Path(file_path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{file_path} is no checkpoint: {error}.") from error
    checkpoint = _checked(data)
    session.execution_history = list(checkpoint["execution_history"])
    session.checkpoint_data = checkpoint
    session.last_checkpoint = float(checkpoint["checkpoint_time"])


def _checked(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidInputError("a checkpoint is a mapping.")
    for key, kind in _KEYS.items():
        if not isinstance(data.get(key), kind):  # type: ignore[arg-type]
            raise InvalidInputError(f"the checkpoint has no valid {key!r}.")
    history = data.get("execution_history")
    if not isinstance(history, list) or not all(_is_entry(entry) for entry in history):
        raise InvalidInputError("the checkpoint has no valid 'execution_history'.")
    return data


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("code"), str) and isinstance(entry.get("result"), dict)
