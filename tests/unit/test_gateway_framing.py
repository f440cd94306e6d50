"""The frames of the gateway's WebSockets."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.broker.messages import MessageMaker
from orchestrator.errors import InvalidInputError
from orchestrator.server.gateway.framing import json_frame, parse, parts_of, v1_frame
from orchestrator.server.gateway.outgoing import Outgoing

HEADER = {"msg_id": "m", "msg_type": "comm_msg", "more": "x", "date": 1.5, "session": "s"}
BUFFERS = [b"", b"\x00\xff", b"abc"]


@pytest.mark.parametrize("buffers", [[], BUFFERS])
@pytest.mark.parametrize("v1", [True, False])
def test_a_frame_of_ours_can_be_parsed(buffers: list[bytes], v1: bool) -> None:
    """Content, metadata and buffers come unchanged; of the header only the fields that answers repeat."""
    content = {"code": "\u20ac\ud800 ]}", "nan": float("nan")}
    made = MessageMaker().make("comm_msg", content, {"msg_id": "p"}, {"k": [1]}, buffers)
    parts = parts_of(made)
    frame = v1_frame("stdin", parts, buffers) if v1 else json_frame("stdin", made.header, parts, buffers)
    found = parse(frame if v1 or buffers else frame.decode(), v1=v1)
    assert found is not None
    channel, message = found
    assert (channel, message.kind, message.header["msg_id"]) == ("stdin", "comm_msg", made.header["msg_id"])
    assert (message.content, message.metadata) == ({**content, "nan": None}, {"k": [1]})
    assert (message.buffers, message.size) == (buffers, len(frame))


def test_a_header_keeps_what_answers_repeat() -> None:
    parts = parts_of(MessageMaker().make("x", {}, {}))
    found = parse(
        json_frame("shell", HEADER, [str(HEADER).replace("'", '"').encode(), *parts[1:]], ()).decode(), v1=False
    )
    assert found is not None
    assert found[1].header == {"msg_id": "m", "msg_type": "comm_msg", "session": "s"}


@pytest.mark.parametrize("v1", [True, False])
def test_buffers_do_not_overlap(v1: bool) -> None:
    """Else a message of 2 MiB could have a thousand buffers of as much."""
    parts = parts_of(MessageMaker().make("x", {}, {}))
    if v1:
        frame = bytearray(v1_frame("shell", parts, [b"x" * 100, b"y"]))
        struct.pack_into("<Q", frame, 8 * 7, struct.unpack_from("<Q", frame, 8 * 6)[0] - 50)
    else:
        frame = bytearray(json_frame("shell", HEADER, parts, [b"x" * 100, b"y"]))
        struct.pack_into("!I", frame, 4 * 3, struct.unpack_from("!I", frame, 4 * 2)[0] - 50)
    with pytest.raises(InvalidInputError):
        parse(bytes(frame), v1=v1)


_NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 80)
_V1 = st.builds(
    lambda numbers, rest: struct.pack(f"<{len(numbers)}Q", *numbers) + rest, st.lists(_NUMBERS), st.binary()
)
_OLD = st.builds(
    lambda numbers, rest: struct.pack(f"!{len(numbers)}I", *(each % 2**32 for each in numbers)) + rest,
    st.lists(_NUMBERS),
    st.binary(),
)


@given(frame=st.binary() | _V1 | _OLD | st.text(), v1=st.booleans())
def test_nonsense_is_refused(frame: bytes | str, v1: bool) -> None:
    """Whatever comes: no other error than the one that ends the WebSocket."""
    with contextlib.suppress(InvalidInputError):
        parse(frame, v1=v1)


async def test_the_size_of_a_message_is_what_it_takes() -> None:
    """What waits for a client is bounded by it: the header of the request and escaped characters count."""
    maker = MessageMaker()
    for text in ("x" * 50_000, "\u20ac" * 50_000):
        for made in (
            maker.make("stream", {"text": text}, {}),
            maker.make("stream", {}, {"msg_id": text}),
            maker.make("stream", {"data": [{text: None}]}, {}, {}, [b"y" * 50_000]),
        ):
            outgoing = Outgoing("iopub", made)
            for v1 in (True, False):
                frame = await outgoing.frame(v1=v1)
                assert len(frame) <= outgoing.size <= len(frame) + 2000
