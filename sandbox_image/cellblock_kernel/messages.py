"""Messages that stay below the host's bound, whatever a cell shows."""

import json
import struct

from jupyter_client.session import DELIM, Session

MOST_FRAMES = 64  # the host takes no message of more


def as_bytes(frames):
    """Return a message's frames as they are on the wire; without its buffers where the host would not take them."""
    frames = [frame if type(frame) is bytes else memoryview(frame).tobytes("A") for frame in frames]
    if len(frames) > MOST_FRAMES or sum(map(len, frames)) > BoundedSession.bound:
        return frames[: frames.index(DELIM) + 6]
    return frames


def pack(frames):
    """Make one of a message's frames: how many there are, the bytes of each, and all of them."""
    return b"".join([struct.pack(f">H{len(frames)}I", len(frames), *map(len, frames)), *frames])


def shorten(value, longest):
    """Cut every text inside ``value`` to ``longest`` characters, and say so in its place."""
    if isinstance(value, str) and len(value) > longest:
        half = longest // 2
        return f"{value[:half]}\n[... {len(value) - 2 * half} characters left out ...]\n{value[-half:]}"
    if isinstance(value, dict):
        return {key: shorten(item, longest) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shorten(item, longest) for item in value]
    return value


def without_surrogates(value):
    """Replace every lone surrogate inside ``value``."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_surrogates(item) for item in value]
    return value


def shorten_bundle(data, longest):
    """Leave out every large item of a mime bundle but its plain text, which names them."""
    sizes = {mime: len(json.dumps(item, default=str)) for mime, item in data.items() if mime != "text/plain"}
    large = {mime: size for mime, size in sizes.items() if size > longest}
    said = "".join(f"\n[{mime} of {size} bytes left out]" for mime, size in large.items())
    kept = {mime: item for mime, item in data.items() if mime not in large}
    return {**kept, "text/plain": shorten(str(kept.get("text/plain", "")), longest) + said}


class BoundedSession(Session):
    """A Session whose messages stay below the host's bound; past it the host ends the kernel.

    A message that was shortened says by how many bytes, in its content's "left_out".
    """

    bound = 2**23  # bytes; replaced from connection.json

    def serialize(self, msg, ident=None):
        try:
            frames = super().serialize(msg, ident)
        except UnicodeEncodeError:
            msg = {**msg, "content": without_surrogates(msg["content"])}
            frames = super().serialize(msg, ident)
        size = sum(map(len, frames))
        if size <= self.bound:
            return frames
        content = msg["content"]
        if isinstance(content.get("data"), dict):
            content = {**content, "data": shorten_bundle(content["data"], self.bound // 16)}
        content = shorten(content, self.bound // 16)
        left_out = size - sum(map(len, super().serialize({**msg, "content": content}, ident)))
        return super().serialize({**msg, "content": {**content, "left_out": left_out}}, ident)
