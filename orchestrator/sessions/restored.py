"""What a session got back from a checkpoint, and what it lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.image.resolver import Wheel
from orchestrator.outcome import Outcome, kernel_end
from orchestrator.output.printable import printable

_NAMED = 5  # lost variables, and lost files, that a notice names
_UNASKED = frozenset({Outcome.RECONFIGURED, Outcome.KILLED, Outcome.ORCHESTRATOR_LOST})
_UNUSED = frozenset({Outcome.IDLE, Outcome.EVICTED})


@dataclass(frozen=True, slots=True)
class Lost:
    """Something that a checkpoint could not hold. All three texts come from the sandbox.

    Attributes:
        name: the variable that was lost, or that holds what was lost.
        kind: the type of the lost value.
        reason: why it was lost.
    """

    name: str
    kind: str
    reason: str


def names_of(lost: Sequence[Lost]) -> str:
    """Return one line that names the first five losses and counts the others."""
    named = ", ".join(printable(f"{loss.name} ({loss.kind}: {loss.reason})") for loss in lost[:_NAMED])
    more = len(lost) - _NAMED
    return named + (f" and {more} more" if more > 0 else "")


def is_loss(reason: str | None) -> bool:
    """Return whether a session that ended for this reason took its agent by surprise: nobody ended it on purpose."""
    return _is_death(reason) or reason in _UNUSED


def loss_notice(reason: str, files: Sequence[str]) -> str:
    """Return what an agent has to know in a new session after it lost one that had no checkpoint.

    Args:
        files: the paths of the files that ``put_file`` copied into the lost kernel.
    """
    return (
        f"this agent's last kernel ended ({reason}), and no checkpoint held its state: this is a new session in a "
        f"fresh kernel; the variables and all files of the last one are gone{_gone(files)}"
    )


def _is_death(reason: str | None) -> bool:
    """Return whether a kernel that ended for this reason had no chance to be checkpointed."""
    return reason in _UNASKED or kernel_end(reason) is not None


def _gone(files: Sequence[str]) -> str:
    if not files:
        return ""
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f", among them these from put_file: {', '.join(files[:_NAMED])}{more}"


@dataclass(frozen=True, slots=True)
class Restored:
    """The checkpoint that a session's variables come from.

    Attributes:
        checkpoint_id: the checkpoint's id.
        cell: the last cell whose effects the checkpoint has. The effects of later cells are lost.
        lost: what could not be captured or loaded.
        seconds: how long loading took.
        packages: the wheels that were handed in again.
    """

    checkpoint_id: str
    cell: int
    lost: tuple[Lost, ...]
    seconds: float
    packages: tuple[Wheel, ...] = ()

    def notices(self, cells: int, reason: str | None, files: Sequence[str] = ()) -> list[str]:
        """Return what the agent has to know about the woken session; an empty list if nothing was lost.

        Args:
            cells: how many cells the session has run.
            reason: why its last kernel ended.
            files: the paths of the files that ``put_file`` copied into the last kernel after the checkpoint.
        """
        notices = []
        if cells > self.cell or files or _is_death(reason):
            lost = f"the effects of the {cells - self.cell} cells after that are lost" if cells > self.cell else ""
            lost = lost or "what changed after that is lost"
            notices.append(
                f"this session's kernel ended ({reason or 'unknown'}), and the session continues from its checkpoint "
                f"{self.checkpoint_id[:12]} after cell {self.cell}: {lost}{_gone(files)}"
            )
        if self.lost:
            notices.append(f"this session moved to a fresh kernel, and these were not restored: {names_of(self.lost)}")
        return notices
