"""The bodies of the native API's requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import InvalidInputError
from orchestrator.tool import MOST_TOOLS

_EXAMPLE_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]
AgentName = Annotated[str, Field(max_length=200)]
Variables = Annotated[dict[str, str], Field(max_length=1000)]


class Body(BaseModel):
    """A request's body. An unknown key is refused: it is a typing error, or of a newer version."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NewSession(Body):
    """A session to make, or an agent's session to come back to.

    Attributes:
        agent_id: the agent, within the token's group; "": a new one.
        policy: one of the token's policies; "": its first.
        image: a sandbox image of the host; "": the policy's.
        environment: variables of every cell and command.
        labels: what you want to keep with it.
        ttl_s: seconds from now after which it expires.
        on_expiry: whether it then ends or hibernates.
        timeout: seconds to wait for a free kernel.
        priority: the place in the queue of the group.
        caller: on whose behalf the client asks, for the audit log.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"agent_id": "analyst", "ttl_s": 3600}]})

    agent_id: AgentName = ""
    policy: Annotated[str, Field(max_length=200)] = ""
    image: Annotated[str, Field(max_length=300)] = ""
    environment: Variables = Field(default_factory=dict)
    labels: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)
    ttl_s: float | None = None
    on_expiry: Literal["end", "hibernate"] = "end"
    timeout: Annotated[float, Field(ge=0, le=600)] = 60.0
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    caller: Annotated[str, Field(max_length=200)] = ""


class Drain(Body):
    """What a host's sessions have time for.

    Attributes:
        deadline_s: seconds after which those that are still here stay.
    """

    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 60.0


class Definition(Body):
    """A tool of the client, which the cell may call. Each call comes as an event ``tool_call``, and wants an answer.

    Attributes:
        parameters: JSON schema of its arguments, which are an object.
        checked: whether the server checks the arguments; if not, the client has to.
    """

    name: str
    description: Annotated[str, Field(max_length=20_000)] = ""
    parameters: Annotated[dict[str, Any], Field(examples=[_EXAMPLE_SCHEMA])]
    checked: bool = True


class NewCell(Body):
    """A cell to run.

    Attributes:
        timeout: seconds; at most the policy's limit, and if None.
        output_limit: bytes; at most the policy's limit, and if None.
        environment: variables while the cell runs.
        tools: functions of the client that it may call.
        input: whether the client answers ``input()``: each comes as an event ``input_request``.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "x = 6 * 7\nx"}]})

    code: str
    timeout: Seconds | None = None
    output_limit: Annotated[int, Field(gt=0)] | None = None
    environment: Variables = Field(default_factory=dict)
    tools: Annotated[list[Definition], Field(max_length=MOST_TOOLS)] = Field(default_factory=list)
    input: bool = False


class Failure(Body):
    """Why a tool has no result: an exception of this name is raised in the cell."""

    kind: Annotated[str, Field(max_length=100)] = "RuntimeError"
    message: Annotated[str, Field(max_length=2000)] = ""


class Answer(Body):
    """The answer to a ``tool_call`` (any JSON) or an ``input_request`` (a line)."""

    result: Any = None
    error: Failure | None = None


class NewCommand(Body):
    """A command to run.

    Attributes:
        command: a line for ``bash``, or the program and its arguments.
        cwd: its working directory; relative to ``/work``.
        stdin: what it reads.
        stdin_base64: the same as bytes.
        timeout: seconds; at most the policy's limit, and if None.
        background: whether to answer once it has started. It then runs on when the client is gone.
        keep_stdin: whether more input may follow. Only in the background.
        terminal: rows and columns of a terminal. Only in the background.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"command": "ls -l | head"}, {"command": ["uname", "-a"]}]}
    )

    command: str | Annotated[list[str], Field(max_length=10_000)]
    cwd: str = ""
    env: Variables = Field(default_factory=dict)
    stdin: str = ""
    stdin_base64: str = ""
    timeout: Seconds | None = None
    background: bool = False
    keep_stdin: bool = False
    terminal: tuple[Annotated[int, Field(ge=1, le=1000)], Annotated[int, Field(ge=1, le=1000)]] | None = Field(
        default=None, strict=False
    )


class Signal(Body):
    """A signal: a number, or a name such as "SIGTERM"."""

    signal: int | str = "SIGKILL"


class Input(Body):
    """What a command reads next; ``last``: and that it is all."""

    data: str = ""
    data_base64: str = ""
    last: bool = False


class Size(Body):
    """The size of a terminal."""

    rows: Annotated[int, Field(ge=1, le=1000)]
    columns: Annotated[int, Field(ge=1, le=1000)]


class Lifetime(Body):
    """After how many seconds from now a session expires; None: never."""

    ttl_s: float | None
    on_expiry: Literal["end", "hibernate"] = "end"


class Restart(Body):
    """Whether the files of ``/work`` move to the fresh kernel."""

    keep_files: bool = True
    timeout: Seconds | None = None


class Requirements(Body):
    """Packages, such as "emoji==2.14"."""

    requirements: Annotated[list[str], Field(min_length=1, max_length=100)]


class Restore(Body):
    """The id of a checkpoint."""

    checkpoint_id: str
    timeout: Seconds | None = None


class Fork(Body):
    """How many sessions to make of one, and their agents; without names they are "NAME~1", "NAME~2", …"""

    count: Annotated[int, Field(ge=1, le=1000)]
    agent_ids: Annotated[list[AgentName], Field(max_length=1000)] | None = None


class Move(Body):
    """Where a file is, and where it shall be."""

    source: str
    destination: str


def one_of(text: str, data: bytes | None) -> bytes:
    """Return input that came as text or as bytes.

    Raises:
        InvalidInputError: it came as both.
    """
    if text and data:
        raise InvalidInputError("the input came twice: as text and as base64.")
    return data if data else text.encode("utf-8", "surrogatepass")
