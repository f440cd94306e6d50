"""Requests made at random of the server's own description: every route, with values that are right, wrong and odd."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

ODD: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, "", " ", "a", "a" * 300, "\0", "\ud800", "é\u202e",
    "../../etc/passwd", "/proc/self/environ", "<script>", "${x}", "%s%n", [], {}, [[]], {"a": {"b": []}}, [None] * 50,
]  # fmt: skip
RAW = [b"", b"{", b"[1,", b"\xff\xfe", b"NaN", b"[" * 5000, b'{"a":' * 500, b"null", b"0" * 1000, b"{}{}", b"\0" * 10]
HEADERS = [
    ("Content-Type", "text/plain"), ("Content-Type", "application/json; charset=utf-16"),
    ("Accept", "text/event-stream"),
    ("Last-Event-ID", "-1"), ("Last-Event-ID", "9" * 40), ("Range", "bytes=5-1"), ("Range", "bytes=-0"),
    ("Idempotency-Key", "k"), ("Idempotency-Key", "x" * 300), ("Expect", "100-continue"),
    ("Accept-Encoding", "gzip, br"),
    ("X-HTTP-Method-Override", "DELETE"), ("E2b-Sandbox-Id", "x"), ("Cookie", "a=b"), ("Upgrade", "h2c"),
]  # fmt: skip
LAST = {"/v1/operator/drain"}  # after it the server takes no session any longer
# Cells and commands that end at once: the fuzzer is about the door.
CODE = ["1", "x = 1", "print('a')", "1 / 0", "(", "\ud800", ""]
COMMANDS = ["true", "exit 3", ["true"], [], "", "echo $0", ["nosuch"]]


@dataclass(frozen=True)
class Request:
    """One request, ready to be sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes | None


class Fuzzer:
    """Makes requests.

    Args:
        description: OpenAPI.
        sessions: ids of sessions that exist.
    """

    def __init__(self, description: Mapping[str, Any], sessions: Sequence[str], seed: int) -> None:
        self._operations = [
            (method.upper(), path, operation)
            for path, methods in description["paths"].items()
            for method, operation in methods.items()
            if path not in LAST
        ]
        self._schemas = description["components"]["schemas"]
        self._sessions = sessions
        self._chance = random.Random(seed)  # noqa: S311 - seeded

    def request(self) -> Request:
        """Return the next request."""
        method, path, operation = self._chance.choice(self._operations)
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", self._segment(parameter["name"]))
        headers = dict(self._some(HEADERS, 2))
        content = None
        if "requestBody" in operation:
            headers.setdefault("Content-Type", "application/json")
            content = self._body(operation["requestBody"])
        elif self._chance.random() < 0.1:
            content = self._chance.choice(RAW)
        if self._chance.random() < 0.03:
            method = self._chance.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO"])
        return Request(method, path + self._query(operation), headers, content)

    def _segment(self, name: str) -> str:
        if name == "session_id" and self._chance.random() < 0.8:
            return self._chance.choice(self._sessions)
        odd = self._chance.choice([str(value) for value in ODD if isinstance(value, str | int)][:40])
        return quote_from_bytes(odd[:200].encode("utf-8", "surrogatepass"), safe="") or "x"

    def _query(self, operation: Mapping[str, Any]) -> str:
        parts = []
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query" and self._chance.random() < 0.7:
                value = str(self._value(parameter["schema"]))[:500].encode("utf-8", "surrogatepass")
                if parameter["name"] == "wait_s":
                    value = self._chance.choice([b"0", b"0.01", b"-1", b"nan", b"x", b"601"])
                parts.append(f"{parameter['name']}={quote_from_bytes(value)}")
        return f"?{'&'.join(parts)}" if parts else ""

    def _body(self, body: Mapping[str, Any]) -> bytes:
        if self._chance.random() < 0.1:
            return self._chance.choice(RAW)
        schema = next(iter(body["content"].values()))["schema"]
        return json.dumps(self._value(schema)).encode()

    def _value(self, schema: Mapping[str, Any], depth: int = 0) -> Any:
        if self._chance.random() < 0.12 or depth > 5:
            return self._chance.choice(ODD)
        if "$ref" in schema:
            return self._object(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self._value(self._chance.choice(schema[several]), depth + 1)
        if "enum" in schema:
            return self._chance.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [self._value(schema.get("items", {}), depth + 1) for _ in range(self._chance.randrange(3))]
        plain: dict[Any, list[Any]] = {
            "string": ["", "a", "f.txt", "d", ".", "/work", "x" * 50],
            "integer": [0, 1, 2, 24, 80, 1000],
            "number": [0.0, 0.5, 1, 5, 60],
            "boolean": [True, False],
            "null": [None],
        }
        return self._chance.choice(plain.get(kind, ODD))

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        found = {}
        for name, each in schema.get("properties", {}).items():
            if name in schema.get("required", ()) or self._chance.random() < 0.4:
                found[name] = self._value(each, depth + 1)
        if "code" in found:
            found["code"] = self._chance.choice(CODE)
            found["timeout"] = 2.0
        if "command" in found:
            found["command"], found["timeout"] = self._chance.choice(COMMANDS), 2.0
        if "count" in found and isinstance(found["count"], int):
            found["count"] = min(found["count"], 2)
        if "requirements" in found:  # never asks an index
            found["requirements"] = ["no such!"]
        if self._chance.random() < 0.05:
            found[self._chance.choice(["extra", "", "__proto__", "code"])] = self._chance.choice(ODD)
        return found

    def _some(self, choices: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
        return self._chance.sample(choices, self._chance.randrange(most + 1))
