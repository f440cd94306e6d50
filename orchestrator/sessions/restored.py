"""What a session got back from a checkpoint, and what it lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_NAMED = 5  # lost variables that a notice names


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
    named = ", ".join(f"{loss.name} ({loss.kind}: {loss.reason})" for loss in lost[:_NAMED])
    more = len(lost) - _NAMED
    return named + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Restored:
    """The checkpoint that a session's variables come from.

    Attributes:
        checkpoint_id: the checkpoint's id.
        cell: the last cell whose effects the checkpoint has. The effects of later cells are lost.
        lost: what could not be captured or loaded.
        seconds: how long loading took.
    """

    checkpoint_id: str
    cell: int
    lost: tuple[Lost, ...]
    seconds: float

    def notices(self, cells: int, reason: str | None) -> list[str]:
        """Return what the agent has to know about the woken session; an empty list if nothing was lost.

        Args:
            cells: how many cells the session has run.
            reason: why its last kernel ended.
        """
        notices = []
        if cells > self.cell:
            notices.append(
                f"this session's kernel ended ({reason or 'unknown'}), and the session continues from its checkpoint "
                f"after cell {self.cell}: the effects of the {cells - self.cell} cells after that are lost"
            )
        if self.lost:
            notices.append(f"this session moved to a fresh kernel, and these were not restored: {names_of(self.lost)}")
        return notices
