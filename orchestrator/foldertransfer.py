"""Copies a folder into and out of a live kernel as one stream of tar, which the sandbox's own ``tar`` makes and reads.

The host passes the bytes on and never looks into them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable

from orchestrator.command import Command, CommandLimits
from orchestrator.errors import FileFault, FileTransferError
from orchestrator.kernel.commands import CommandSpec
from orchestrator.kernel.files import make_folder, named, resolve
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandOutput, CommandResult
from orchestrator.output.printable import printable

_TIME = 600.0  # seconds that one folder may take
_OVERHEAD = 64 * MIB  # what the headers of many small files take
_KEPT = 4096  # bytes of what tar says
_PIECE = 256 * 1024  # bytes


def largest_tar(work_mb: int) -> int:
    """Return the bytes that an honest tar of ``/work`` has at most. A sparse file claims any size."""
    return work_mb * MIB + _OVERHEAD


async def pack(kernel: Kernel, path: str, most: int | None = None) -> AsyncGenerator[bytes, None]:
    """Yield a folder of the sandbox as a tar, in pieces. Close the generator to stop early.

    Args:
        most: bytes of the tar; None: without a limit, for a caller that has one.

    Raises:
        FileTransferError: the folder cannot be read, did not arrive within 10 minutes, or exceeds ``most``.
        KernelDiedError: the kernel died.
    """
    command = _tar(kernel, path, ("-c", "-f", "-", "."), attached=True, keeps_stdin=False)
    await command.start()
    size = 0
    try:
        async with contextlib.aclosing(command.events()) as events:
            async for event in events:
                if isinstance(event, CommandOutput) and event.name == "stdout":
                    size += len(event.data)
                    if most is not None and size > most:
                        raise FileTransferError(
                            f"the folder {named(path)} is larger than {most // MIB} MiB.", path=path, fault="too_large"
                        )
                    yield event.data
        _check(await command.result(), path, "read")
    finally:
        command.stop(Outcome.CANCELLED)


async def unpack(kernel: Kernel, path: str, pieces: AsyncIterable[bytes]) -> int:
    """Write a tar into a folder of the sandbox, which is made if it is missing. Returns the bytes of the tar.

    Raises:
        FileTransferError: it cannot be written; a part of it may be there.
        KernelDiedError: the kernel died.
    """
    await make_folder(kernel, path, parents=True)
    command = _tar(kernel, path, ("-x", "-f", "-", "--no-same-owner"), attached=False, keeps_stdin=True)
    await command.start()
    size, taken = 0, True
    try:
        async for piece in pieces:
            for start in range(0, len(piece), _PIECE):
                taken = taken and await command.write(bytes(piece[start : start + _PIECE]))
            size += len(piece)
            if not taken:
                break
        await command.write(b"", last=True)
        await command.ended()
        _check(await command.result(), path, "write")
    finally:
        command.stop(Outcome.CANCELLED)
    return size


def _tar(kernel: Kernel, path: str, arguments: tuple[str, ...], *, attached: bool, keeps_stdin: bool) -> Command:
    argv = ("tar", "-C", resolve(path), *arguments)
    spec = CommandSpec(argv, "/", keeps_stdin=keeps_stdin)
    limits = CommandLimits(_TIME, _KEPT, streams_all=attached)
    return Command(kernel, spec, limits, number=0, command=argv, shell=False, attached=attached)


def _check(result: CommandResult, path: str, verb: str) -> None:
    if result.outcome is Outcome.OK:
        return
    said = result.stderr_text.strip().splitlines()
    reason = printable(said[0], 200) if said else f"tar ended as {result.outcome}"
    faults: tuple[tuple[str, FileFault], ...] = (
        ("No such file", "missing"),
        ("Not a directory", "not_a_folder"),
        ("No space", "full"),
        ("Permission denied", "permission"),
    )
    fault: FileFault = "slow" if result.timed_out else next((name for text, name in faults if text in reason), "other")
    raise FileTransferError(f"the sandbox could not {verb} the folder {named(path)}: {reason}.", path=path, fault=fault)
