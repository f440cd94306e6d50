"""NotebookSessions: which notebook uses which kernel, in memory: Jupyter Server keeps its sessions so too."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.errors import InvalidInputError, UnknownSessionError

_MOST = 1000  # sessions of one group


@dataclass(frozen=True, slots=True)
class NotebookSession:
    """A document of a client, and the kernel that it uses. The path is the client's own: it names no file here."""

    id: str
    path: str
    name: str
    kind: str
    kernel_id: str

    def as_dict(self, kernel: dict[str, Any]) -> dict[str, Any]:
        """Return Jupyter's model, with that of the kernel."""
        model = {"id": self.id, "path": self.path, "name": self.name, "type": self.kind, "kernel": kernel}
        return {**model, "notebook": {"path": self.path, "name": self.name}} if self.kind == "notebook" else model


class NotebookSessions:
    """The sessions of all groups."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, NotebookSession]] = {}

    def of(self, group: str) -> list[NotebookSession]:
        """Return a group's sessions."""
        return list(self._groups.get(group, {}).values())

    def at(self, group: str, path: str) -> NotebookSession | None:
        """Return the session of a path."""
        return next((each for each in self.of(group) if each.path == path), None)

    def find(self, group: str, session_id: str) -> NotebookSession:
        """Return a session.

        Raises:
            UnknownSessionError: the group has none of this id.
        """
        found = self._groups.get(group, {}).get(session_id)
        if found is None:
            raise UnknownSessionError(f"Session not found: session_id={session_id[:64]!r}", session_id=session_id)
        return found

    def check_room(self, group: str) -> None:
        """Check that a group may have one more.

        Raises:
            InvalidInputError: it has as many as it may.
        """
        if len(self._groups.get(group, {})) >= _MOST:
            raise InvalidInputError(f"there are {_MOST} sessions already.", remedy="Delete some.")

    def add(self, group: str, path: str, name: str, kind: str, kernel_id: str) -> NotebookSession:
        """Add a session."""
        made = NotebookSession(str(uuid.uuid4()), path, name, kind, kernel_id)
        self._groups.setdefault(group, {})[made.id] = made
        return made

    def change(self, group: str, session_id: str, **changes: str) -> NotebookSession:
        """Change fields of a session, and return it.

        Raises:
            UnknownSessionError: the group has none of this id.
        """
        changed = replace(self.find(group, session_id), **changes)
        self._groups[group][session_id] = changed
        return changed

    def remove(self, group: str, session_id: str) -> None:
        """Forget a session. Idempotent."""
        self._groups.get(group, {}).pop(session_id, None)
        if not self._groups.get(group):
            self._groups.pop(group, None)
