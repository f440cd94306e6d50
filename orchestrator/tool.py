"""Tool: a function of the host that code in a sandbox may call."""

from __future__ import annotations

import functools
import inspect
import json
import keyword
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import pydantic

from orchestrator.errors import InvalidInputError

MOST_TOOLS = 200
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-/]{0,127}")
_LONGEST_DESCRIPTION = 20_000  # characters
_LARGEST = 512 * 1024  # bytes of all definitions

ToolFunction = Callable[..., Any] | Callable[..., Awaitable[Any]]


class Tool:
    """A function of the host that code in a sandbox may call, with a name and a JSON schema of its arguments.

    The function runs on the host, with the arguments of hostile code: they are validated against the schema, and no
    more. An asynchronous function runs in the manager's event loop; a plain one in a thread.

    Args:
        name: letters, digits and ``_.-/``. In the sandbox, ``tools.NAME`` has ``_`` in place of other characters.
        schema: JSON schema of the arguments, which are an object; None: from the function's signature and type hints.
        function: called with the arguments as keywords. Its result must be JSON, or a dataclass or a pydantic model.
        description: what the tool does, for models; None: the function's docstring.

    Raises:
        InvalidInputError: the name or the schema cannot be used, or the function's signature cannot be described.
    """

    def __init__(
        self,
        name: str,
        schema: Mapping[str, Any] | None,
        function: ToolFunction,
        description: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInputError(f"{name!r} is not the name of a tool: letters, digits and _.-/ are allowed.")
        if not callable(function):
            raise InvalidInputError(f"the tool {name!r} has no function.")
        if schema is not None and not isinstance(schema, Mapping):
            raise InvalidInputError(f"the schema of tool {name!r} is no JSON schema: it is no mapping.")
        self.name = name
        self.function = function
        described = inspect.getdoc(function) if description is None else description
        self.description = (described or "")[:_LONGEST_DESCRIPTION]
        self._model = None if schema is not None else _model_of(name, function)
        self.schema = dict(schema) if schema is not None else _schema_of(self._model)
        self._validator = None if schema is None else _validator_of(name, self.schema)

    @classmethod
    def internal(cls, name: str, schema: Mapping[str, Any], function: ToolFunction) -> Tool:
        """Return a tool of Cellblock's own, whose name no caller's tool can have."""
        tool = cls("internal", schema, function)
        tool.name = name
        return tool

    @classmethod
    def of(cls, tool: Tool | ToolFunction) -> Tool:
        """Return a tool: itself, or that of a function, with the function's name.

        Raises:
            InvalidInputError: see ``Tool``.
        """
        return tool if isinstance(tool, Tool) else cls(getattr(tool, "__name__", ""), None, tool)

    @property
    def attribute(self) -> str:
        """Its name in the sandbox's module ``tools``."""
        name = re.sub(r"\W", "_", self.name)
        return f"{name}_" if keyword.iskeyword(name) else name

    @property
    def is_async(self) -> bool:
        """Whether its function is a coroutine function."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose call is a coroutine function
        )

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments for the function, validated.

        Raises:
            ValueError: they do not match the schema; the message says where.
        """
        if self._model is not None:
            try:
                found = self._model.model_validate(arguments)
            except pydantic.ValidationError as error:
                raise ValueError("; ".join(_fault(fault) for fault in error.errors()[:5])) from None
            return {name: getattr(found, name) for name in found.model_fields_set}
        assert self._validator is not None
        fault = next(self._validator.iter_errors(arguments), None)
        if fault is not None:
            where = ".".join(map(str, fault.absolute_path))
            raise ValueError(f"{where}: {fault.message}" if where else fault.message)
        return dict(arguments)

    def definition(self) -> dict[str, Any]:
        """Return what the sandbox is told of it."""
        return {
            "name": self.name,
            "attribute": self.attribute,
            "description": self.description,
            "schema": self.schema,
        }


def tools_by_name(tools: Iterable[Tool | ToolFunction]) -> dict[str, Tool]:
    """Return the tools by name.

    Raises:
        InvalidInputError: a tool cannot be used, there are too many, or two have the same name.
    """
    found: dict[str, Tool] = {}
    attributes: set[str] = set()
    for each in tools:
        tool = Tool.of(each)
        if tool.name in found or tool.attribute in attributes:
            raise InvalidInputError(f"two tools have the name {tool.name!r}.")
        found[tool.name] = tool
        attributes.add(tool.attribute)
    if len(found) > MOST_TOOLS:
        raise InvalidInputError(f"there are {len(found)} tools; at most {MOST_TOOLS} are allowed.")
    size = len(json.dumps([tool.definition() for tool in found.values()]))
    if size > _LARGEST:
        raise InvalidInputError(f"the definitions of the tools have {size} bytes; at most {_LARGEST} are allowed.")
    return found


def _model_of(name: str, function: ToolFunction) -> type[pydantic.BaseModel]:
    """Return a model of a function's parameters."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidInputError(f"the signature of tool {name!r} cannot be read: {error}.") from None
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidInputError(
                f"the tool {name!r} has a parameter that cannot be named: {parameter}.",
                remedy="Pass Tool(name, schema, function) with a JSON schema.",
            )
        hint = Any if parameter.annotation is parameter.empty else parameter.annotation
        fields[parameter.name] = (hint, ... if parameter.default is parameter.empty else parameter.default)
    try:
        config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False, protected_namespaces=())
        return pydantic.create_model(f"arguments of {name}", __config__=config, **fields)
    except (TypeError, ValueError, NameError, pydantic.errors.PydanticUserError) as error:
        said = str(error).splitlines()[0]
        raise InvalidInputError(
            f"the parameters of tool {name!r} cannot be described: {said}",
            remedy="Pass Tool(name, schema, function) with a JSON schema.",
        ) from None


def _schema_of(model: type[pydantic.BaseModel] | None) -> dict[str, Any]:
    assert model is not None
    try:
        schema = model.model_json_schema()
    except pydantic.errors.PydanticInvalidForJsonSchema as error:
        raise InvalidInputError(
            f"a parameter of {model.__name__.removeprefix('arguments of ')!r} has no JSON form: {error}"
        ) from None
    schema.pop("title", None)
    return schema


def _validator_of(name: str, schema: Mapping[str, Any]) -> Any:
    import jsonschema  # 50 ms, which a process without tools need not spend

    try:
        return _validator_class(json.dumps(schema))(schema)
    except (jsonschema.SchemaError, TypeError, ValueError) as error:
        said = getattr(error, "message", str(error))
        raise InvalidInputError(f"the schema of tool {name!r} is no JSON schema: {said}") from None


@functools.lru_cache(maxsize=256)
def _validator_class(text: str) -> Any:
    """Check a schema, and return the class for it. Kept: a check takes 2 ms, and tools may be passed with each cell."""
    import jsonschema

    schema = json.loads(text)
    found = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    found.check_schema(schema)
    return found


def _fault(fault: Any) -> str:
    where: Sequence[Any] = fault["loc"]
    return f"{'.'.join(map(str, where))}: {fault['msg']}"
