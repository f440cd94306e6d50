"""What stands where something could not be captured."""


class NotRestoredError(RuntimeError):
    """Something was used that could not be captured in a checkpoint.

    Attributes:
        lost: its (name, kind, reason).
    """

    def __init__(self, message, lost=None):
        super().__init__(message)
        self.lost = lost


def _refuse(method):
    def refuse(self, *_args, **_kwargs):
        raise _error(self)

    refuse.__name__ = method
    return refuse


_METHODS = """
    __repr__ __str__ __bytes__ __format__ __bool__ __call__ __iter__ __next__ __len__ __contains__ __getitem__
    __setitem__ __delitem__ __setattr__ __delattr__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __add__ __radd__
    __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __mod__ __pow__ __and__ __or__ __xor__
    __neg__ __pos__ __abs__ __invert__ __int__ __float__ __complex__ __index__ __enter__ __exit__ __await__
    __aiter__ __anext__ __aenter__ __aexit__ __fspath__ __dir__ __reversed__ __length_hint__
""".split()  # noqa: SIM905 - one a line would be a page


class NotRestored:
    """Stands where something was that could not be captured. Whatever is done with it raises NotRestoredError."""

    made = 0  # how many there have been in this process

    def __init__(self, name, kind, reason):
        NotRestored.made += 1
        object.__setattr__(self, "_lost", (name, kind, reason))

    def __reduce_ex__(self, _protocol):
        return NotRestored, object.__getattribute__(self, "_lost")

    def __getattribute__(self, name):
        if name in ("__class__", "__reduce_ex__"):
            return object.__getattribute__(self, name)
        raise _error(self)

    __hash__ = object.__hash__

    for _method in _METHODS:
        locals()[_method] = _refuse(_method)
    del _method


def lost_of(placeholder):
    return object.__getattribute__(placeholder, "_lost")


def _error(placeholder):
    name, kind, reason = lost_of(placeholder)
    return NotRestoredError(
        f"{name!r} ({kind}) was not restored: {reason}. It was lost when this session moved to a fresh kernel; "
        "make it anew.",
        (name, kind, reason),
    )
