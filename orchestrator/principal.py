"""Principal: who calls, as a door such as the server has found out. Below a door nothing knows tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from orchestrator.errors import InvalidInputError

Right = Literal["operator"]
RIGHTS: Final[tuple[Right, ...]] = get_args(Right)
_GROUP = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller of the server.

    Attributes:
        name: for the audit log.
        group: whose sessions it sees.
        policies: the names of the policies that its sessions may have; the first is the default.
        rights: "operator": it sees and stops the sessions of all groups, and reads the metrics.
        token_id: of its token; "" where the server needs none.
    """

    name: str
    group: str
    policies: tuple[str, ...] = ("default",)
    rights: frozenset[Right] = frozenset()
    token_id: str = ""

    @property
    def is_operator(self) -> bool:
        return "operator" in self.rights

    def agent_id(self, name: str) -> str:
        """Return the agent id of the group's agent ``name``. No two groups have one in common: a group has no colon."""
        return f"{self.group}:{name}"


def check_group(group: str) -> str:
    """Return a group's name.

    Raises:
        InvalidInputError: it is not 1 to 63 small letters, digits, ``_`` and ``-``.
    """
    if not _GROUP.fullmatch(group):
        raise InvalidInputError(
            f"{group[:80]!r} is not the name of a group: 1 to 63 small letters, digits, _ and - are allowed."
        )
    return group
