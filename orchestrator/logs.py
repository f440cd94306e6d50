"""Structured logs, on the standard library's: every event of the audit log is one at INFO, but never with code."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

_OURS = "orchestrator"


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON: time, level, logger, event, and what ``extra={"fields": …}`` has."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """A record as a line that people read."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value!r}" for key, value in getattr(record, "fields", {}).items())
        return f"{super().format(record)}{fields}"


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send this package's logs to stderr. For programs of our own; one that embeds us has its own ways."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logger = logging.getLogger(_OURS)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
