"""What the OpenAPI description says of answers: their media types and their forms, as JSON schemas. Pure.

A test sends seeded requests, and compares each answer with what stands here (``tests/server/test_description.py``).
"""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from orchestrator.outcome import Outcome
from orchestrator.server.eventstream import EventStream

Schema = dict[str, Any]
Answers = dict[int | str, dict[str, Any]]

TEXT: Final[Schema] = {"type": "string"}
NUMBER: Final[Schema] = {"type": "number"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
FLAG: Final[Schema] = {"type": "boolean"}
ANY_OBJECT: Final[Schema] = {"type": "object"}
TEXTS: Final[Schema] = {"type": "object", "additionalProperties": TEXT}


class ByteStream(Response):
    """An answer with the bytes of a file."""

    media_type = "application/octet-stream"


class TarStream(StreamingResponse):
    """An answer with a folder."""

    media_type = "application/x-tar"


class NotebookText(Response):
    """An answer with a notebook."""

    media_type = "application/x-ipynb+json"


class PlainText(Response):
    """An answer that browsers neither run nor show as a page."""

    media_type = "text/plain; charset=utf-8"


def maybe(schema: Schema) -> Schema:
    """Return the schema of a value that may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def many(schema: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": schema}


def fields(**properties: Schema) -> Schema:
    """Return the schema of an object with at least these members."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def without(schema: Schema, *names: str) -> Schema:
    """Return the schema of an object that need not have all members."""
    return {**schema, "required": [name for name in schema["required"] if name not in names]}


def answers(schema: Schema, status: int = 200, *, events: bool = False) -> Answers:
    """Return what a route answers with: JSON of this schema, and server-sent events for clients that ask for them."""
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if events:
        content[EventStream.media_type] = {"schema": ANY_OBJECT}
    return {status: {"content": content, "description": "What was asked for."}}


NOTEBOOK: Final[Answers] = {
    200: {"content": {NotebookText.media_type: {"schema": ANY_OBJECT}}, "description": "What was asked for."}
}
EVENTS: Final[Answers] = {
    200: {"content": {EventStream.media_type: {"schema": ANY_OBJECT}}, "description": "Events as they come."}
}
_OUTCOME: Final[Schema] = {"enum": [outcome.value for outcome in Outcome]}
_RESTORED: Final = maybe(fields(checkpoint_id=TEXT, cell=COUNT, lost=many(ANY_OBJECT), seconds=NUMBER))
_CHANGED: Final = many(fields(change={"enum": ["made", "changed", "removed"]}, path=TEXT, size=COUNT))

PROBLEM: Final = fields(type=TEXT, title=TEXT, status=COUNT, detail=TEXT)
REFUSALS: Final[Answers] = {
    "default": {
        "description": "A refusal, whose `code` names the typed error, or a failure (RFC 9457).",
        "content": {"application/problem+json": {"schema": PROBLEM}},
    }
}
_COMMON: Final = {
    "session_id": TEXT,
    "agent_id": TEXT,
    "kernel_id": TEXT,
    "policy": TEXT,
    "image": TEXT,
    "labels": TEXTS,
    "expires_at": maybe(NUMBER),
    "on_expiry": {"enum": ["end", "hibernate"]},
    "created_at": NUMBER,
    "last_used_at": NUMBER,
    "cell_count": COUNT,
    "parent_id": maybe(TEXT),
    "runtime": TEXT,
}
SESSION: Final = fields(**_COMMON, state={"enum": ["live", "asleep"]}, previous_end=maybe(TEXT), restored=_RESTORED)
SESSION_ROW: Final = fields(**_COMMON, state={"enum": ["live", "asleep", "ended"]}, end_reason=maybe(TEXT), bytes=COUNT)
RESTORED: Final = fields(checkpoint_id=TEXT, cell=COUNT, lost=many(ANY_OBJECT), seconds=NUMBER)
CHECKPOINT: Final = fields(
    checkpoint_id=TEXT, session_id=TEXT, created_at=NUMBER, cell=COUNT, bytes=COUNT, lost=many(ANY_OBJECT)
)
VARIABLE: Final = fields(name=TEXT, type=TEXT, size=maybe(COUNT), shape=maybe(many(COUNT)), preview=TEXT)
NOTEBOOK_ANSWER: Final = fields(status={"enum": ["ok", "error"]}, token_estimate=COUNT)
RESULT: Final = without(
    fields(
        outcome=_OUTCOME,
        status={"enum": ["ok", "error"]},
        stdout=TEXT,
        stderr=TEXT,
        result=maybe(TEXT),
        outputs=many(ANY_OBJECT),
        execution_count=maybe(COUNT),
        duration_s=NUMBER,
        kernel_state={"enum": ["idle", "dead"]},
        evidence=ANY_OBJECT,
        warnings=many(TEXT),
        changed_files=_CHANGED,
    ),
    "stdout",  # these three are not in a compact answer
    "stderr",
    "result",
)
CELL: Final = fields(cell_id=TEXT, code=TEXT, started_at=NUMBER, is_running=FLAG)
HISTORY_CELL: Final = fields(
    number=COUNT, timestamp=NUMBER, ended_at=maybe(NUMBER), outcome=TEXT, code=TEXT, result=ANY_OBJECT
)
COMMAND: Final = fields(
    number=COUNT, command=many(TEXT), shell=FLAG, pid=COUNT, started_at=NUMBER, age_s=NUMBER, is_running=FLAG
)
COMMAND_RESULT: Final = fields(
    number=COUNT,
    command=many(TEXT),
    shell=FLAG,
    outcome=_OUTCOME,
    exit_code=maybe({"type": "integer"}),
    stdout=TEXT,
    stderr=TEXT,
    duration_s=NUMBER,
    changed_files=_CHANGED,
)
COMMAND_RECORD: Final = fields(
    number=COUNT, kernel_id=TEXT, command=many(TEXT), shell=FLAG, started_at=NUMBER, ended_at=maybe(NUMBER),
    outcome=TEXT, result=maybe(ANY_OBJECT),
)  # fmt: skip
FILE: Final = fields(path=TEXT, kind=TEXT, size=COUNT, is_dir=FLAG)
CALLER: Final = fields(
    name=TEXT,
    group=TEXT,
    is_operator=FLAG,
    policies=many(TEXT),
    needs_token=FLAG,
    process_id=TEXT,
    protocol=NUMBER,
    protocol_oldest=NUMBER,
    version=TEXT,
)


def extended(schema: Schema, **properties: Schema) -> Schema:
    """Return the schema of an object with more members."""
    return fields(**schema["properties"], **properties)
