"""Classes that cells defined: take them apart, and make them again without running hooks for new subclasses."""

import ctypes
import operator
import sys
import types
import typing
from typing import Any

from cloudpickle import cloudpickle

# Hooks that run when a class is made or changed. A restored class is not new, so its hooks are set last.
_HOOKS = frozenset({"__init_subclass__"})
_METACLASS_HOOKS = _HOOKS | {"__new__", "__init__", "__prepare__", "__setattr__"}
# Attributes that a class needs from the start, because they decide how its instances are laid out in memory.
_LAYOUT = ("__slots__", "_type_", "_length_", "_pack_")
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_TYPED_DICT_META: Any = vars(typing)["_TypedDictMeta"]  # type stubs leave it out


def reduce_class(kind: Any, reduced: Any) -> tuple[Any, dict[str, Any]]:
    """Return an improved form of what cloudpickle takes a class apart to, and the class's hooks by name.

    The caller sets the hooks after everything else is loaded.

    Args:
        kind: the class.
        reduced: cloudpickle's form.
    """
    if issubclass(kind, ctypes.Array):
        return (operator.mul, (kind._type_, kind._length_)), {}
    if issubclass(kind, type) and not kind.__flags__ & _HEAP:
        return (type, (_instance_of(kind),)), {}
    maker, args, (attributes, slots), *rest = reduced
    hooks = _METACLASS_HOOKS if issubclass(kind, type) else _HOOKS
    later = {name: attributes.pop(name) for name in hooks & attributes.keys()}
    for name, value in list(attributes.items()):
        if isinstance(value, types.MemberDescriptorType) and value.__objclass__ is kind:
            del attributes[name]
    if maker is cloudpickle._make_skeleton_class:
        args = _improve_skeleton(kind, args, attributes)
    return (maker, args, (attributes, slots), *rest), later


def _improve_skeleton(kind: Any, args: Any, attributes: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of cloudpickle's ``_make_skeleton_class`` with all that the class needs from the start.

    Args:
        attributes: what is set on the class later; moves what the skeleton takes over.
    """
    constructor, name, bases, own, *others = args
    own = own | {"__qualname__": kind.__qualname__}
    own |= {name: attributes.pop(name) for name in _LAYOUT if name in attributes}
    if constructor is _TYPED_DICT_META:
        generic = [base for base in bases if getattr(base, "__origin__", None) is typing.Generic]
        bases = (typing.TypedDict, *generic)
    elif typing.NamedTuple in bases:
        bases = kind.__bases__
    elif issubclass(kind, (ctypes.Structure, ctypes.Union)) and "_fields_" in attributes:
        fields = attributes["_fields_"]
        for field in fields:
            attributes.pop(field[0])
        attributes["_fields_"] = attributes.pop("_fields_")
    return constructor, name, bases, own, *others


def _instance_of(metaclass: type) -> Any:
    """Return a class through which to reach a metaclass that is written in C and has no name in its module."""
    module = sys.modules[metaclass.__module__]
    return next(value for value in vars(module).values() if type(value) is metaclass)
