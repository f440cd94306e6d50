"""What a sandbox says of its files. All of it is a claim of hostile code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from orchestrator.output.fields import Fields

FileKind = Literal["file", "dir", "link", "other"]
_FIELDS = 6  # of an entry, each ended by NUL
_LONGEST_PATH = 4096  # characters
_MOST_DIGITS = 19  # of a number of 64 bits


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a sandbox.

    Attributes:
        name: the last part of its path. Bytes that are no UTF-8 are lone surrogates, as ``os.fsdecode`` returns them.
        path: its absolute path in the sandbox.
        kind: "file", "dir", "link" or "other" (a device, a socket, a named pipe).
        size: bytes.
        mtime: when its content changed last, in seconds since the epoch.
        mode: its permission bits, such as 0o644.
        target: what a link leads to; "" for anything else.
    """

    name: str
    path: str
    kind: FileKind
    size: int
    mtime: float
    mode: int
    target: str = ""

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder. A link to a folder is none."""
        return self.kind == "dir"

    def as_dict(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in self.__slots__}, "is_dir": self.is_dir}


def parse_entries(data: bytes, folder: str, most: int) -> list[FileInfo]:
    """Return the files that a sandbox has listed.

    Args:
        data: six fields for each: name relative to ``folder`` ("" for the folder itself), kind, size, time of change in
            ns, mode, target of a link; each field ends with NUL.
        most: how many there may be.

    Raises:
        ValueError: it is no such list.
    """
    ends = data.count(b"\0")  # counted first: a list of 16 million empty fields would take a gigabyte
    if ends % _FIELDS or ends > most * _FIELDS or (data and not data.endswith(b"\0")):
        raise ValueError("the list of files is malformed")
    fields = data.split(b"\0")[:-1]
    return [_entry(fields[start : start + _FIELDS], folder) for start in range(0, len(fields), _FIELDS)]


def _entry(fields: Sequence[bytes], folder: str) -> FileInfo:
    name, kind, *numbers, target = fields
    size, changed, mode = _numbers(numbers)
    path = str(PurePosixPath(folder, _text(name))) if name else folder
    if kind not in _KINDS or name.startswith(b"/") or b".." in name.split(b"/"):
        raise ValueError("the list of files is malformed")
    return FileInfo(
        PurePosixPath(path).name or "/", path, _KINDS[kind], size, changed / 1e9, mode & 0o7777, _text(target)
    )


_KINDS: dict[bytes, FileKind] = {b"file": "file", b"dir": "dir", b"link": "link", b"other": "other"}


def _numbers(fields: Sequence[bytes]) -> Iterator[int]:
    for field in fields:
        digits = field.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > _MOST_DIGITS:
            raise ValueError("the list of files is malformed")
        yield int(field)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


Change = Literal["made", "changed", "removed"]
_MOST_CHANGES = 100  # that a kernel names
_MOST_COUNTED = 10**9


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file of the working folder that a cell or a command made, changed or removed. The kernel reports it.

    Attributes:
        change: "made", "changed" or "removed".
        path: relative to ``/work``. Bytes that are no UTF-8 are lone surrogates.
        size: bytes; 0 for one that was removed.
    """

    change: Change
    path: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        return {"change": self.change, "path": self.path, "size": self.size}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return what ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form)
        return cls(fields.choice("change", *_CHANGES.values()), fields.value("path", str), fields.value("size", int))


_CHANGES: dict[str, Change] = {"made": "made", "changed": "changed", "removed": "removed"}


def parse_changes(value: object) -> tuple[tuple[ChangedFile, ...], int]:
    """Return the changed files that a kernel has reported, and how many more there are. Drops what is malformed."""
    if not isinstance(value, dict) or not isinstance(value.get("files"), list):
        return (), 0
    found = [_change(row) for row in value["files"][:_MOST_CHANGES]]
    more = value.get("more")
    counted = more if isinstance(more, int) and 0 <= more <= _MOST_COUNTED else 0
    return tuple(each for each in found if each is not None), counted


def _change(row: object) -> ChangedFile | None:
    if not isinstance(row, list) or len(row) != 3:
        return None
    kind, path, size = row
    change: Change | None = _CHANGES.get(kind) if isinstance(kind, str) else None
    if change is None or not isinstance(path, str) or not isinstance(size, int):
        return None
    try:
        name = _text(path.encode("latin-1"))
    except UnicodeEncodeError:
        return None
    relative = name and not name.startswith("/") and "\0" not in name and ".." not in name.split("/")
    return ChangedFile(change, name, size) if relative and len(name) <= _LONGEST_PATH and 0 <= size < 2**63 else None
