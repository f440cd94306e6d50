"""numpy arrays that lie in another's memory: pickle would make a copy of each."""

import sys

_HOLDERS = 3  # references to an array in a chain that nothing else refers to: the chain's, the loop's, the call's


def kinds():
    """Return numpy's (ndarray, memmap); (None, None) where no cell has imported it."""
    numpy = sys.modules.get("numpy")
    return getattr(numpy, "ndarray", None), getattr(numpy, "memmap", None)


def reduce_view(array):
    """Return how to make the array anew in the memory that it shares, or None where it shares none."""
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


def _make_view(owner, shape, dtype, strides, offset):
    memory = owner if owner.flags.c_contiguous else owner.T
    return type(owner)(shape, dtype, memory, offset, strides)


def inside(reduced):
    """Yield what lies in the tuples, lists and dicts of what an object was taken to."""
    for part in reduced.values() if isinstance(reduced, dict) else reduced:
        if type(part) in (tuple, list, dict):
            yield from inside(part)
        else:
            yield part
