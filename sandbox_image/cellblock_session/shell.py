"""What cells changed in the IPython shell itself: magics, aliases, hooks, printers and options."""

import types
from collections.abc import Callable, Mapping
from typing import Any

from cellblock_session.notrestored import Lost, NotRestored


def collect(shell: Any) -> dict[str, tuple[Any, ...]]:
    """Return the changes.

    Each has a name that describes it, and a tuple of its kind (a key of ``_SETTERS``) and the setter's arguments.
    """
    space = shell.user_ns
    found: dict[str, tuple[Any, ...]] = {}
    manager = shell.magics_manager
    for kind, magics in manager.magics.items():
        for name, magic in magics.items():
            if _is_made(magic, space):
                found[f"{'%' if kind == 'line' else '%%'}{name}"] = "magic", kind, name, magic
    for name, magics in manager.registry.items():
        if _is_own(type(magics), space):
            found[f"magics of {name}"] = "magics", type(magics)
    for event, hooks in shell.events.callbacks.items():
        for hook in hooks:
            if _is_made(hook, space) or _is_own(type(getattr(hook, "__self__", None)), space):
                found[f"{event} hook {hook.__name__}"] = "hook", event, hook
    for form, formatter in shell.display_formatter.formatters.items():
        for kind, printer in formatter.type_printers.items():
            if _is_made(printer, space):
                found[f"{form} of {kind.__qualname__}"] = "printer", form, kind, printer
    for stage, functions in _transformers(shell).items():
        for function in functions:
            if _is_made(function, space) or _is_own(type(function), space):
                name = getattr(function, "__name__", type(function).__name__)
                found[f"{stage} transformer {name}"] = "transformer", stage, function
    if shell.custom_exceptions and (handler := _exception_handler(shell)) is not None:
        found["the handler of exceptions"] = "exceptions", shell.custom_exceptions, handler
    found["aliases"] = "aliases", list(shell.alias_manager.aliases)
    for name, part in _parts(shell).items():
        values = {key: getattr(part, key) for key in part.trait_names(config=True) if not key.startswith("_")}
        simple = {key: value for key, value in values.items() if isinstance(value, (bool, int, float, str))}
        found[f"options of {name}"] = "options", name, simple
    return found


def apply(shell: Any, found: Mapping[str, Any]) -> list[Lost]:
    """Make the changes in another shell, and return (name, kind, reason) of each one that failed."""
    lost = []
    for name, value in found.items():
        if type(value) is NotRestored:
            continue  # the unpickler reports it
        kind, *arguments = value
        if any(type(argument) is NotRestored for argument in arguments):
            continue  # the shell would call it after every cell
        try:
            _SETTERS[kind](shell, *arguments)
        except Exception as error:
            lost.append((name, kind, f"{type(error).__name__}: {error}"))
    return lost


def _is_own(kind: type, space: dict[str, Any]) -> bool:
    """Return whether a cell defined a class: one of its functions has the session's variables as its globals."""
    return kind.__module__ == "__main__" and any(_is_made(value, space) for value in vars(kind).values())


def _is_made(function: object, space: dict[str, Any]) -> bool:
    return type(function) is types.FunctionType and function.__globals__ is space


def _transformers(shell: Any) -> dict[str, list[Any]]:
    return {
        "cleanup": shell.input_transformer_manager.cleanup_transforms,
        "input": shell.input_transformers_post,
        "syntax tree": shell.ast_transformers,
    }


def _exception_handler(shell: Any) -> Any:
    """Return what ``set_custom_exc`` was called with; None where it was not."""
    wrapped = getattr(shell.CustomTB, "__func__", None)
    cells = getattr(wrapped, "__closure__", None) or ()
    names = wrapped.__code__.co_freevars if wrapped is not None else ()
    return next((cell.cell_contents for name, cell in zip(names, cells, strict=False) if name == "handler"), None)


def _parts(shell: Any) -> dict[str, Any]:
    return {"the shell": shell, "the plain printer": shell.display_formatter.formatters["text/plain"]}


def _set_magic(shell: Any, kind: str, name: str, magic: Any) -> None:
    shell.magics_manager.magics[kind][name] = magic


def _set_aliases(shell: Any, aliases: list[tuple[str, str]]) -> None:
    for name, command in aliases:
        if (name, command) not in shell.alias_manager.aliases:
            shell.alias_manager.define_alias(name, command)


def _set_options(shell: Any, name: str, options: Mapping[str, Any]) -> None:
    part = _parts(shell)[name]
    for key, value in options.items():
        if getattr(part, key) != value:
            setattr(part, key, value)


_SETTERS: dict[str, Callable[..., Any]] = {
    "magic": _set_magic,
    "magics": lambda shell, kind: shell.register_magics(kind),
    "hook": lambda shell, event, hook: shell.events.register(event, hook),
    "printer": lambda shell, form, kind, printer: shell.display_formatter.formatters[form].for_type(kind, printer),
    "transformer": lambda shell, stage, function: _transformers(shell)[stage].append(function),
    "exceptions": lambda shell, kinds, handler: shell.set_custom_exc(kinds, handler),
    "aliases": _set_aliases,
    "options": _set_options,
}
