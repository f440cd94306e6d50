"""Claims about what a cell's output and a kernel's words cost and do on the host."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import CellblockError
from orchestrator.isolation import wire_attacks
from orchestrator.isolation.claims import Claim, Verdict, verdict
from orchestrator.isolation.subject import Subject
from orchestrator.isolation.wire_claims import is_reported, probe_of
from orchestrator.kernel.statetransfer import Write, save_state
from orchestrator.kernel.transfer import get_file
from orchestrator.limits import MIB
from orchestrator.output.events import CellFinished, Event
from orchestrator.output.sizes import cost

_SHARE = 10  # a tenth of the output limit: the attacks are over sooner
_IN_ALL = 10  # times the limit, and _IN_ALL_LEAST: what a cell may put out with what it clears and replaces
_IN_ALL_LEAST = 5 * MIB
_SECONDS = 10.0  # in which a kernel has to answer


async def _total(subject: Subject) -> Verdict:
    """Count what a consumer of the events gets from cells that clear and replace their output."""
    limits = replace(subject.limits, max_output_size_mb=max(1, subject.limits.max_output_size_mb // _SHARE))
    most = _IN_ALL * max(1, subject.policy.resource_limits().max_output_size_mb // _SHARE) * MIB + _IN_ALL_LEAST
    faults, largest = list[str](), 0
    for name, attack in wire_attacks.ENDLESS.items():
        streamed = 0

        def count(event: Event) -> None:
            nonlocal streamed
            streamed += 0 if isinstance(event, CellFinished) else cost(event)

        result = await subject.run(wire_attacks.cell(attack, 0), limits=limits, watch=count)
        largest = max(largest, streamed)
        if streamed > most:
            faults.append(f"{name}: the consumer got {streamed / MIB:.0f} MiB, more than {most / MIB:.0f} MiB")
        if result.outcome not in ("ok", "output_limit"):
            faults.append(f"{name}: the cell ended as {result.outcome}")
    return verdict(faults, f"of 40 MB the consumer got {largest / MIB:.0f} MiB")


class _Heard(logging.Handler):
    """Keeps the log lines of this program."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def _words(subject: Subject) -> Verdict:
    """Have a kernel refuse to save its state and to send a file, each for a hostile reason."""
    log, heard = logging.getLogger("orchestrator"), _Heard()
    await subject.run(wire_attacks.LYING_HANDLERS)
    others, propagates = log.handlers, log.propagate
    log.handlers, log.propagate = [heard], False  # the control logs the words as they are: not on a terminal
    try:
        said = [await _error(lambda: save_state(subject.kernel, _nowhere, _SECONDS))]
        with tempfile.TemporaryDirectory(prefix="cellblock-words-") as folder:
            said += [await _error(lambda: get_file(subject.kernel, "file", Path(folder) / "file", MIB))]
    finally:
        log.handlers, log.propagate = others, propagates
    faults = [f"{line!r} is not one printable line" for line in (*said, *heard.lines) if not line.isprintable()]
    faults += [f"{line!r} has no reason" for line in said if "x1b" not in line]
    return verdict(faults, f"{len(said)} errors and {len(heard.lines)} log lines, all printable")


async def _error(request: Callable[[], Awaitable[object]]) -> str:
    try:
        await request()
    except CellblockError as error:
        return error.message
    return "nothing was refused"


async def _nowhere() -> Write:
    async def write(_piece: bytes) -> None:
        """Drop it."""

    return write


CLAIMS = (
    Claim(
        "expensive_output_is_bounded",
        "O1",
        "Output of an expensive kind costs bounded memory and time, and no neighbour is slowed down.",
        probe_of(wire_attacks.EXPENSIVE, is_reported, fatal=False, seconds=3 * _SECONDS),
        attacks=True,
    ),
    Claim(
        "cell_output_has_a_total",
        "O1",
        "What one cell puts out is bounded in all, whatever it clears and replaces.",
        _total,
        attacks=True,
    ),
    Claim(
        "kernels_words_are_one_printable_line",
        "O4",
        "What a kernel says of its own failures is one printable line in errors and logs.",
        _words,
        attacks=True,
    ),
)
