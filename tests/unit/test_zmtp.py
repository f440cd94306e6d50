"""The host's ZMTP: what it accepts, wherever the stream is split, what it refuses, and what it sends."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc

import pytest

from orchestrator.kernel.zmtp import GREETING, Parser, Violation, encode, ready
from tests.unit.zmtpframes import READY, frame, message

BOUND, FRAME_COST = 1000, 64


def parse(parser: Parser, stream: bytes, size: int = 1 << 20) -> list[list[bytes]]:
    """Feed a stream in pieces and return the messages."""
    found = []
    for start in range(0, len(stream), size):
        parser.feed(stream[start : start + size])
        while (frames := parser.next()) is not None:
            found.append(frames)
    return found


def test_messages_arrive_whole_wherever_the_stream_is_split() -> None:
    """What is parsed does not depend on where the stream is split."""
    messages = [[b"a" * 300, b"", b"bc"], [b"d"], [b""]]
    stream = GREETING + READY + b"".join(message(*frames) for frames in messages)
    for size in (1, 2, 7, 64, len(stream)):
        assert parse(Parser(BOUND), stream, size) == messages


def test_what_is_sent_is_what_is_parsed() -> None:
    """Frames of every kind of head, with those of a handshake before them."""
    messages = [[bytes(size)] * count for size in (0, 1, 255, 256, 70_000) for count in (1, 3)]
    stream = GREETING + ready("DEALER", b"host") + b"".join(map(encode, messages))
    assert parse(Parser(10**6), stream, 1000) == messages


def test_one_call_does_the_work_of_one_message() -> None:
    """However much was fed: the rest stays until the next call."""
    parser = Parser(BOUND)
    parser.feed(GREETING + READY + bytes(2) * 100_000)
    assert parser.next() == [b""]
    assert sum(1 for _ in iter(parser.next, None)) == 99_999


def test_nothing_stays_of_a_large_message() -> None:
    """Once it was returned."""
    parser = Parser(10**7)
    tracemalloc.start()
    try:
        assert parse(parser, GREETING + READY + message(bytes(5_000_000)))
        assert parser.next() is None
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_message_at_the_bound_passes_and_one_beyond_it_does_not() -> None:
    """The bound is on the sum of a message's frames, and an empty one is not free."""
    room = BOUND - 2 * FRAME_COST
    assert parse(Parser(BOUND), GREETING + READY + message(b"a" * 500, b"b" * (room - 500)))
    for beyond in (message(b"a" * 500, b"b" * (room - 499)), bytes([1, 0]) * 16):
        with pytest.raises(Violation, match="exceeds") as caught:
            parse(Parser(BOUND), GREETING + READY + beyond)
        assert caught.value.excess


def test_one_command_is_let_through_and_must_be() -> None:
    """READY comes first, once, and is the only one."""
    for stream in (READY + message(b"a") + frame(b"\x09SUBSCRIBE" + b"x" * 20, command=True), READY + READY):
        with pytest.raises(Violation, match="command"):
            parse(Parser(BOUND), GREETING + stream)
    with pytest.raises(Violation, match="no handshake"):
        parse(Parser(BOUND), GREETING + message(b"a"))
    with pytest.raises(Violation, match="command"):
        parse(Parser(10**6), GREETING + frame(b"\x05READY" + bytes(9000), command=True))


def test_an_endless_multipart_message_is_refused_at_the_bound() -> None:
    """Frames that never end a message add up, however small each is."""
    parser = Parser(10**9)
    assert parse(parser, GREETING + READY + frame(b"x", more=True) * 64) == []
    with pytest.raises(Violation, match="more than 64 frames"):
        parse(parser, frame(b"x", more=True))


def test_a_frame_is_refused_by_its_announced_length() -> None:
    """A length of 2**63 is refused at the header, before any of the body came."""
    with pytest.raises(Violation):
        parse(Parser(BOUND), GREETING + READY + b"\x02" + struct.pack(">Q", 2**63))


@pytest.mark.parametrize(
    "greeting",
    [
        b"\x01\x00" + bytes(62),  # ZMTP 1
        b"\xff" + bytes(8) + b"\x7f\x01\x05" + bytes(52),  # ZMTP 2
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"PLAIN".ljust(20, b"\0") + bytes(32),
        b"GET / HTTP/1.1\r\n" + bytes(48),
    ],
)
def test_other_protocols_are_refused(greeting: bytes) -> None:
    """Older ZMTP has another framing, and other mechanisms another handshake."""
    with pytest.raises(Violation):
        parse(Parser(BOUND), greeting)


def test_random_streams_end_in_a_violation_or_in_messages_never_in_anything_else() -> None:
    """20,000 random and mutated streams (seed 7): no other exception, and never more in memory than was fed."""
    chance = random.Random(7)  # noqa: S311 - a repeatable test
    for _ in range(20_000):
        stream = bytearray(GREETING + READY + message(*(chance.randbytes(chance.randrange(300)) for _ in range(3))))
        for _ in range(chance.randrange(4)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        fed = len(stream)
        found: list[list[bytes]] = []
        with contextlib.suppress(Violation):
            found = parse(Parser(BOUND), bytes(stream), chance.randrange(1, 400))
        assert sum(len(frame) for frames in found for frame in frames) <= fed
