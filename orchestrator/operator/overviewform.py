"""The form of an overview. The program of another user, or a node that was taken over, may send anything. Pure."""

from __future__ import annotations

from typing import Any, Final

_LARGEST = 1e15  # of any number in an overview
_MOST_MANAGERS = 256  # of a node; more are no overviews
_MOST_KERNELS = 4096  # of one instance; more is no overview
_COUNTS = ("max", "ready", "leased", "starting", "ending", "waiting")
NO_OVERVIEW: Final = "what it answers is no overview"


def overviews(found: object) -> list[dict[str, Any]] | None:
    """Return the overviews of a node's managers; None if it is something else."""
    if not isinstance(found, list) or len(found) > _MOST_MANAGERS:
        return None
    return found if all(isinstance(each, dict) and is_overview(each) for each in found) else None


def is_overview(answer: dict[str, Any]) -> bool:
    """Return whether an answer has the form of an overview."""
    pool, kernels = answer.get("pool"), answer.get("kernels")
    return (
        isinstance(pool, dict)
        and all(_is_number(pool.get(key)) for key in _COUNTS)
        and isinstance(kernels, list)
        and len(kernels) <= _MOST_KERNELS
        and all(isinstance(kernel, dict) and _is_kernel(kernel) for kernel in kernels)
    )


def _is_kernel(kernel: dict[str, Any]) -> bool:
    usage, cell = kernel.get("usage"), kernel.get("cell")
    return (
        kernel.keys() >= {"agent", "session", "usage", "cell"}
        and all(isinstance(kernel.get(key), str) for key in ("kernel_id", "runtime", "state"))
        and all(isinstance(kernel.get(key, ""), str | None) for key in ("agent", "session"))
        and _is_number(kernel.get("age_s"))
        and _is_number(kernel.get("cells"))
        and (usage is None or (isinstance(usage, dict) and all(map(_is_number_or_none, usage.values()))))
        and (
            cell is None
            or (isinstance(cell, dict) and _is_number(cell.get("age_s")) and _is_number(cell.get("number")))
        )
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST  # neither NaN nor a million digits


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_number(value)
