"""The files of a multipart/form-data body, one after the other as they come, so that none takes much memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from email.message import Message

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from orchestrator.errors import InvalidInputError

_FIELD = "file"
Step = tuple[str, bytes]
"""What happens in a body: ("begin", the file's name), ("data", a piece) or ("end", nothing)."""


class MultipartFiles:
    """The parts called ``file`` of one body.

    Args:
        content_type: the request's; it has the boundary.

    Raises:
        InvalidInputError: it has none.
    """

    def __init__(self, content_type: str, body: AsyncIterable[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise InvalidInputError("the body is no multipart/form-data with a boundary.")
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._headers_begin,
                "on_header_field": self._field,
                "on_header_value": self._value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )
        self._body = body
        self._steps: list[Step] = []
        self._headers = Message()
        self._name, self._content = b"", b""
        self._wanted = False
        self._is_complete = False

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield what happens in the body.

        Raises:
            InvalidInputError: it is malformed, or ends early.
        """
        try:
            async for piece in self._body:
                self._parser.write(piece)
                steps, self._steps = self._steps, []
                for step in steps:
                    yield step
        except MultipartParseError:
            raise InvalidInputError("the body is malformed multipart/form-data.") from None
        if not self._is_complete:
            raise InvalidInputError("the body of multipart/form-data ends early.")

    def _headers_begin(self) -> None:
        self._headers = Message()

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._headers["content-disposition"] = self._content.decode("latin-1")
        self._name, self._content = b"", b""

    def _begin(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", ""))
        self._wanted = options.get(b"name") == _FIELD.encode()
        if self._wanted:
            self._steps.append(("begin", options.get(b"filename", b"")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._steps.append(("data", data[start:end]))

    def _end(self) -> None:
        if self._wanted:
            self._steps.append(("end", b""))

    def _finish(self) -> None:
        self._is_complete = True
