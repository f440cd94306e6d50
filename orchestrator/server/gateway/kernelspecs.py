"""Jupyter's kernelspecs: one for each policy that a token allows. Pure."""

from __future__ import annotations

from typing import Any, Final

from orchestrator.errors import UnknownKernelNameError
from orchestrator.principal import Principal

DEFAULT: Final = "python3"  # the token's first policy: many clients know no other name


def kernelspecs(principal: Principal) -> dict[str, Any]:
    """Return the answer of ``/api/kernelspecs``."""
    names = [DEFAULT, *(name for name in principal.policies[1:] if name != DEFAULT)]
    return {"default": DEFAULT, "kernelspecs": {name: kernelspec(principal, name) for name in names}}


def kernelspec(principal: Principal, name: str) -> dict[str, Any]:
    """Return one kernelspec.

    Raises:
        UnknownKernelNameError: the token allows no such policy.
    """
    policy = policy_of(principal, name)
    spec = {
        "argv": ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],  # nobody but the sandbox runs it
        "env": {},
        "display_name": f"Python 3 (Cellblock, {policy})",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"debugger": False},
    }
    return {"name": name, "spec": spec, "resources": {}}


def policy_of(principal: Principal, name: str) -> str:
    """Return the policy that a kernelspec stands for.

    Raises:
        UnknownKernelNameError: the token allows no such policy.
    """
    if name == DEFAULT:
        return principal.policies[0]
    if name not in principal.policies:
        raise UnknownKernelNameError(f"No such kernel: {name[:100]}")
    return name
