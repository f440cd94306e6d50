"""The URL of the history's database. A password may be in its user part, in its query, or by mistake anywhere."""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

_PLAIN = re.compile(r"[\w.-]*")
_FILE = re.compile(r"sqlite(?:\+\w+)?:///[^?@]*")
_WORDS = re.compile(r"[:/@?&=;,#\s]+")
_HIDDEN = "***"


def parse(url: str) -> URL:
    """Return a database's URL, parsed.

    Raises:
        ArgumentError: it is no URL, or has an "@" that is not escaped.
    """
    if url.count("@") > 1:
        raise ArgumentError('it has an "@" that is not the end of its user part; write "%40" in a name or a password')
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # their messages quote the URL
        raise ArgumentError("it is not the URL of a database, or its port is not a number") from None


def mask(text: str, url: str) -> str:
    """Return ``text`` without the secrets of a database's URL. ``mask(url, url)`` is the URL for a message.

    Only the kind of the database, and a host, a port and a database whose names are plain, are not secret.
    """
    shown = _shown(url)
    if url:
        text = text.replace(url, shown)
    for secret in sorted(_secrets(url, shown), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN) if len(secret) > 2 else re.sub(rf"\b{re.escape(secret)}\b", _HIDDEN, text)
    return text


def _shown(url: str) -> str:
    try:
        parsed = parse(url)
    except ArgumentError:
        return "at CELLBLOCK_STORE_URL"
    if found := _FILE.match(url):
        return found[0]
    host, database = parsed.host or "", parsed.database or ""
    if not (_PLAIN.fullmatch(host) and _PLAIN.fullmatch(database)):
        return f"{parsed.drivername}://{_HIDDEN}"
    return f"{parsed.drivername}://{host}{f':{parsed.port}' if parsed.port else ''}/{database}"


def _secrets(url: str, shown: str) -> set[str]:
    """Return the words of a URL that ``shown`` does not have, as they are written and as they are meant."""
    if _FILE.fullmatch(url):
        return set()
    known = set(_WORDS.split(shown)) | {"", "localhost", "postgresql", "postgres", "psycopg"}
    rest = url.partition("://")[2]
    user, _, _ = rest.rpartition("@")
    password = user.partition(":")[2]
    words = {password, *_WORDS.split(password)}
    for value in re.findall(r"[?&;][^=&;]*=([^&;]*)", rest):
        words.add(value)
    if rest.count("@") > 1:
        words |= set(_WORDS.split(rest))
    meant = {decode(word) for word in words for decode in (str, unquote, unquote_plus)}
    return {word for word in meant if word not in known}
