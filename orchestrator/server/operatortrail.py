"""OperatorTrail: writes into the audit log what operators do to sessions, and whose code they read."""

from __future__ import annotations

import time
from collections import OrderedDict

from orchestrator.principal import Principal
from orchestrator.server.managers import Managers
from orchestrator.store.records import HandleRecord, SessionRecord

_AGAIN = 3600.0  # seconds after which the same operator's reading of the same session is noted again
_MOST = 10_000


class OperatorTrail:
    """What operators do.

    Args:
        managers: any of them writes the entry; they share the log.
    """

    def __init__(self, managers: Managers) -> None:
        self._managers = managers
        self._read: OrderedDict[tuple[str, str], float] = OrderedDict()

    def note(self, action: str, operator: Principal, handle: HandleRecord, record: SessionRecord) -> None:
        """Note that an operator did something to a session, before it is done."""
        target = {
            "agent": record.agent_id,
            "session": record.session_id,
            "kernel": record.kernel_id,
            "group": handle.group,
            "cell": record.cells,
        }
        next(iter(self._managers)).note_operator(action, _name(operator), target)

    def note_here(self, action: str, operator: Principal, **details: str | float) -> None:
        """Note that an operator did something to this server, before it is done."""
        next(iter(self._managers)).note_operator(action, _name(operator), details)

    def note_reading(self, operator: Principal, handle: HandleRecord, record: SessionRecord) -> None:
        """Note that an operator reads a session of another group: once an hour, since a page asks often."""
        if operator.group == handle.group:
            return
        key, now = (operator.token_id, record.session_id), time.monotonic()
        if now - self._read.get(key, -_AGAIN) < _AGAIN:
            return
        self._read[key] = now
        self._read.move_to_end(key)
        while len(self._read) > _MOST:
            self._read.popitem(last=False)
        self.note("read", operator, handle, record)


def _name(operator: Principal) -> dict[str, str]:
    return {"name": operator.name, "group": operator.group, "token": operator.token_id}
