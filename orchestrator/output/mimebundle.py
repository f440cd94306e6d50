"""Mime bundles of hostile code: which of their items a notebook and its readers can take. Pure."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

MOST_TYPES = 32  # of a bundle; a plotting library's has six
_LONGEST = 200  # characters of a mime type
_NAME = r"[a-z0-9][a-z0-9!#$&^_.+-]*"  # RFC 6838
_TYPE = re.compile(rf"{_NAME}/{_NAME}(?:; ?{_NAME}={_NAME})*", re.IGNORECASE | re.ASCII)
_JSON = re.compile(rf"application/(?:{_NAME}\+)?json", re.ASCII)  # nbformat's JSON types: the value may be of any kind
_BINARY = re.compile(r"(?:image|audio|video)/(?!.*(?:svg|\+xml|\+json)).*|application/pdf", re.IGNORECASE | re.ASCII)


def is_valid(mime: str, item: object) -> bool:
    """Return whether an item of a bundle is what its mime type says, as far as its readers rely on it.

    That is: a mime type of RFC 6838's grammar; text, or any value under a JSON type; base64 under a binary type.
    """
    if len(mime) > _LONGEST or _TYPE.fullmatch(mime) is None:
        return False
    if not isinstance(item, str):
        return _JSON.fullmatch(mime) is not None
    return _BINARY.fullmatch(mime) is None or _is_base64(item)


def without_types(metadata: Any, passes: Callable[[str], bool]) -> Any:
    """Return a bundle's metadata without what stands under a mime type that does not pass, at any depth."""
    if isinstance(metadata, Mapping):
        return {key: without_types(item, passes) for key, item in metadata.items() if "/" not in key or passes(key)}
    if isinstance(metadata, list | tuple):
        return [without_types(item, passes) for item in metadata]
    return metadata


def _is_base64(text: str) -> bool:
    if not text.isascii():
        return False
    try:
        binascii.a2b_base64(text.replace("\n", ""), strict_mode=True)
    except binascii.Error:
        return False
    return True
