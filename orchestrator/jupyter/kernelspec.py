"""Installs, lists and removes kernelspecs whose kernel is a relay to a sandbox."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from orchestrator.errors import InvalidInputError
from orchestrator.policy.policy import Policy, policy_path

DEFAULT_NAME = "cellblock"
DEFAULT_POLICY = "notebook"
_MARK = "cellblock"  # in the metadata of our kernelspecs
_START = Path(__file__).with_name("relaystart.py").absolute()
_LOGOS = Path(__file__).with_name("logos")


@dataclass(frozen=True, slots=True)
class InstalledSpec:
    """One kernelspec of Cellblock that Jupyter finds.

    Attributes:
        policy: the policy's name, or the path of its file.
        interpreter: the Python that runs the relay.
    """

    name: str
    display_name: str
    policy: str
    interpreter: str
    folder: Path


def relay_argv(connection_file: str, policy: str = "", runtime: str = "") -> list[str]:
    """Return the command that starts a relay.

    The interpreter's path is absolute: Jupyter may run in another environment. Python searches the folder of a file
    that it starts, which ``-P`` prevents, and not the notebook's folder, where Jupyter starts the relay.
    """
    argv = [sys.executable, "-P", str(_START), "-f", connection_file]
    if policy:
        argv += ["--policy", policy]
    if runtime:
        argv += ["--runtime", runtime]
    return argv


def kernel_json(policy: str, display_name: str = "") -> dict[str, Any]:
    """Return the content of kernel.json.

    Raises:
        PolicyError: the policy cannot be used.
    """
    Policy.load(policy)
    if os.sep in policy or policy.endswith(".toml"):
        policy = str(policy_path(policy).absolute())
    suffix = "" if policy == DEFAULT_POLICY else f", {Path(policy).stem}"
    return {
        "argv": relay_argv("{connection_file}", policy),
        "display_name": display_name or f"Python 3 (Cellblock{suffix})",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"debugger": False, _MARK: {"policy": policy}},
    }


def install(
    name: str, policy: str = DEFAULT_POLICY, *, display_name: str = "", user: bool = True, prefix: str | None = None
) -> Path:
    """Install a kernelspec, in place of an earlier one of Cellblock's. Returns its folder.

    Args:
        user: for this user; otherwise for the environment ``prefix``, or for all users if that is None.

    Raises:
        InvalidInputError: the name cannot be used, or another program's kernelspec has it.
        PolicyError: the policy cannot be used.
        OSError: the folder cannot be written.
    """
    content = kernel_json(policy, display_name)
    manager = KernelSpecManager()
    taken = _folder_of_foreign(manager, name)
    if taken is not None:
        raise InvalidInputError(f"{taken} is another program's kernelspec.", remedy="Choose another --name.")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "spec"
        shutil.copytree(_LOGOS, source)
        (source / "kernel.json").write_text(json.dumps(content, indent=1) + "\n")
        try:
            return Path(manager.install_kernel_spec(str(source), name, user=user, prefix=prefix))
        except ValueError as error:
            raise InvalidInputError(f"{error}.") from error


def installed() -> list[InstalledSpec]:
    """Return the kernelspecs of Cellblock that Jupyter finds, by name."""
    found = []
    for name, folder in sorted(KernelSpecManager().find_kernel_specs().items()):
        content = _content(Path(folder))
        mark = content.get("metadata", {}).get(_MARK)
        if mark is not None:
            found.append(InstalledSpec(name, content["display_name"], mark["policy"], content["argv"][0], Path(folder)))
    return found


def remove(name: str) -> Path:
    """Remove a kernelspec of Cellblock. Returns the folder that it had.

    Raises:
        InvalidInputError: there is none of this name, or it is another program's.
        OSError: the folder cannot be removed.
    """
    if name not in {spec.name for spec in installed()}:
        raise InvalidInputError(
            f"there is no kernelspec {name!r} of Cellblock.", remedy="`cellblock kernelspec list` lists them."
        )
    try:
        return Path(KernelSpecManager().remove_kernel_spec(name))
    except NoSuchKernel as error:
        raise InvalidInputError(f"there is no kernelspec {name!r}.") from error


def _folder_of_foreign(manager: KernelSpecManager, name: str) -> Path | None:
    """Return the folder of another program's kernelspec of this name, or None."""
    folder = manager.find_kernel_specs().get(name.lower())
    if folder is None or _MARK in _content(Path(folder)).get("metadata", {}):
        return None
    return Path(folder)


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "kernel.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
