"""Runs inside a sandbox and sends seeded random messages on its kernel's connections. Uses the standard library only.

Most messages have a valid signature, made with the key of the kernel's connection file, to test the code behind the
signature check.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from typing import Any

KINDS = (
    "stream", "display_data", "update_display_data", "execute_result", "error", "clear_output", "comm_open", "comm_msg",
    "status", "execute_input", "input_request", "iopub_welcome", "shutdown_reply", "x" * 300, "", "\ud800",
)  # fmt: skip
KEYS = (
    "name", "text", "data", "metadata", "transient", "display_id", "execution_count", "ename", "evalue", "traceback",
    "wait", "execution_state", "comm_id", "target_name", "prompt", "password", "text/plain", "image/png",
    "application/json", "text/html", "\ud83d", "__class__",
)  # fmt: skip
ATOMS: tuple[Any, ...] = (None, True, False, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "stdout",
                          "busy", "\ud800", "\0", "\x1b[2J", "x" * 5000, "\U0001f600" * 500, [], {})  # fmt: skip
COMMAND_KINDS = (*["command_output"] * 10, *["command_start_reply", "status", "nonsense"] * 4, "command_end")
TOOL_KINDS = ("tool_request", "tool_request", "tool_cancel", "input_request", "nonsense")
CHANNELS = (2, 2, 2, 2, 2, 2, 1, 3, 4)
RAW = (b"\xff" * 40, b"\4\x05\4PING", b"\2" + struct.pack(">Q", 2**63), b"\1\0" * 100, b"\0\0" * 5000, b"\3" + bytes(8))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return a random JSON value."""
    roll = rng.random()
    if depth > 5 or roll < 0.5:
        return rng.choice(ATOMS)
    if roll < 0.7:
        return [value(rng, depth + 1) for _ in range(rng.randrange(6))]
    if roll < 0.71:
        return _nested(rng.choice((70, 500)))
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(6))}


def _nested(depth: int) -> Any:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    return inner


def likely(rng: random.Random) -> dict[str, Any]:
    """Return content that almost follows the protocol."""
    content: dict[str, Any] = {"name": "stdout", "text": "fuzz", "data": {"text/plain": "x"}, "metadata": {},
                               "transient": {"display_id": "d"}, "execution_count": 1, "ename": "E", "evalue": "",
                               "traceback": ["a"], "execution_state": "busy"}  # fmt: skip
    for key in rng.sample(list(content), rng.randrange(4)):
        content[key] = value(rng)
    return content


def mangle(rng: random.Random, data: bytes) -> bytes:
    """Return ``data`` with bytes flipped, truncated, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = changed[: rng.randrange(50)]
            case _:
                changed[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(changed)


def frames(rng: random.Random, session: Any, parent: str) -> list[bytes]:
    """Return the frames of one message, mangled before signing, after signing, or not at all."""
    content = likely(rng) if rng.random() < 0.6 else value(rng)
    head = {"msg_type": rng.choice(KINDS), "msg_id": "x", "version": "5.3"}
    parts = [json.dumps(part).encode() for part in (head, {"msg_id": parent}, {}, content)]
    how = rng.random()
    if how < 0.02:
        parts[3] = b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}"  # deeper than the parser's recursion limit
    elif how < 0.2:
        at = rng.randrange(4)
        parts[at] = mangle(rng, parts[at])
    message = [b"topic", b"<IDS|MSG>", session.sign(parts), *parts]
    if how > 0.9:
        at = rng.randrange(len(message))
        match rng.randrange(3):
            case 0:
                message[at] = mangle(rng, message[at])
            case 1:
                del message[at]
            case _:
                message[at:at] = [rng.randbytes(rng.randrange(30))] * rng.randrange(1, 40)
    if rng.random() < 0.4:
        return [b"".join(as_one_frame(rng, message) for _ in range(rng.randrange(1, 4)))]
    return message


def as_one_frame(rng: random.Random, message: list[bytes]) -> bytes:
    """Return a message packed into one frame as the kernel's own thread does, sometimes mangled."""
    sizes = [len(frame) for frame in message]
    if rng.random() < 0.1:
        sizes[rng.randrange(len(sizes))] = rng.choice((0, 1, 2**16, 2**32 - 1))
    whole = struct.pack(f">H{len(sizes)}I", len(sizes), *sizes) + b"".join(message)
    return mangle(rng, whole) if rng.random() < 0.1 else whole


def packed(message: list[bytes]) -> bytes:
    """Return a message encoded as ZMTP frames."""
    last = len(message) - 1
    return b"".join(
        bytes([2 | (number < last)]) + struct.pack(">Q", len(body)) + body for number, body in enumerate(message)
    )


def wires() -> dict[int, socket.socket]:
    """Return the kernel's own connections by channel number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
            peer = str(connection.getpeername())
        except OSError:
            continue
        if peer[-4:-1] == "/k-":
            connection.setblocking(True)
            found[int(peer[-1])] = connection
        else:
            connection.detach()
    return found


def fuzz(kernel: Any, seed: int, cases: int, *, raw: bool, dry: bool) -> None:
    """Send ``cases`` messages.

    Args:
        raw: send bytes that are not a message in place of the last one.
        dry: create the messages without sending them.
    """
    rng, out = random.Random(seed), wires()  # noqa: S311 - the fuzzer must be reproducible
    parent = kernel.get_parent()["header"]["msg_id"]
    for _ in range(cases - raw):
        channel = rng.choice(CHANNELS)
        message = packed(frames(rng, kernel.session, rng.choice((parent, parent, "", "other"))))
        if not dry:
            out.get(channel, out[2]).sendall(message)
    if raw and not dry:
        out[2].sendall(rng.choice(RAW))


def lie_about_commands(kernel: Any, seed: int, messages: int) -> None:
    """Answer each request for a command with random messages about it, of which any may be its end."""
    rng = random.Random(seed)  # noqa: S311 - the fuzzer must be reproducible

    def start(stream: Any, ident: Any, parent: Any) -> None:
        for _ in range(messages):
            buffers = [rng.randbytes(rng.choice((0, 1, 5000))) for _ in range(rng.randrange(3))]
            content = command_content(rng)
            kernel.session.send(stream, rng.choice(COMMAND_KINDS), content, parent, ident=ident, buffers=buffers)
        kernel.session.send(stream, "command_start_reply", {"status": "ok", "pid": 1}, parent, ident=ident)
        kernel.session.send(stream, "command_end", {"exit_code": 7}, parent, ident=ident)

    kernel.control_handlers["command_start_request"] = start


def command_content(rng: random.Random) -> dict[str, Any]:
    """Return what almost is a message about a command."""
    content: dict[str, Any] = {"status": "ok", "pid": 7, "stream": "stdout", "exit_code": 0, "errno": 2,
                               "changed_files": {"files": [["made", "a", 1]], "more": 0}}  # fmt: skip
    for key in rng.sample(list(content), rng.randrange(1, 4)):
        content[key] = plain(rng)
    if rng.random() < 0.3:
        content["changed_files"] = {"files": [[plain(rng) for _ in range(rng.randrange(5))] for _ in range(9)],
                                    "more": plain(rng)}  # fmt: skip
    return content


def forge_calls(kernel: Any, seed: int, messages: int) -> None:
    """Send random requests for tools, in the name of the running cell."""
    rng, tools = random.Random(seed), kernel.tools  # noqa: S311 - the fuzzer must be reproducible
    for _ in range(messages):
        content = {"id": rng.choice(("f", "g", plain(rng))), "name": rng.choice(("count", "secret", plain(rng)))}
        arguments = rng.choice((b"{}", b"{}", b"", b"\xff", b"[" * 999, json.dumps(plain(rng)).encode()))
        buffers = [arguments] * rng.choice((1, 1, 1, 0, 2))
        kind, parent = rng.choice(TOOL_KINDS), tools._parent
        kernel.session.send(kernel.stdin_socket, kind, content, parent, ident=tools._ident, buffers=buffers)


def plain(rng: random.Random) -> Any:
    """Return a random value that the kernel's own session can send."""
    made = value(rng)
    try:
        json.dumps(made, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # a lone surrogate is a ValueError too
        return "nonsense"
    return made
