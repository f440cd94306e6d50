"""What the session changed in libraries: attributes of modules, classes and objects, and entries of containers.

A library also changes itself: it makes locks, caches and modules when they are first used. Those are left to it. A
change is the session's if its value is (a function or class of a cell or of a module in /work, or something that refers
to one), or if the session's code sets the attribute by name.
"""

import builtins
import gc
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from cellblock_session.notrestored import Lost, NotRestored
from cellblock_session.pickling import is_lock, refusal
from cellblock_session.written import COMPUTED

_WORK = "/work/"
# Types of values that classes hold by the ten thousand and that no session can have made.
_NEVER_OWN = frozenset({types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType,
                        types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType,
                        str, int, bool, float, types.NoneType, tuple, dict, list, set, frozenset})  # fmt: skip
_SCALARS = (int, float, complex, str, bytes, types.NoneType)
# Modules of the kernel in which only hooks and plain values that the session set are looked for.
_HOOKED = frozenset({"sys", "threading", "warnings"})
_NOT_HOOKS = frozenset({"stdin", "stdout", "stderr", "displayhook", "path", "modules", "meta_path", "path_hooks",
                        "path_importer_cache", "last_type", "last_value", "last_traceback", "last_exc",
                        "filters"})  # fmt: skip


class Change(NamedTuple):
    """One change.

    Attributes:
        module: the module's name.
        path: of names from the module to what has the attribute or entry.
        key: the attribute, or the entry's key; None for an entry of a list or set.
        value: the new value.
        action: "set" or "delete" the attribute, "add" the entry, or "call" the function with these arguments.
    """

    module: str
    path: tuple[str, ...]
    key: Any
    value: Any
    action: str

    @property
    def name(self) -> str:
        place = ".".join((self.module, *self.path))
        return f"{place}.{self.key}" if self.action != "add" else f"{place}[{self.key!r:.100}]"


class Patches:
    """Finds what the session changed in libraries.

    Args:
        surroundings: the sandbox before the first cell, and the modules right after their import.
        namespace: the session's variables.
        written: the names that the session's code sets.
        loss: returns why a value cannot be captured in full, or None if it can.
    """

    def __init__(
        self,
        surroundings: Any,
        namespace: Mapping[str, Any],
        written: Collection[str],
        loss: Callable[[Any], str | None],
    ) -> None:
        self._before = surroundings
        self._namespace = namespace
        self._written = written
        self._loss = loss
        self._members: dict[str, list[str]] = {}
        for pair in written:
            owner, _, member = pair.rpartition(".")
            if owner.isidentifier() and member.isidentifier():
                self._members.setdefault(owner, []).append(member)
        self.lost: list[Lost] = []

    def in_classes(self) -> Iterator[tuple[type, str, Any]]:
        """Yield (class, attribute, value) for what the session set on classes of libraries and of modules in /work."""
        for kind in _all_classes():
            module = str(kind.__module__)
            if module.split(".")[0] in self._before.IGNORED:
                continue
            own = _is_in_work(sys.modules.get(module))
            before = self._before.classes.get(kind, len(vars(kind)))
            for number, (name, value) in enumerate(list(vars(kind).items())):
                if self._is_set_on_class(kind, name, value, own=own, new=number >= before):
                    yield kind, name, value

    def _is_set_on_class(self, kind: type, name: str, value: Any, *, own: bool, new: bool) -> bool:
        if type(value) is NotRestored or self._is_own(value, main_only=own):
            return True
        if name.startswith("__") or is_lock(value):
            return False
        if own:
            return not name.startswith("_") and not hasattr(type(value), "__get__")
        if new and name[0] != "_" and _is_added_by_another(kind, value):
            return self._can_be_set(f"{kind.__qualname__}.{name}", value, new=False)
        if name in self._written and (f"{kind.__name__}.{name}" in self._written or (new and name[0] != "_")):
            return self._can_be_set(f"{kind.__qualname__}.{name}", value, new=new)
        return new and name[0] != "_" and COMPUTED in self._written and _is_plain(value)

    def in_modules(self) -> Iterator[Change]:
        """Yield what the session changed in modules other than its own, in their objects and in their containers."""
        yield from self._in_builtins()
        for module_name, function, args, kwargs in self._before.registered:
            if any(map(self._is_own, (*args, *kwargs.values()))):
                yield Change(module_name, (), function, (args, kwargs), "call")
        seen: set[int] = set()
        for module_name, before in list(self._before.modules.items()):
            module = sys.modules.get(module_name)
            if not isinstance(module, types.ModuleType):
                continue
            if module_name in _HOOKED:
                yield from self._hooks(module_name, module, before)
            if module_name.split(".")[0] in self._before.IGNORED:
                continue
            now, own = dict(vars(module)), _is_in_work(module)
            for name, value in now.items():
                if isinstance(value, types.ModuleType) or (name.startswith("__") and name.endswith("__")):
                    continue
                if self._is_set_in_module(module_name, name, value, before.get(name, before), own=own):
                    yield Change(module_name, (), name, value, "set")
                elif not own:
                    yield from self._inside(module_name, name, value, seen)
            for name in before:
                if name not in now and not name.startswith("_") and (own or self._is_written(name)):
                    yield Change(module_name, (), name, None, "delete")

    def _is_set_in_module(self, module_name: str, name: str, value: Any, old: Any, *, own: bool) -> bool:
        if type(value) is NotRestored:
            return True
        if is_lock(value) or (own and old is value and self._loss_of(value) is not None):
            return False
        if own and not callable(value):
            return True
        if old is value:
            return False
        if self._is_own(value, main_only=own):
            return True
        new = old is self._before.modules[module_name]
        if name in self._written and (name[0] != "_" or f"{module_name.split('.')[-1]}.{name}" in self._written):
            return self._can_be_set(f"{module_name}.{name}", value, new=new)
        return name[0] != "_" and COMPUTED in self._written and _is_plain(value)

    def _in_builtins(self) -> Iterator[Change]:
        for name, value in list(vars(builtins).items()):
            old = self._before.builtins.get(name, self)
            if old is self or (old is not value and self._is_own(value)):
                yield Change("builtins", (), name, value, "set")

    def _hooks(self, module_name: str, module: types.ModuleType, before: Mapping[str, Any]) -> Iterator[Change]:
        for name, value in list(vars(module).items()):
            if name in _NOT_HOOKS or name.startswith("_") or before.get(name, self) is value:
                continue
            if self._is_own(value) or (f"{module_name}.{name}" in self._written and _is_plain(value)):
                yield Change(module_name, (), name, value, "set")

    def _inside(self, module_name: str, name: str, value: Any, seen: set[int]) -> Iterator[Change]:
        """Yield what the session changed in an object or container that a module refers to."""
        if isinstance(value, (dict, list, set)):
            length = self._before.lengths.get(module_name, {}).get(name)
            if length is not None and len(value) > length and id(value) not in seen and "cache" not in name.lower():
                seen.add(id(value))
                yield from self._entries(module_name, name, value, length)
        elif name in self._members and not isinstance(value, type):
            for member in self._members[name]:
                found = _attribute(value, member)
                if found is not self and _is_plain(found) and not hasattr(type(found), "__get__"):
                    yield Change(module_name, (name,), member, found, "set")

    def _entries(self, module_name: str, name: str, container: Any, length: int) -> Iterator[Change]:
        if isinstance(container, dict):
            found = list(container.items())[length:]
        else:
            found = [(None, item) for item in list(container)[length if isinstance(container, list) else 0 :]]
        for key, value in found:
            if refusal(type(key)) or refusal(type(value)):
                continue  # a library's list of what runs, such as asyncio's of tasks
            own = any(self._is_own(part) for part in (key, value, *(value if type(value) is tuple else ())))
            text = key if key is not None else value
            if own or (type(text) is str and text in self._written and self._loss_of(value) is None):
                yield Change(module_name, (name,), key, value, "add")

    def _can_be_set(self, name: str, value: Any, *, new: bool) -> bool:
        """Return whether to set a value in a library again. Reports a value that is lost and leaves the library's."""
        loss = self._loss_of(value)
        if loss is None or new:
            return True
        self.lost.append((name, type(value).__qualname__, loss))
        return False

    def _loss_of(self, value: Any) -> str | None:
        return None if isinstance(value, _SCALARS) else self._loss(value)

    def _is_written(self, name: str) -> bool:
        return name in self._written or COMPUTED in self._written

    def _is_own(self, value: Any, *, main_only: bool = False) -> bool:
        """Return whether a value is a function or class of the session, or refers to one.

        Args:
            main_only: of a cell; else also of a module in /work.
        """
        kind = type(value)
        if kind is types.FunctionType:
            return self._is_own_function(value, main_only)
        if kind in _NEVER_OWN or kind is NotRestored or issubclass(kind, types.ModuleType):
            return False
        try:
            return any(
                self._is_own_function(part, main_only) if type(part) is types.FunctionType
                else isinstance(part, type) and _is_class_of_session(part, main_only)
                for part in (value, *gc.get_referents(value), *getattr(value, "__dict__", {}).values())
            )  # fmt: skip
        except Exception:  # a library's object may answer any question with any error
            return False

    def _is_own_function(self, function: types.FunctionType, main_only: bool) -> bool:
        space = function.__globals__
        return space is self._namespace or (not main_only and str(space.get("__file__", "")).startswith(_WORK))


def apply_change(change: Any) -> list[Lost]:
    """Make a change again, and return it if that fails."""
    change = Change(*change)
    try:
        target: Any = sys.modules.get(change.module) or __import__(change.module, fromlist=["*"])
        for part in change.path:
            target = getattr(target, part)
        if change.action == "delete":
            delattr(target, change.key)
        elif change.action == "set":
            setattr(target, change.key, change.value)
        elif change.action == "call":
            getattr(target, change.key)(*change.value[0], **change.value[1])
        elif isinstance(target, dict):
            target[change.key] = change.value
        elif change.value not in target:
            (target.append if isinstance(target, list) else target.add)(change.value)
    except Exception as error:
        return [(change.name, "patch", f"{type(error).__name__}: {error}")]
    return []


def _is_added_by_another(kind: type, value: Any) -> bool:
    """Return whether another library made a method for this class when the session asked, as ``tqdm.pandas()`` does."""
    if type(value) is not types.FunctionType or "<locals>" not in value.__qualname__:
        return False
    return str(value.__module__).split(".")[0] != str(kind.__module__).split(".")[0]


def _is_class_of_session(kind: type, main_only: bool) -> bool:
    return kind.__module__ == "__main__" or (not main_only and _is_in_work(sys.modules.get(kind.__module__)))


def _is_in_work(module: Any) -> bool:
    return isinstance(module, types.ModuleType) and str(vars(module).get("__file__", "")).startswith(_WORK)


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Return whether a value is made of numbers, texts and containers of them alone."""
    if type(value) in (tuple, list, set, frozenset):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
    if type(value) is dict:
        return depth > 0 and all(_is_plain(part, depth - 1) for item in value.items() for part in item)
    return isinstance(value, _SCALARS)


def _attribute(value: Any, name: str) -> Any:
    """Return an object's attribute, or something that is not plain if there is none."""
    try:
        return getattr(value, name)
    except Exception:  # a library's object may answer any question with any error
        return _attribute


def _all_classes() -> set[type]:
    seen: set[type] = set()
    waiting: list[type] = [object]
    while waiting:
        subclasses: list[type] = type.__subclasses__(waiting.pop())
        waiting += [kind for kind in subclasses if kind not in seen]
        seen.update(subclasses)
    return seen
