"""Checks what callers pass in, before anything is started. Pure."""

from __future__ import annotations

from orchestrator.errors import InvalidAgentIdError, InvalidCodeError, InvalidInputError
from orchestrator.limits import MIB

LONGEST_AGENT_ID = 200  # characters
LONGEST_GROUP = 200  # characters
HIGHEST_PRIORITY = 100
LONGEST_CODE = MIB  # bytes of UTF-8 in one cell
_FORBIDDEN_IN_AGENT_ID = set("/\\")


def check_agent_id(agent_id: str) -> None:
    """Check that an agent id is safe in logs, paths and terminals.

    Raises:
        InvalidAgentIdError: it is not 1 to 200 printable characters without slashes.
    """
    if not isinstance(agent_id, str) or not agent_id.strip():
        raise InvalidAgentIdError("an agent id must be a string that is not empty.")
    if len(agent_id) > LONGEST_AGENT_ID:
        raise InvalidAgentIdError(f"the agent id has {len(agent_id)} characters; the limit is {LONGEST_AGENT_ID}.")
    if not agent_id.isprintable() or _FORBIDDEN_IN_AGENT_ID & set(agent_id):
        raise InvalidAgentIdError(
            f"the agent id {agent_id[:40]!r} contains slashes, or characters that cannot be printed."
        )


def check_lease_request(group: str | None, priority: int) -> None:
    """Check the group and the priority of a lease request.

    Raises:
        InvalidInputError: the group's name has more than 200 characters, or some that cannot be printed; or the
            priority is no whole number from -100 to 100.
    """
    if group is not None and (not isinstance(group, str) or len(group) > LONGEST_GROUP or not group.isprintable()):
        raise InvalidInputError(f"a group is a string of at most {LONGEST_GROUP} printable characters.")
    if not isinstance(priority, int) or abs(priority) > HIGHEST_PRIORITY:
        raise InvalidInputError(f"a priority is a whole number from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}.")


def check_code(code: str) -> None:
    """Check that code can be sent to a kernel.

    Raises:
        InvalidCodeError: it is not a string, is empty, exceeds 1 MiB, or contains NUL bytes or lone surrogates.
    """
    if not isinstance(code, str):
        raise InvalidCodeError(f"code must be a string, not {type(code).__name__}.")
    if not code.strip():
        raise InvalidCodeError("the code is empty.")
    if "\0" in code:
        raise InvalidCodeError("the code contains NUL bytes.")
    try:
        size = len(code.encode())
    except UnicodeEncodeError as error:
        raise InvalidCodeError(f"the code contains a lone surrogate at character {error.start}.") from None
    if size > LONGEST_CODE:
        raise InvalidCodeError(
            f"the code has {size} bytes; a cell may have at most {LONGEST_CODE}.",
            remedy="Write large data to a file with `await manager.put_file(session, data, name)`.",
        )
