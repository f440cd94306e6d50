"""Standard input and output as the server uses them: only the protocol goes through, and nothing blocks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.errors import InvalidInputError
from orchestrator.mcp.stdiowire import check_stream
from tests.conftest import REPOSITORY

PROGRAM = """
import asyncio, os, subprocess
from orchestrator.mcp.stdiowire import standard_streams

async def main():
    async with standard_streams() as (stdin, stdout):
        print("printed", flush=True)
        os.write(1, b"written\\n")
        subprocess.run(["sh", "-c", "cat; echo child"])
        async for line in stdin:
            await stdout.write(f"{len(line)} {line[:5]!r}\\n")
            await stdout.flush()
    print("afterwards", flush=True)

asyncio.run(main())
"""


def test_only_the_wire_reaches_the_client() -> None:
    """What else is printed goes to stderr, and children read nothing. Lines of any length and content are taken."""
    lines = b"first\n" + b"\xff\xfe\n" + b"x" * 5_000_000 + b"\n" + b"y" * 20_000_000 + b"\nlast"
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, input=lines, capture_output=True, timeout=60)
    assert done.stderr.splitlines() == [b"printed", b"written", b"child"]
    shown = done.stdout.decode().splitlines()
    assert shown[0] == "6 'first'"
    assert shown[1] == "3 '\ufffd\ufffd\\n'"
    assert shown[2] == "5000001 'xxxxx'"
    assert "2 '?\\n'" in shown[3:-2]
    assert shown[-2:] == ["4 'last'", "afterwards"]


def test_what_is_no_pipe_is_refused_with_a_reason() -> None:
    """As `cellblock mcp < /dev/null` would have it: the event loop cannot wait for a file, nor for that."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.entry", "mcp"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"stdin and stdout must be pipes" in done.stderr
    assert b"--http" in done.stderr
    assert b"Traceback" not in done.stderr
    with open(__file__) as file, pytest.raises(InvalidInputError):
        check_stream(file.fileno())
