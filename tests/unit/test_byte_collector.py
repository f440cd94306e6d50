"""What is kept of a command's output."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.output.bytecollector import ByteCollector
from orchestrator.output.outputs import StreamName

PIECES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=300)), max_size=60)


@given(PIECES, st.integers(1, 2000))
def test_the_beginning_and_the_end_are_kept(pieces: list[tuple[StreamName, bytes]], limit: int) -> None:
    """Within the limit, all of it; beyond it the beginning and the end of each stream. What is missing is counted."""
    collector = ByteCollector(limit)
    streamed = {"stdout": b"", "stderr": b""}
    whole = {"stdout": b"", "stderr": b""}
    for name, data in pieces:
        streamed[name] += collector.add(name, data)
        whole[name] += data
    size = sum(map(len, whole.values()))
    assert collector.bytes_seen == size
    assert collector.messages_seen == len(pieces)
    assert collector.is_past_limit == (size > limit)
    missing = 0
    for name in ("stdout", "stderr"):
        kept = collector.output(name)
        if b" of output left out here ...]\n" in kept:
            head, _, rest = kept.partition(b"\n[... ")
            _, _, tail = rest.partition(b" of output left out here ...]\n")
            assert whole[name].startswith(head)
            assert whole[name].endswith(tail)
            missing += len(whole[name]) - len(head) - len(tail)
        else:
            assert kept == whole[name]
    assert size - missing <= limit
    truncation = collector.truncation
    assert (0 if truncation is None else truncation.dropped_bytes) == missing
    for name, left_out, rest in collector.rest():
        assert len(streamed[name]) + left_out + len(rest) == len(whole[name])
        assert whole[name].endswith(rest)


def test_a_small_stream_survives_a_flood_on_the_other() -> None:
    collector = ByteCollector(10_000)
    collector.add("stdout", b"result: 42\n")
    for _ in range(1000):
        collector.add("stderr", b"warning " * 100)
    assert collector.output("stdout") == b"result: 42\n"
    assert collector.output("stderr").endswith(b"warning ")


def test_a_million_single_bytes_cost_little() -> None:
    collector = ByteCollector(100_000)
    for _ in range(1_000_000):
        collector.add("stdout", b"x")
    assert len(collector.output("stdout")) < 100_100
