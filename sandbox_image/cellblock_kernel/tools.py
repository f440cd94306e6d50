"""Tools of the host, which a cell calls as functions: ``import tools; tools.search(query="…")``.

A call leaves on the stdin channel, and its answer comes on the control channel, whose thread runs while a cell does. So
blocking calls, ``await``, ``gather`` and threads all work. Arguments and results are JSON.
"""

import asyncio
import importlib.machinery
import inspect
import itertools
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import ModuleType
from typing import Any

MODULE = "tools"
LARGEST = 900 * 1024  # bytes of the arguments of one call: a message on this channel may have 1 MiB


class ToolError(Exception):
    """A tool failed, or was not called.

    Attributes:
        message: of the exception on the host, or why the tool was not called.
        tool: the tool's name.
        kind: the name of the exception's class on the host; "" if the tool was not called.
    """

    def __init__(self, message: str, tool: str = "", kind: str = "") -> None:
        super().__init__(f"{kind}: {message}" if kind else message)
        self.message = message
        self.tool = tool
        self.kind = kind


class ToolFunction:
    """One tool, as a function."""

    def __init__(self, tools: "Tools", definition: Mapping[str, Any]) -> None:
        self._tools = tools
        self._definition = dict(definition)
        self.name = definition["name"]
        self.schema = definition["schema"]
        self.__name__ = self.__qualname__ = definition["attribute"]
        self.__module__ = MODULE
        self.__doc__ = definition["description"]
        properties = self.schema.get("properties") or {}
        required = self.schema.get("required") or ()
        names = sorted(properties, key=lambda name: name not in required)
        self._parameters = [name for name in names if name.isidentifier()]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        optional = inspect.Parameter.empty
        self.__signature__ = inspect.Signature([
            inspect.Parameter(name, kind, default=optional if name in required else properties[name].get("default"))
            for name in self._parameters
        ])  # fmt: skip

    def __reduce__(self) -> Any:
        """Pickle the definition: the tool is looked up by its name when it is called."""
        return _restored, (self._definition,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tools.call(self.name, self._arguments(args, kwargs))

    async def async_(self, *args: Any, **kwargs: Any) -> Any:
        """Call the tool, and await its result: other tasks go on meanwhile."""
        return await self._tools.call_async(self.name, self._arguments(args, kwargs))

    def __repr__(self) -> str:
        return f"<tool {self.name}{self.__signature__}>"

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._parameters):
            raise TypeError(f"{self.__name__}() takes {len(self._parameters)} arguments, and {len(args)} were given")
        given = dict(zip(self._parameters, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"{self.__name__}() got two values for {', '.join(twice)}")
        return {**given, **kwargs}


def _restored(definition: Mapping[str, Any]) -> ToolFunction:
    assert Tools.of_kernel is not None
    return ToolFunction(Tools.of_kernel, definition)


class Tools:
    """The tools of one kernel, and the calls that wait for an answer."""

    of_kernel: "Tools | None" = None

    def __init__(self, kernel: Any) -> None:
        Tools.of_kernel = self
        self._kernel = kernel
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Future[Any]] = {}
        self._functions: dict[str, ToolFunction] = {}
        self._pid = os.getpid()
        self._ident: Any = None
        self._parent: Any = None
        self.lock = threading.RLock()  # hold it to use the stdin socket
        self.module = ModuleType(MODULE, "The tools of this session: functions of the host.")
        self.module.__getattr__ = self._missing  # type: ignore[method-assign]
        self.module.__spec__ = importlib.machinery.ModuleSpec(MODULE, self)  # type: ignore[arg-type]
        self.module.__file__ = __file__
        sys.meta_path.append(self)  # last: a file tools.py of the session is found first

    # As a finder and loader of the module: see ``importlib.abc``

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """Find the module, also in a session that has no tools: a variable may refer to it."""
        return importlib.machinery.ModuleSpec(name, self) if name == MODULE else None  # type: ignore[arg-type]

    def create_module(self, _spec: Any) -> ModuleType:
        """Return the module."""
        return self.module

    def exec_module(self, _module: ModuleType) -> None:
        """Do nothing: the module is complete."""

    # Called by the kernel

    def begin(self, definitions: Sequence[Mapping[str, Any]] | None, parent: Any, ident: Any) -> None:
        """Offer these tools to the cell that begins; None: those of the last one."""
        self._parent, self._ident = parent, ident
        if definitions is None:
            return
        functions = {each["attribute"]: ToolFunction(self, each) for each in definitions}
        members = vars(self.module)
        for name in self._functions:
            members.pop(name, None)
        self._functions = functions
        members.update(functions)
        members.update(
            ToolError=ToolError,
            call_tool=self.call,
            call_tool_async=self.call_async,
            list_tools=self.describe,
            __all__=[*functions, "ToolError", "call_tool", "call_tool_async", "list_tools"],
        )
        if functions:
            sys.modules[MODULE] = self.module

    def end(self) -> None:
        """Fail the calls that still wait: their cell is over."""
        self._parent = None
        while self._waiting:
            _, future = self._waiting.popitem()
            if not future.done():
                future.set_exception(ToolError("the cell is over, and with it the calls of its tools."))

    def answer(self, content: Mapping[str, Any], data: bytes) -> None:
        """Take an answer of the host. Runs in the control thread."""
        future = self._waiting.pop(content["id"], None)
        if future is None or future.done():
            return
        if content["status"] == "ok":
            future.set_result(json.loads(data))
        else:
            future.set_exception(ToolError(content["message"], content["tool"], content["kind"]))

    # Called by cells

    def call(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Call a tool by its name, and wait for its result.

        Raises:
            ToolError: the tool failed, or could not be called.
        """
        token, future = self._send(name, arguments)
        try:
            return future.result()
        except ToolError:
            raise
        except BaseException:
            self._cancel(token)
            raise

    async def call_async(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Do what ``call_tool`` does, and let other tasks go on meanwhile."""
        token, future = self._send(name, arguments)
        try:
            return await asyncio.wrap_future(future)
        except ToolError:
            raise
        except BaseException:
            self._cancel(token)
            raise

    def describe(self) -> list[dict[str, Any]]:
        """Return the tools: name, signature, description and JSON schema."""
        return [
            {
                "name": tool.name,
                "signature": f"tools.{attribute}{tool.__signature__}",
                "description": tool.__doc__,
                "schema": tool.schema,
            }
            for attribute, tool in self._functions.items()
        ]

    def _missing(self, name: str) -> Any:
        known = ", ".join(self._functions) or "none"
        raise AttributeError(f"this session has no tool {name!r}; it has: {known}")

    def _send(self, name: str, arguments: Mapping[str, Any] | None) -> tuple[str, "Future[Any]"]:
        if os.getpid() != self._pid:
            raise ToolError("tools can be called in the kernel's own process only.", name)
        parent = self._parent
        if parent is None:
            raise ToolError("tools can be called only while a cell runs.", name)
        try:
            data = json.dumps(arguments or {}, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ToolError(f"the arguments are no JSON: {error}", name) from None
        if len(data) > LARGEST:
            raise ToolError(f"the arguments have {len(data)} bytes; {LARGEST} are allowed.", name)
        token = str(next(self._numbers))
        future: Future[Any] = Future()
        self._waiting[token] = future
        self._say("tool_request", {"id": token, "name": name}, parent, [data])
        return token, future

    def _cancel(self, token: str) -> None:
        parent = self._parent
        if self._waiting.pop(token, None) is not None and parent is not None:
            self._say("tool_cancel", {"id": token}, parent, [])

    def _say(self, kind: str, content: dict[str, Any], parent: Any, buffers: list[bytes]) -> None:
        kernel = self._kernel
        with self.lock:
            kernel.session.send(kernel.stdin_socket, kind, content, parent, ident=self._ident, buffers=buffers)
