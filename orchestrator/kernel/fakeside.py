"""What a ``FakeKernel`` has beside its cells: the files and the state of its session, in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Content = dict[str, Any]
_PIECE = 1024 * 1024  # bytes
_WORK = "/work/"


class FakeFiles:
    """The files of a fake kernel.

    Attributes:
        contents: the bytes of each file, by its path below /work.
        refusal: why it refuses to read and write; "" while it does not.
    """

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.refusal = ""

    def answer(self, kind: str, content: Content, buffers: Sequence[bytes]) -> tuple[Content, list[bytes]]:
        """Return the content and the buffers of the reply to a ``file_…_request``."""
        path = str(content["path"]).removeprefix(_WORK)
        if self.refusal and kind != "file_discard_request":
            return {"status": "error", "reason": self.refusal}, []
        match kind:
            case "file_write_request":
                self.contents[path] = self.contents.get(path, b"")[: content["offset"]] + b"".join(map(bytes, buffers))
                if content["last"]:
                    self.contents[str(content["rename"]).removeprefix(_WORK)] = self.contents.pop(path)
            case "file_discard_request":
                self.contents.pop(path, None)
            case _:
                if path not in self.contents:
                    return {"status": "error", "reason": "there is no such file"}, []
                start = content["offset"]
                return {"status": "ok"}, [self.contents[path][start : start + content["length"]]]
        return {"status": "ok"}, []


class FakeState:
    """The state of a fake kernel's session: bytes, which a save sends to the host and a load replaces.

    Attributes:
        data: the state.
        lost: what the next reply says could not be saved or loaded: ``{"name", "kind", "reason"}`` each.
        refusal: why it cannot save or load; "" while it can.
        again: how many replies ask the host to try once more.
        hangs: whether saving and loading never end by themselves.
    """

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[dict[str, str]] = []
        self.refusal = ""
        self.again = 0
        self.hangs = False
        self._given: dict[str, list[bytes]] = defaultdict(list)
        self._taken: dict[str, int] = defaultdict(int)
        self._moved: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def move(self, kind: str, content: Content) -> Content:
        """Return the content of the reply to a ``state_save_request`` or ``state_load_request``."""
        transfer = str(content["transfer"])
        if self.hangs:
            await asyncio.Event().wait()
        if not self.refusal:
            await self._moved[transfer].wait()
        self._moved[transfer].set()
        if self.refusal:
            return {"status": "error", "reason": self.refusal}
        if self.again:
            self.again -= 1
            return {"status": "again"}
        if kind == "state_load_request":
            self.data = b"".join(self._given.pop(transfer, []))
        return {"status": "ok", "lost": list(self.lost)}

    def answer(self, kind: str, content: Content, buffers: Sequence[bytes]) -> tuple[Content, list[bytes]]:
        """Return the content and the buffers of the reply to a ``state_take_request`` or ``state_give_request``."""
        transfer = str(content["transfer"])
        if kind == "state_give_request":
            self._given[transfer] += map(bytes, buffers)
            if content["last"]:
                self._moved[transfer].set()
            return {"taken": True}, []
        if self.hangs:
            return {"last": False}, []
        start = self._taken[transfer]
        self._taken[transfer] = start + _PIECE
        last = start + _PIECE >= len(self.data) or bool(self.refusal)
        if last:
            self._moved[transfer].set()
        return {"last": last}, [self.data[start : start + _PIECE]]
