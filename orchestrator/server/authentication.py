"""Authentication: finds out who calls, from a token. Tokens are ``cb_ID_SECRET``; the store has only SHA-256 of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import cast

from orchestrator.errors import UnauthorizedError
from orchestrator.principal import Principal, Right
from orchestrator.store.history import History, TokenRecord

_TOKEN = re.compile(r"cb_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_FRESH = 1.0  # seconds for which a token that was looked up is not looked up again: a revocation takes as long
_MOST_FRESH = 10_000
_ABSENT = "0" * 64
LOCAL = "local"  # the group of every caller while there are no tokens


def new_token(
    name: str, group: str, policies: Collection[str], rights: Collection[Right], expires_at: float | None
) -> tuple[str, TokenRecord]:
    """Return a new token, and what the store keeps of it."""
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    record = TokenRecord(
        token_id, name, group, tuple(policies), frozenset(rights), _digest(secret), time.time(), expires_at
    )
    return f"cb_{token_id}_{secret}", record


class Authentication:
    """Who calls.

    Args:
        history: has the tokens.
        policies: those of a caller without a token, where none is needed.

    Attributes:
        is_open: whether callers need no token. It is so only until the first token was made.
    """

    def __init__(self, history: History, policies: Collection[str], *, is_open: bool) -> None:
        self._history = history
        self._policies = tuple(policies)
        self.is_open = is_open
        self._known: OrderedDict[str, tuple[float, TokenRecord | None]] = OrderedDict()
        self._open_until = 0.0

    async def principal(self, token: str | None) -> Principal:
        """Return whose token this is.

        Raises:
            UnauthorizedError: it is missing, unknown, revoked or expired. The answer takes as long for each of them.
            StoreError: the tokens cannot be read.
        """
        if await self._needs_none():
            return Principal(LOCAL, LOCAL, self._policies, frozenset({"operator"}))
        parts = _TOKEN.fullmatch(token or "")
        record = await self._look_up(parts[1] if parts else _ABSENT[:16])
        known = record.digest if record is not None else _ABSENT
        matches = hmac.compare_digest(_digest(parts[2] if parts else ""), known)
        if record is None or not matches or not record.is_valid(time.time()):
            raise UnauthorizedError(
                "the token is missing, unknown, revoked or expired." if token else "this server needs a token.",
                remedy="Send it as `Authorization: Bearer TOKEN`. `cellblock token create` on the server makes one.",
            )
        return _principal(record)

    async def still_valid(self, principal: Principal) -> bool:
        """Return whether a caller's token has been neither revoked nor has expired since.

        Raises:
            StoreError: the tokens cannot be read.
        """
        if not principal.token_id:
            return await self._needs_none()
        record = await self._look_up(principal.token_id)
        return record is not None and record.is_valid(time.time())

    async def of_token_id(self, token_id: str) -> Principal | None:
        """Return whose token has this id; None if it is not valid, or unknown. The caller has checked the secret."""
        if not token_id:
            return await self.principal(None) if await self._needs_none() else None
        record = await self._look_up(token_id)
        return None if record is None or not record.is_valid(time.time()) else _principal(record)

    async def _needs_none(self) -> bool:
        now = time.monotonic()
        if self.is_open and now >= self._open_until:
            self._open_until = now + _FRESH
            self.is_open = not await self._history.run(History.has_tokens)
        return self.is_open

    async def _look_up(self, token_id: str) -> TokenRecord | None:
        now = time.monotonic()
        until, record = self._known.get(token_id, (0.0, None))
        if now >= until:
            record = await self._history.run(History.token, token_id)
            self._known[token_id] = now + _FRESH, record
            self._known.move_to_end(token_id)
            while len(self._known) > _MOST_FRESH:
                self._known.popitem(last=False)
        return record


def token_of(headers: dict[bytes, bytes]) -> str | None:
    """Return the token of a request: a bearer's, an API key, or a password, as in ``http://:TOKEN@host/``."""
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() in ("bearer", "token"):  # Jupyter's clients write "token"
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").rpartition(":")[2]
        except ValueError:
            return ""
    key = headers.get(b"x-api-key")
    return None if key is None else key.decode("latin-1")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _principal(record: TokenRecord) -> Principal:
    rights = frozenset(cast(Right, right) for right in record.rights)
    return Principal(record.name, record.group, record.policies, rights, record.token_id)
