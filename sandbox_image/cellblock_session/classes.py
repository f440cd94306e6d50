"""Classes that cells defined: taken to pieces, and put together without waking their hooks for new subclasses."""

import ctypes
import operator
import sys
import types
import typing

from cloudpickle import cloudpickle

# What runs when a class is made or changed: a restored class is no new one, so it is given these last.
_HOOKS = frozenset({"__init_subclass__"})
_METACLASS_HOOKS = _HOOKS | {"__new__", "__init__", "__prepare__", "__setattr__"}
# What a class must have from the start: it decides on how its instances lie in memory.
_LAYOUT = ("__slots__", "_type_", "_length_", "_pack_")


def reduce_class(kind, reduced):
    """Improve what cloudpickle makes of a class.

    Args:
        kind: the class.
        reduced: cloudpickle's.

    Returns:
        What pickle takes, and the hooks by name, which are to be set once everything is loaded.
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
        constructor, name, bases, own, *others = args
        own = own | {"__qualname__": kind.__qualname__}
        own |= {name: attributes.pop(name) for name in _LAYOUT if name in attributes}
        if constructor is typing._TypedDictMeta:
            generic = [base for base in bases if getattr(base, "__origin__", None) is typing.Generic]
            bases = (typing.TypedDict, *generic)
        elif typing.NamedTuple in bases:
            bases = kind.__bases__
        elif issubclass(kind, (ctypes.Structure, ctypes.Union)) and "_fields_" in attributes:
            fields = attributes["_fields_"]
            for field in fields:
                attributes.pop(field[0])
            attributes["_fields_"] = attributes.pop("_fields_")
        args = constructor, name, bases, own, *others
    return (maker, args, (attributes, slots), *rest), later


_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def _instance_of(metaclass):
    """Find a class by which a metaclass of C can be named that its module does not."""
    module = sys.modules[metaclass.__module__]
    return next(value for value in vars(module).values() if type(value) is metaclass)
