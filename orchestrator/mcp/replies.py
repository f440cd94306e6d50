"""Makes MCP content of results, errors and files. Pure.

A cell that raised is a result, not an error of the tool: ``is_error`` stays false, and the text has the traceback. Some
clients count ``is_error`` as a failed call, drop its pictures, and end the agent after a few of them. ``is_error`` is
true if the call could not be used, or the sandbox failed. No reply has structured content: some clients show that in
place of the text, or pictures a second time as text.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent

from orchestrator.errors import CellblockError
from orchestrator.output.amounts import amount
from orchestrator.output.commandresult import CommandResult
from orchestrator.output.fileinfo import FileInfo
from orchestrator.output.formodels import plain
from orchestrator.output.outputs import DisplayData, ExecuteResult
from orchestrator.output.printable import printable
from orchestrator.output.result import ExecutionResult
from orchestrator.output.tokencount import fitted, head
from orchestrator.output.variableinfo import VariableInfo

BUDGET = 8500  # estimated tokens of one text: clients warn at 10,000
LARGEST = 700_000  # bytes of one resource: as base64, one message below the 1 MiB that the SDK's client takes
_PICTURES = 8  # in one reply
_PICTURE_BYTES = 650_000  # of all pictures of one reply, which is one message too
_ATTACHMENTS = 8  # of one reply
_MOST_PIXELS = 8000  # of each side: models refuse larger pictures
_WHOLE = 600_000  # characters of an output that is too long for the reply
_SHOWN = ("text/plain", "text/markdown", "text/latex")  # in the text, so not linked as well
_MIME = re.compile(r"[A-Za-z0-9.+-]{1,40}/[A-Za-z0-9.+-]{1,80}")
_MAGIC = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}

# What a model can do next, where the error's own remedy speaks to a programmer.
_NEXT = {
    "invalid_code": "Put large data into a file with write_file.",
    "session_elsewhere": "Use another `session` name, or call again once that process has ended.",
    "session_busy": "Call again in a minute, or interrupt what runs.",
    "session_ended": "Call again: a fresh kernel starts.",
    "kernel_died": "Call again: a fresh kernel starts, without the variables.",
    "kernel_pool_exhausted": "Call again later, or end a session with sessions(end=NAME).",
    "command_limit": "Wait for a command, or interrupt one.",
    "checkpoint_missing": "Use an id that checkpoint returned in this session.",
    "checkpoint_foreign": "Use an id that checkpoint returned in this session.",
    "quota_exceeded": "End sessions that are not needed with sessions(end=NAME).",
}


@dataclass(frozen=True, slots=True)
class Link:
    """A resource that a reply names."""

    uri: str
    name: str
    mime: str
    size: int


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a text only names: a content that is to be kept, so that a link can lead to it."""

    name: str
    mime: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a call.

    Attributes:
        pictures: mime type and base64.
        attachments: become links, see ``linked``.
        outcome: how the cell or command ended, for programs; "" for anything else.
    """

    text: str
    pictures: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    links: tuple[Link, ...] = ()
    is_error: bool = False
    outcome: str = ""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 1000 + 2 * len(self.text) + sum(len(data) for _mime, data in self.pictures))


def to_mcp(reply: Reply, job: str = "", notes: Sequence[str] = ()) -> CallToolResult:
    """Return a reply, followed by notes, as the protocol's result."""
    text = "\n".join(part for part in (reply.text, *(f"[{note}]" for note in notes)) if part)
    content: list[ContentBlock] = [TextContent(text=text)]
    content += [ImageContent(data=data, mime_type=mime) for mime, data in reply.pictures]
    content += [ResourceLink(uri=link.uri, name=link.name, mime_type=link.mime, size=link.size) for link in reply.links]
    named = {"org.cellblock/outcome": reply.outcome, "org.cellblock/id": job}
    meta = {key: value for key, value in named.items() if value}
    return CallToolResult(content=content, is_error=reply.is_error, _meta=meta or None)


def linked(reply: Reply, keep: Callable[[Attachment], Link]) -> Reply:
    """Return a reply with links in place of its attachments, and a line for each that is too large for a resource.

    Args:
        keep: keeps one, and returns its link.
    """
    small = [each for each in reply.attachments if len(each.content) <= LARGEST]
    lines = [
        f"[{each.name} has {amount(len(each.content))}, too much for a reply. Make it smaller, or save it in a file.]"
        for each in reply.attachments
        if each not in small
    ]
    text = "\n".join((reply.text, *lines))
    return replace(reply, text=text, attachments=(), links=(*reply.links, *map(keep, small)))


def failure(error: CellblockError) -> Reply:
    """Return what a model can do about an error."""
    advice = _NEXT.get(error.code, error.remedy)
    return Reply(head(plain(f"{error.code}: {error.message} {advice}".rstrip()), 4000), is_error=True)


def cell(result: ExecutionResult) -> Reply:
    """Return a cell's text, its pictures, and what the text only names."""
    pictures = _Pictures()
    others: list[Attachment] = []
    for mime, content in _rich(result):
        if not pictures.take(mime, content) and len(others) < _ATTACHMENTS:
            others.append(Attachment(f"output.{_extension(mime)}", mime, content))
    text, whole = _fitted(result.as_text)
    lost = result.outcome == "engine_lost"
    return Reply(text, tuple(pictures.taken), (*whole, *others), is_error=lost, outcome=result.outcome)


def command(result: CommandResult) -> Reply:
    """Return a command's text."""
    text, whole = _fitted(result.as_text)
    return Reply(text, attachments=whole, is_error=result.outcome == "engine_lost", outcome=result.outcome)


def notebook(answer: Mapping[str, Any]) -> Reply:
    """Return an answer of the notebook protocol as JSON, with the picture that it has."""
    form = dict(answer)
    outcome = str(form.get("outcome", form["status"]))
    content = form.pop("base64", None)
    text = plain(json.dumps(form, ensure_ascii=False))
    if content is None:
        return Reply(text, outcome=outcome)
    mime, data, pictures = str(form["mime"]), base64.b64decode(content), _Pictures()
    if pictures.take(mime, data):
        return Reply(text, tuple(pictures.taken), outcome=outcome)
    safe = mime if _MIME.fullmatch(mime) else "application/octet-stream"
    return Reply(text, attachments=(Attachment(f"output.{_extension(mime)}", safe, data),), outcome=outcome)


def unfinished(name: str, state: str, seconds: float, so_far: str) -> Reply:
    """Return what a cell, or anything else that goes on, has put out so far, and how to go on."""
    said = f'{state} after {seconds:.0f} s: wait("{name}") waits on, interrupt("{name}") stops it'
    return Reply("\n".join(part for part in (so_far, f"[{said}]") if part), outcome="running")


def file(path: str, content: bytes, size: int, offset: int) -> Reply:
    """Return a file: text, a picture, or its bytes as an attachment.

    Args:
        content: its bytes from ``offset`` on.
        size: of the whole file.
    """
    name, shown = printable(path.rpartition("/")[2], 100), printable(path, 300)
    begin = next((at for at in range(min(4, len(content))) if content[at] & 0xC0 != 0x80), 0) if offset else 0
    text = _as_text(content[begin:], cut=offset + len(content) < size)
    if text is not None:
        return _text_file(shown, text, size, offset + begin)
    mime = next((mime for mime in _MAGIC if _is_picture(mime, content)), "application/octet-stream")
    end = offset + len(content)
    if offset == 0 and end >= size:
        pictures = _Pictures()
        if pictures.take(mime, content):
            return Reply(f"[{shown}: {mime}, {amount(size)}]", tuple(pictures.taken))
    more = f"; go on with offset={end}" if end < size else ""
    said = f"[{shown}: not text; its bytes {offset} to {end} of {size} are a resource{more}]"
    return Reply(said, attachments=(Attachment(name, mime, content),))


def files(found: Sequence[FileInfo]) -> Reply:
    """Return a list of files, each with its size."""

    def line(each: FileInfo) -> str:
        more = {"dir": "/", "file": f"  {each.size}"}.get(each.kind, f"  ({each.kind})")
        return f"{printable(each.path, 300)}{more}"

    return Reply(_lines([line(each) for each in found], "no files"))


def variables(found: Sequence[VariableInfo]) -> Reply:
    """Return a list of variables."""
    lines = []
    for each in found:
        shape = "" if each.shape is None else f" {each.shape}"
        size = "" if each.size is None else f" {amount(each.size)}"
        lines.append(f"{each.name}: {each.type}{shape}{size} = {each.preview[:80]}")
    return Reply(_lines(lines, "no variables"))


def output_so_far(text: str) -> str:
    """Return the end of what was put out, without control characters, as a model reads it."""
    return fitted(lambda limit: plain(text[-limit:]), 1000)


def _lines(lines: Sequence[str], none: str) -> str:
    return fitted(lambda limit: head("\n".join(lines), limit), BUDGET) or none


class _Pictures:
    """The pictures of one reply."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str]] = []
        self._bytes = 0

    def take(self, mime: str, content: bytes) -> bool:
        """Add a picture that models can see, while there is room. Returns whether it was added."""
        fits = len(self.taken) < _PICTURES and self._bytes + len(content) <= _PICTURE_BYTES
        if not fits or not _is_picture(mime, content):
            return False
        self.taken.append((mime, base64.b64encode(content).decode()))
        self._bytes += len(content)
        return True


def _is_picture(mime: str, content: bytes) -> bool:
    """Return whether a content is what its mime type says: models refuse a whole conversation with one that is not."""
    magic = _MAGIC.get(mime)
    if magic is None or not content.startswith(magic):
        return False
    if mime == "image/webp":
        return content[8:12] == b"WEBP"
    if mime == "image/png":
        return len(content) > 24 and all(0 < side <= _MOST_PIXELS for side in struct.unpack(">II", content[16:24]))
    return True


def _rich(result: ExecutionResult) -> Iterator[tuple[str, bytes]]:
    """Yield the content of rich outputs that the text only names: of each, one form."""
    for output in result.outputs:
        if not isinstance(output, DisplayData | ExecuteResult):
            continue
        pictures = sorted(
            (mime for mime in output.data if mime.startswith("image/")), key=lambda mime: mime not in _MAGIC
        )
        shown = [] if pictures else [mime for mime in output.data if mime in _SHOWN]
        others = [mime for mime in output.data if mime not in _SHOWN]
        for mime in (pictures or ([] if shown else others))[:1]:
            content = _bytes_of(mime, output.data)
            if content is not None:
                yield mime if _MIME.fullmatch(mime) else "application/octet-stream", content


def _bytes_of(mime: str, data: Mapping[str, Any]) -> bytes | None:
    item = data[mime]
    if not isinstance(item, str):
        return json.dumps(item).encode()
    if mime.startswith("text/") or mime.endswith(("json", "xml")):
        return item.encode("utf-8", "replace")
    try:
        return base64.b64decode(item)
    except (binascii.Error, ValueError):
        return None


def _fitted(render: Callable[[int], str]) -> tuple[str, tuple[Attachment, ...]]:
    """Return a text within the budget, and all of it as an attachment if it lost something."""
    text = fitted(render, BUDGET)
    whole = render(_WHOLE)
    if len(whole) <= len(text):
        return text, ()
    content = whole.encode("utf-8", "replace")
    return text, (Attachment("output.txt", "text/plain", content[:LARGEST]),)


def _extension(mime: str) -> str:
    kind = mime.rpartition("/")[2].partition("+")[0]
    return kind if kind.isascii() and kind.isalnum() and len(kind) <= 12 else "bin"


def _as_text(content: bytes, *, cut: bool) -> str | None:
    """Return the content as text; None if it is none.

    Args:
        cut: whether it may end in the midst of a character, which is then left out.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(content, final=not cut)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _text_file(shown: str, text: str, size: int, offset: int) -> Reply:
    part = fitted(lambda limit: text[:limit], BUDGET)
    end = offset + len(part.encode())
    if offset == 0 and end >= size:
        return Reply(plain(part) or f"[{shown} is empty]")
    more = f"; go on with offset={end}" if end < size else ""
    return Reply(f"{plain(part)}\n[bytes {offset} to {end} of {size}{more}]")
