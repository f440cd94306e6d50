"""Offers the folder of a notebook to its sandbox, read-only, where the policy allows it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.policy import datafolder
from orchestrator.policy.policy import Policy


def offer_notebook_folder(policy: Policy, folder: Path) -> tuple[Policy, str]:
    """Return the policy with the folder among its data, and a notice if the folder cannot be offered.

    The rules are those of every data folder: no folder of the system, no home folder, no sockets, readable for others.
    """
    name = policy.jupyter.folder
    if not name:
        return policy, ""
    try:
        resolved = datafolder.check(folder)
    except ValueError as error:
        return policy, f"the folder of the notebook is not at /data/{name}: {error}."
    return policy.model_copy(update={"data": {**policy.data, name: resolved}}), ""
