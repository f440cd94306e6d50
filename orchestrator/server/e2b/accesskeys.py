"""AccessKeys: the access tokens of single sandboxes, and the signatures of file URLs that are made with them.

An access token is ``TOKENID.MAC``: the id of the Cellblock token for which it was made, and an HMAC over it and the
sandbox's id. The server keeps none of them. It is worth nothing once its Cellblock token is revoked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from pathlib import Path

from orchestrator.errors import UnauthorizedError
from orchestrator.store.wholefile import write_once

_KEY = 32  # bytes
_OPEN = "open"  # in place of a token's id, while the server has no tokens
_MOST_SIGNERS = 1000  # sandboxes: one look through all of them takes 2 ms

_IN_HEX = re.compile(r"e2b_((?:[0-9a-f]{2}){1,200})")


def token_in(key: str) -> str:
    """Return the Cellblock token that an API key stands for: itself, or ``e2b_`` and the token in hex.

    Some clients take only keys of the second form.
    """
    found = _IN_HEX.fullmatch(key)
    return key if found is None else bytes.fromhex(found[1]).decode("latin-1")


class AccessKeys:
    """The access tokens of one server.

    Args:
        folder: the data folder; it keeps the key.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "e2b.key"
        self._key = b""
        self._signers: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def load(self) -> None:
        """Read the key, or make it. Idempotent.

        Raises:
            OSError: it cannot be read or written.
        """
        if not self._key:
            self._key = await asyncio.to_thread(write_once, self._path, secrets.token_bytes(_KEY))

    def issue(self, sandbox_id: str, token_id: str) -> str:
        """Return the access token of a sandbox, for the bearer of a Cellblock token."""
        access = self._access(sandbox_id, token_id)
        self._signers[sandbox_id, token_id] = access
        self._signers.move_to_end((sandbox_id, token_id))
        while len(self._signers) > _MOST_SIGNERS:
            self._signers.popitem(last=False)
        return access

    def token_id(self, sandbox_id: str, access: str) -> str:
        """Return the id of the Cellblock token for which an access token was made.

        Raises:
            UnauthorizedError: it is not of this sandbox. Whether there is such a sandbox is not looked at.
        """
        named = access.partition(".")[0]
        token_id = "" if named == _OPEN else named
        if not hmac.compare_digest(self._access(sandbox_id, token_id).encode(), access.encode("utf-8", "replace")):
            raise UnauthorizedError("the access token is not of this sandbox.")
        return token_id

    def signer(self, signature: str, path: str, operation: str, user: str, expiration: str) -> tuple[str, str]:
        """Return the sandbox and the token id of a signed file URL, which may not name its sandbox.

        Only the thousand sandboxes are known whose access token was asked for last.

        Raises:
            UnauthorizedError: the signature is of no known sandbox, or has expired.
        """
        found = None
        for signer, access in self._signers.items():
            parts = [path, operation, user, access, *([expiration] if expiration else [])]
            digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogateescape")).digest()
            known = "v1_" + base64.b64encode(digest).rstrip(b"=").decode()
            if hmac.compare_digest(known.encode(), signature.encode("utf-8", "replace")):
                found = signer
        if found is None:
            raise UnauthorizedError("invalid signature")
        known_end = expiration.isascii() and expiration.isdigit() and len(expiration) < 16
        if expiration and (not known_end or int(expiration) < time.time()):
            raise UnauthorizedError("signature is already expired")
        return found

    def _access(self, sandbox_id: str, token_id: str) -> str:
        assert self._key
        named = token_id or _OPEN
        message = f"e2b\0{sandbox_id}\0{named}".encode("utf-8", "surrogateescape")
        return f"{named}.{hmac.new(self._key, message, hashlib.sha256).hexdigest()}"
