"""The feed of events: what the host sees happen to instances, kernels, sessions and cells, published once.

The audit log, the metrics and the program's log subscribe to it. What a cell puts out is not here: see ``output``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_LONGEST = 500  # characters of a field: a text from a sandbox must not fill the disk


@dataclass(frozen=True, slots=True)
class HostEvent:
    """Something that happened, as the host saw it.

    Attributes:
        name: a subject and a verb in the past, such as "kernel.started".
        at: the wall clock's time.
        fields: JSON values. A text has at most 500 characters.
        code: the code of a cell, whole, where the policy's ``audit.code`` is "full". Only the audit log keeps it.
    """

    name: str
    at: datetime
    fields: Mapping[str, Any]
    code: str | None = None


Subscriber = Callable[[HostEvent], None]


class EventFeed:
    """Hands each event to every subscriber, in the order of publishing.

    Args:
        subscribers: called in the publisher's thread, in the given order. A subscriber must neither block nor raise.
    """

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers

    def publish(self, name: str, *, code: str | None = None, **fields: Any) -> None:
        """Publish an event. Never waits.

        Args:
            name, code, fields: see ``HostEvent``. A longer text is cut to 500 characters.
        """
        cut = {key: value[:_LONGEST] if isinstance(value, str) else value for key, value in fields.items()}
        event = HostEvent(name, datetime.now(UTC), cut, code)
        for subscriber in self._subscribers:
            subscriber(event)
