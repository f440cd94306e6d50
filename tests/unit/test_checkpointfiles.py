"""Checkpoint files: reading one returns what was written or raises a typed error, and runs nothing of its content."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointMissingError,
    CheckpointTooLargeError,
    StoreError,
)
from orchestrator.limits import MIB
from orchestrator.store.checkpointfiles import MAGIC, CheckpointFiles

CASES = int(os.environ.get("CELLBLOCK_CHECKPOINT_CASES", "10000"))
SEED = int(os.environ.get("CELLBLOCK_CHECKPOINT_SEED", "1"))
STATE = [b"state " * 1000, b"more"]
HEADER = {"agent_id": "a", "checkpoint_id": "c", "cell": 3}
# Python's audit events that occur if the content of a file is run, imported, unpickled or unpacked.
WATCHED = ("exec", "compile", "import", "pickle.find_class", "os.system", "subprocess.Popen", "shutil.unpack_archive")

_seen: list[str] = []
_watching = False


def _watch(event: str, _args: Any) -> None:
    if _watching and event in WATCHED:
        _seen.append(event)


sys.addaudithook(_watch)


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/cellblock-bomb",)


@pytest.fixture
def files(tmp_path: Path) -> CheckpointFiles:
    return CheckpointFiles(tmp_path)


def write(files: CheckpointFiles, name: str = "c") -> Path:
    with files.writing(name, HEADER, 10**6) as writer:
        for piece in STATE:
            writer.write(piece)
        writer.finish({"lost": []})
    return files.path(name)


def read(files: CheckpointFiles, path: Path) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    with files.reading(path) as reader:
        state = b""
        while piece := reader.piece(len(state)):
            state += piece
        return reader.header, state, reader.footer


def test_what_was_written_is_read(files: CheckpointFiles) -> None:
    assert read(files, write(files)) == (HEADER, b"".join(STATE), {"lost": []})


def mutations(good: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield damaged and hostile variants of a file, never the file itself."""
    pickled = pickle.dumps(Bomb())
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../etc/passwd"))
    hostile = [pickled, archive.getvalue(), b"#!/bin/sh\ntouch /tmp/cellblock-bomb\n", b'{"__class__": "os.system"}']
    while True:
        kind = chance.randrange(9)
        data = bytearray(good)
        if kind == 0:  # one bit
            place = chance.randrange(len(data) * 8)
            data[place // 8] ^= 1 << (place % 8)
        elif kind == 1:  # cut off
            del data[chance.randrange(len(data)) :]
        elif kind == 2:  # longer
            data += chance.randbytes(chance.randrange(1, 2000))
        elif kind == 3:  # a part exchanged
            start = chance.randrange(len(data))
            data[start : start + 64] = chance.randbytes(64)
        elif kind == 4:  # lengths that lie
            struct.pack_into(">I", data, len(MAGIC), chance.randrange(2**32))
        elif kind == 5:  # noise behind a right beginning
            data[len(MAGIC) :] = chance.randbytes(chance.randrange(200))
        elif kind == 6:  # something else altogether
            data[:] = chance.choice(hostile) + chance.randbytes(chance.randrange(50))
        elif kind == 7:  # hostile content in a frame of ours, without the key
            body = chance.choice(hostile)
            data[:] = MAGIC + struct.pack(">I", len(body)) + body + struct.pack(">I", 0) + chance.randbytes(32)
        else:  # another format
            data[len(MAGIC) - 2] = ord(chance.choice("023456789abc"))
        if bytes(data) != good:
            yield bytes(data)


def test_hostile_and_damaged_files_end_in_a_typed_error_and_run_nothing(files: CheckpointFiles, tmp_path: Path) -> None:
    global _watching
    good = write(files).read_bytes()
    chance = random.Random(SEED)  # noqa: S311 - a case is found again by its seed
    target = tmp_path / "hostile"
    marker = Path("/tmp/cellblock-bomb")
    marker.unlink(missing_ok=True)
    found = {CheckpointDamagedError: 0, CheckpointFormatError: 0}
    variants = mutations(good, chance)
    for number in range(CASES):
        data = next(variants)
        target.write_bytes(data)
        _watching = True
        try:
            read(files, target)
        except CheckpointError as error:
            found[type(error)] += 1
        else:
            raise AssertionError(f"case {number} of seed {SEED} was accepted")
        finally:
            _watching = False
    assert sum(found.values()) == CASES
    assert all(found.values())
    assert _seen == []
    assert not marker.exists()


def test_every_single_bit_counts(files: CheckpointFiles, tmp_path: Path) -> None:
    with files.writing("small", {"agent_id": "a"}, 100) as writer:
        writer.write(b"xy")
        writer.finish({})
    good = files.path("small").read_bytes()
    for place in range(len(good) * 8):
        data = bytearray(good)
        data[place // 8] ^= 1 << (place % 8)
        (tmp_path / "flipped").write_bytes(data)
        with pytest.raises((CheckpointDamagedError, CheckpointFormatError)):
            read(files, tmp_path / "flipped")


def test_what_changes_after_the_check_is_refused(files: CheckpointFiles) -> None:
    """Who writes the store waits until the MAC was checked, and then changes the state: it is never handed out."""
    with files.writing("c", HEADER, 10 * MIB) as writer:
        writer.write(b"a" * 3 * MIB)
        writer.finish({})
    with files.reading(files.path("c")) as reader:
        assert reader.piece(0) == b"a" * MIB
        with files.path("c").open("r+b") as file:
            file.seek(2 * MIB + 500_000)
            file.write(b"b")
        assert reader.piece(MIB // 2) == b"a" * MIB
        with pytest.raises(CheckpointDamagedError, match="changed while it was read"):
            reader.piece(MIB + MIB // 2)


def test_another_hosts_file_is_refused(files: CheckpointFiles, tmp_path: Path) -> None:
    path = write(CheckpointFiles(tmp_path / "other"))
    with pytest.raises(CheckpointDamagedError, match="signed on another host"):
        read(files, path)


@pytest.mark.parametrize("kind", ["none", "folder", "fifo", "device", "empty", "name"])
def test_what_is_not_a_file_is_refused_at_once(files: CheckpointFiles, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "name":
        path = Path("a\0b")
    with pytest.raises((CheckpointMissingError, CheckpointDamagedError)):
        read(files, path)


def test_nothing_is_left_of_a_checkpoint_that_is_too_large_or_fails(files: CheckpointFiles, tmp_path: Path) -> None:
    with pytest.raises(CheckpointTooLargeError), files.writing("large", HEADER, 10) as writer:
        writer.write(b"x" * 11)
    with pytest.raises(ZeroDivisionError), files.writing("broken", HEADER, 10) as writer:
        writer.write(b"x")
        _ = 1 / 0
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_key_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(StoreError, match="is not a key"):
        CheckpointFiles(tmp_path)


def test_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = write(CheckpointFiles(tmp_path))
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(CheckpointFiles(tmp_path), path)[0] == HEADER


def test_sweep_removes_what_no_row_names_after_a_day(files: CheckpointFiles, tmp_path: Path) -> None:
    known, stray = write(files, "known"), write(files, "stray")
    partial = tmp_path / "checkpoints" / ".x.part"
    shutil.copy(stray, partial)
    files.sweep({"known"})
    assert stray.exists()
    for path in (known, stray, partial):
        os.utime(path, (0, 0))
    files.sweep({"known"})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["known"]
