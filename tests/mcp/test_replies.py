"""What becomes of results, errors and files in a reply; and what is kept of them. No engine."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import strategies as st
from mcp_types import ImageContent, ResourceLink, TextContent

from orchestrator.errors import CellblockError, InvalidCodeError, SessionElsewhereError, StoreError
from orchestrator.mcp import replies
from orchestrator.mcp.shelf import Shelf
from orchestrator.outcome import Outcome
from orchestrator.output.outputs import DisplayData, ExecuteResult, Output, StreamOutput
from orchestrator.output.result import ExecutionResult
from orchestrator.output.tokencount import fitted, head, tokens


def png(width: int = 9, height: int = 9, more: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\0" * (9 + more)


def form(content: bytes) -> str:
    return base64.b64encode(content).decode()


def result(*outputs: Output, outcome: Outcome = Outcome.OK) -> ExecutionResult:
    ok = outcome is Outcome.OK
    return ExecutionResult(
        status="ok" if ok else "error",
        outcome=outcome,
        outputs=outputs,
        error=None,
        msg_id="m",
        execution_count=1,
        duration_s=0.1,
        truncated=None,
        kernel_state="idle",
        runtime="runc",
    )


PNG, JPEG = png(), b"\xff\xd8\xff" + b"\0" * 30


@pytest.mark.parametrize(
    ("data", "pictures", "attached"),
    [
        ({"image/png": form(PNG), "text/plain": "<Figure>"}, ["image/png"], []),
        ({"image/svg+xml": "<svg/>", "image/png": form(PNG)}, ["image/png"], []),
        ({"image/svg+xml": "<svg/>"}, [], ["image/svg+xml"]),
        ({"image/jpeg": form(JPEG)}, ["image/jpeg"], []),
        ({"image/jpeg": form(PNG)}, [], ["image/jpeg"]),  # not what it says: models refuse it
        ({"image/png": form(png(9000, 9))}, [], ["image/png"]),  # too wide for models
        ({"image/png": form(png(0, 9))}, [], ["image/png"]),
        ({"image/png": form(PNG[:20])}, [], ["image/png"]),
        ({"image/webp": form(b"RIFF0000WAVE")}, [], ["image/webp"]),
        ({"text/html": "<b>x</b>", "text/plain": "x"}, [], []),
        ({"text/html": "<b>x</b>"}, [], ["text/html"]),
        ({"application/json": {"a": [1]}}, [], ["application/json"]),
        ({"text/plain": "x"}, [], []),
    ],
)
def test_each_rich_output_is_shown_attached_or_in_the_text(
    data: dict[str, object], pictures: list[str], attached: list[str]
) -> None:
    reply = replies.cell(result(DisplayData(data)))
    assert [mime for mime, _content in reply.pictures] == pictures
    assert [each.mime for each in reply.attachments] == attached
    assert not reply.is_error


def test_pictures_beyond_the_limits_are_attached() -> None:
    """Eight at most, and 650,000 bytes; what is too large for a resource is named."""
    shown = replies.cell(result(*[DisplayData({"image/png": form(PNG)})] * 30))
    assert (len(shown.pictures), len(shown.attachments)) == (8, 8)
    large = replies.cell(result(*[DisplayData({"image/png": form(png(more=600_000))})] * 2))
    assert (len(large.pictures), len(large.attachments)) == (1, 1)
    huge = replies.cell(result(DisplayData({"image/png": form(png(more=800_000))})))
    told = replies.linked(huge, lambda each: pytest.fail(each.name))
    assert "output.png has 781.3 KiB, too much for a reply" in told.text
    assert told.links == ()


@pytest.mark.parametrize(
    ("outcome", "is_error"),
    [
        *((outcome, False) for outcome in (Outcome.OK, Outcome.ERROR, Outcome.TIMEOUT, Outcome.OOM)),
        (Outcome.KERNEL_DIED, False),
        (Outcome.ENGINE_LOST, True),
    ],
)
def test_only_a_failed_sandbox_is_an_error_of_the_tool(outcome: Outcome, is_error: bool) -> None:
    reply = replies.cell(result(outcome=outcome))
    assert (reply.is_error, reply.outcome) == (is_error, outcome.value)


def test_the_protocols_form() -> None:
    """Text first, then pictures, then links; notes in brackets; no structured content."""
    attached = replies.Attachment("a.bin", "application/pdf", b"x")
    reply = replies.Reply("text", (("image/png", "AAAA"),), (attached,), outcome="ok")
    linked = replies.linked(reply, lambda each: replies.Link("cellblock://output/1", each.name, each.mime, 1))
    sent = replies.to_mcp(linked, "cell-1", ["a note"])
    assert [type(each) for each in sent.content] == [TextContent, ImageContent, ResourceLink]
    assert isinstance(sent.content[0], TextContent)
    assert sent.content[0].text == "text\n[a note]"
    assert sent.structured_content is None
    assert sent.meta == {"org.cellblock/outcome": "ok", "org.cellblock/id": "cell-1"}


HOSTILE = st.text(st.characters(codec=None), max_size=60)


@hypothesis.given(
    st.lists(
        st.dictionaries(HOSTILE | HOSTILE.map("text/".__add__), HOSTILE | st.lists(HOSTILE), max_size=3), max_size=3
    ),
    HOSTILE,
)
def test_whatever_a_sandbox_shows_can_be_sent(bundles: list[dict[str, object]], text: str) -> None:
    """Lone surrogates, control characters and mime types of any form; and only plain mime types are named."""
    shown = replies.cell(result(StreamOutput("stdout", text), *map(DisplayData, bundles)))
    linked = replies.linked(shown, lambda each: replies.Link("cellblock://output/1", each.name, each.mime, 1))
    sent = replies.to_mcp(linked, "cell-1").model_dump_json(by_alias=True)
    assert len(sent.encode()) < 100_000
    for link in linked.links:
        assert link.mime.isascii()
        assert link.mime.isprintable()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidCodeError("too long.", remedy="`await manager.put_file(…)`"), "too long. Put large data into a file"),
        (SessionElsewhereError("it is there.", agent_id="a", owner="b", pid=1, host="h"), "Use another `session`"),
        (StoreError("disk full.", remedy="Free some space."), "store: disk full. Free some space."),
        (CellblockError("\x1b[31mred\x07" + "x" * 9000), "cellblock: red\\u0007xxx"),
    ],
)
def test_an_error_says_what_to_do_next(error: CellblockError, said: str) -> None:
    reply = replies.failure(error)
    assert said in reply.text
    assert "manager" not in reply.text
    assert reply.is_error
    assert len(reply.text) < 4100


@pytest.mark.parametrize(
    ("content", "size", "offset", "text", "attached"),
    [
        (b"abc", 3, 0, "abc", False),
        (b"", 0, 0, "[f is empty]", False),
        ("é".encode()[:1], 10, 0, "\n[bytes 0 to 0 of 10; go on with offset=0]", False),
        ("aé".encode()[:2], 3, 0, "a\n[bytes 0 to 1 of 3; go on with offset=1]", False),
        ("éa".encode()[1:], 3, 1, "a\n[bytes 2 to 3 of 3]", False),
        ("é".encode()[:1], 1, 0, "[f: not text; its bytes 0 to 1 of 1 are a resource]", True),
        (b"\0\1", 2, 0, "[f: not text; its bytes 0 to 2 of 2 are a resource]", True),
        (b"\0\1", 9, 4, "[f: not text; its bytes 4 to 6 of 9 are a resource; go on with offset=6]", True),
    ],
)
def test_a_file_is_text_or_bytes(content: bytes, size: int, offset: int, text: str, attached: bool) -> None:
    reply = replies.file("f", content, size, offset)
    assert reply.text == text
    assert bool(reply.attachments) == attached


def test_what_is_left_out_of_a_text_is_attached() -> None:
    """At most one resource of it, and never more than a message holds."""
    long = replies.cell(result(StreamOutput("stdout", "word " * 1_000_000), ExecuteResult({"text/plain": "7"})))
    assert tokens(long.text) <= replies.BUDGET
    (whole,) = long.attachments
    assert 500_000 < len(whole.content) <= replies.LARGEST
    assert long.text.endswith("7")


@hypothesis.given(st.text(max_size=3000), st.integers(min_value=60, max_value=500))
def test_any_text_fits_its_budget(text: str, budget: int) -> None:
    shown = fitted(lambda limit: head(text, limit), budget)
    assert tokens(shown) <= budget or len(shown) <= 250


def test_a_shelf_is_bounded_for_each_and_for_all() -> None:
    """The oldest of the same principal goes first; then the oldest of all."""
    shelf: Shelf[int] = Shelf(items=3, each=10, total=15)
    for number in range(5):
        assert shelf.put("one", str(number), number, 1)
    assert shelf.of("one") == [2, 3, 4]
    assert shelf.put("one", "large", 5, 9)
    assert shelf.of("one") == [4, 5]
    assert not shelf.put("one", "too large", 6, 11)
    assert shelf.put("two", "a", 7, 10)
    assert (shelf.of("one"), shelf.of("two"), shelf.bytes) == ([], [7], 10)
    assert shelf.get("one", "a") is None
    shelf.drop("two", "a")
    shelf.drop("two", "a")
    assert shelf.bytes == 0


def test_a_reply_knows_its_size() -> None:
    small = replies.Reply("x")
    assert replace(small, pictures=(("image/png", "A" * 5000),)).size == small.size + 5000
