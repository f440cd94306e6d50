"""Packages of a session: handed in while it runs, and again after a wake, a restore or a fork."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import FileTransferError, PackageError
from orchestrator.image.packages import PackageSource, Resolved
from orchestrator.image.resolver import Wheel
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.pace import Pace
from orchestrator.kernel.transfer import put_file
from orchestrator.kernel.translate import text
from orchestrator.output.printable import printable
from orchestrator.sessions.restored import Lost
from orchestrator.tool import Tool

if TYPE_CHECKING:
    from orchestrator.sessions.session import KernelSession

INSTALL = "cellblock:install"  # the name under which a cell's ``pip install`` calls the host
_INSIDE = "/tmp/.packages/.wheels"  # noqa: S108 - in the sandbox
_UNPACK = 120.0  # seconds for the sandbox to unpack one wheel
_SCHEMA = {
    "type": "object",
    "properties": {"requirements": {"type": "array", "items": {"type": "string"}, "maxItems": 50}},
    "required": ["requirements"],
    "additionalProperties": False,
}


async def install(
    session: KernelSession, kernel: Kernel, source: PackageSource, requirements: Sequence[str]
) -> Resolved:
    """Hand packages into a session's kernel.

    Raises:
        PackageError: see ``PackageSource.resolve``; or the sandbox could not take a wheel.
        KernelDiedError: the kernel died.
    """
    begun = time.monotonic()
    outcome = "refused"
    wheels: tuple[Wheel, ...] = ()
    try:
        async with session.installing:  # one request of a session at a time
            async with source.turns:
                resolved = await asyncio.to_thread(source.resolve, list(requirements))
            wheels = tuple(wheel for wheel in resolved.wheels if wheel.sha256 not in session.packages)
            for wheel in wheels:
                await hand_in(kernel, source, wheel)
                session.note_package(wheel)
        outcome = "ok"
        return resolved
    finally:
        session.note(
            kernel,
            "packages.installed",
            outcome=outcome,
            requirements=[printable(str(each), 200) for each in requirements][:50],
            wheels=[{"package": wheel.title, "sha256": wheel.sha256} for wheel in wheels],
            duration_s=round(time.monotonic() - begun, 6),
        )


async def hand_in(kernel: Kernel, source: PackageSource, wheel: Wheel) -> None:
    """Copy a wheel into a kernel, which unpacks it.

    Raises:
        PackageError: the cache has lost it, or the sandbox could not take it.
        KernelDiedError: the kernel died.
    """
    path = await asyncio.to_thread(source.path, wheel)
    if path is None:
        raise PackageError(f"the wheel of {wheel.title} is no longer in the cache.", reason="unreachable")
    inside = f"{_INSIDE}/{wheel.file}"
    try:
        await put_file(kernel, path, inside, Pace())
        reply = await kernel.request("control", "packages_add_request", {"path": inside}, timeout=_UNPACK)
    except (FileTransferError, TimeoutError) as error:
        raise PackageError(f"the sandbox could not take {wheel.title}: {error}", reason="sandbox") from error
    if reply.content.get("status") != "ok":
        said = printable(text(reply.content.get("reason")), 200) or "no reason given"
        raise PackageError(
            f"the sandbox could not unpack {wheel.title}: {said}.",
            reason="sandbox",
            remedy="Packages are unpacked in /tmp: raise [tmpfs] tmp_mb in the policy if it is full.",
        )


async def hand_in_again(kernel: Kernel, source: PackageSource | None, forms: object) -> tuple[list[Wheel], list[Lost]]:
    """Hand the packages of a checkpoint into a fresh kernel. Returns them, and those that are lost.

    Raises:
        KernelDiedError: the kernel died.
    """
    wheels: list[Wheel] = []
    lost: list[Lost] = []
    for form in forms if isinstance(forms, list) else []:
        wheel = Wheel.from_dict(form)
        try:
            if source is None:
                raise PackageError("this process has no package source.", reason="sandbox")
            await hand_in(kernel, source, wheel)
            wheels.append(wheel)
        except PackageError as error:
            lost.append(Lost(wheel.title, "package", error.message))
    return wheels, lost


def install_tool(session: KernelSession, kernel: Kernel, source: PackageSource) -> Tool:
    """Return the tool that a cell's ``pip install`` calls."""

    async def function(requirements: list[str]) -> dict[str, Any]:
        resolved = await install(session, kernel, source, requirements)
        return {"installed": [wheel.title for wheel in resolved.wheels], "satisfied": list(resolved.satisfied)}

    return Tool.internal(INSTALL, _SCHEMA, function)
