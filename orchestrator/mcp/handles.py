"""Handle: which session a call means. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.errors import InvalidInputError
from orchestrator.inputs import check_agent_id

DEFAULT = "main"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_LONGEST_OWNER = 120  # characters: with a name, the agent id has fewer than 200


@dataclass(frozen=True, slots=True)
class Handle:
    """A session of one principal.

    No name has a colon, so the last colon of an agent id ends the owner, and no two principals share a session.

    Attributes:
        owner: the principal.
        name: what the model calls the session.
    """

    owner: str
    name: str

    @property
    def agent_id(self) -> str:
        return f"{self.owner}:{self.name}"


def check_owner(owner: str) -> str:
    """Return a principal's name.

    Raises:
        InvalidAgentIdError: it cannot begin an agent id.
        InvalidInputError: it is longer than 120 characters.
    """
    check_agent_id(owner)
    if len(owner) > _LONGEST_OWNER:
        raise InvalidInputError(f"a principal's name has at most {_LONGEST_OWNER} characters.")
    return owner


def handle_of(owner: str, name: str) -> Handle:
    """Return the session that a model has named; "" is the default one.

    Raises:
        InvalidInputError: the name cannot be used.
    """
    if name and _NAME.fullmatch(name) is None:
        raise InvalidInputError(
            "a session's name has 1 to 64 letters, digits, dots, hyphens and underscores, and begins and ends with a "
            "letter or a digit."
        )
    return Handle(owner, name or DEFAULT)


def name_in(owner: str, agent_id: str) -> str | None:
    """Return the name of an agent's session of this principal; None if it is not one."""
    begin, _colon, name = agent_id.rpartition(":")
    return name if begin == owner and _NAME.fullmatch(name) else None
