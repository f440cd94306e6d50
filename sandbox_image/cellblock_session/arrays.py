"""numpy arrays that share another array's memory. Pickle alone would make a copy of each."""

import sys
from collections.abc import Iterator
from typing import Any

_HOLDERS = 3  # references to an unused array of a chain: from the chain, the loop variable and the call


def kinds() -> tuple[Any, Any]:
    """Return numpy's (ndarray, memmap), or (None, None) if no cell has imported numpy."""
    numpy = sys.modules.get("numpy")
    return getattr(numpy, "ndarray", None), getattr(numpy, "memmap", None)


def reduce_view(array: Any) -> tuple[Any, ...] | None:
    """Return how to make an array again in the memory that it shares, or None if it shares none."""
    kind = type(array)
    owner, above = None, array.base
    while type(above) is kind:
        if sys.getrefcount(above) > _HOLDERS:
            owner = above
        above = above.base
    if owner is None or array.dtype.hasobject or not array.flags.writeable or not owner.flags.forc:
        return None
    offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    return _make_view, (owner, array.shape, array.dtype, array.strides, offset)


def _make_view(owner: Any, shape: Any, dtype: Any, strides: Any, offset: int) -> Any:
    memory = owner if owner.flags.c_contiguous else owner.T
    return type(owner)(shape, dtype, memory, offset, strides)


def inside(reduced: Any) -> Iterator[Any]:
    """Yield the objects in nested tuples, lists and dicts."""
    for part in reduced.values() if isinstance(reduced, dict) else reduced:
        if type(part) in (tuple, list, dict):
            yield from inside(part)
        else:
            yield part
