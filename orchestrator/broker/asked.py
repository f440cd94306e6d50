"""Asked: one cell as a broker's clients see it, whoever asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Asked:
    """One cell as a broker's clients see it.

    Attributes:
        broker: the broker that a client asked; of any other broker, the cell is one that the host runs.
        parent: the header of the request.
        busy: whether its clients were told that the kernel is busy with it.
        failed: whether an error was published.
        extras: see ``Reply``.
    """

    broker: object
    parent: Mapping[str, Any]
    busy: bool = False
    failed: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)


ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)
