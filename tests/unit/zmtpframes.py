"""What a kernel's end of a ZMTP connection sends, made by hand."""

from __future__ import annotations

import struct

READY = b"\x04\x06\x05READY"


def frame(body: bytes, *, more: bool = False, command: bool = False) -> bytes:
    flags = (1 if more else 0) | (4 if command else 0)
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body


def message(*bodies: bytes) -> bytes:
    return b"".join(frame(body, more=number < len(bodies) - 1) for number, body in enumerate(bodies))
