"""Checks what callers pass in, before anything is started. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.errors import InvalidAgentIdError, InvalidCodeError, InvalidInputError
from orchestrator.limits import MIB

LONGEST_AGENT_ID = 200  # characters
LONGEST_GROUP = 200  # characters
HIGHEST_PRIORITY = 100
LONGEST_CODE = MIB  # bytes of UTF-8 in one cell
LONGEST_COMMAND = 128 * 1024  # bytes of one argument or variable, which is Linux's limit (MAX_ARG_STRLEN)
LONGEST_COMMANDS = 2 * MIB - 64 * 1024  # bytes of all arguments and variables of one command: Linux's limit
MOST_ARGUMENTS = 10_000
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


def check_command(
    command: str | Sequence[str], cwd: str, env: Mapping[str, str] | None, timeout: float | None
) -> tuple[str, ...]:
    """Check that a command can be sent to a kernel. Returns its arguments; a command line is one.

    Raises:
        InvalidInputError: the command, its working directory, a variable or the time limit cannot be used.
    """
    argv = (command,) if isinstance(command, str) else tuple(command)
    if not argv or len(argv) > MOST_ARGUMENTS or not argv[0]:
        raise InvalidInputError(f"a command is a line, or 1 to {MOST_ARGUMENTS} arguments; the first is not empty.")
    _check_sizes((*argv, cwd, *_variables(env)))
    if timeout is not None and not timeout > 0:
        raise InvalidInputError("the timeout must be a number of seconds above 0.")
    return argv


def check_environment(environment: Mapping[str, str] | None) -> None:
    """Check that variables can be given to a process.

    Raises:
        InvalidInputError: a name or a value cannot be used, or they are too long.
    """
    if environment:
        _check_sizes(_variables(environment))


def _variables(environment: Mapping[str, str] | None) -> list[str]:
    variables = dict(environment or {})
    for name in variables:
        if not isinstance(name, str) or not name or "=" in name:
            raise InvalidInputError(f"{name!r} is not the name of a variable.")
    return [*variables, *variables.values()]


def _check_sizes(texts: Sequence[str]) -> None:
    sizes = [_size_of_text(text) for text in texts]
    if max(sizes) >= LONGEST_COMMAND or sum(sizes) > LONGEST_COMMANDS:
        raise InvalidInputError(
            "it is too long: an argument or a variable may have 128 KiB, and all of them 1.9 MiB.",
            remedy="Pass long data as stdin, or in a file.",
        )


def _size_of_text(value: object) -> int:
    """Return the bytes of a text of a process. Bytes that are no UTF-8 are written as ``os.fsdecode`` returns them."""
    if not isinstance(value, str):
        raise InvalidInputError(f"arguments, folders and variables are strings, not {type(value).__name__}.")
    try:
        size = len(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise InvalidInputError("an argument or a variable has a lone surrogate.") from None
    if "\0" in value:
        raise InvalidInputError("an argument or a variable contains NUL.")
    return size
