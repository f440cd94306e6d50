"""Managers: one AgentKernelManager for each policy and image in use, all over one data folder."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from weakref import WeakValueDictionary

from orchestrator.errors import CellblockError, InvalidInputError, ServerUnavailableError
from orchestrator.image.recipe import REPOSITORY
from orchestrator.manager import AgentKernelManager
from orchestrator.sessions.membership import Membership
from orchestrator.settings import Settings

_IMAGE = re.compile(rf"{REPOSITORY}:[\w.-]{{1,128}}", re.ASCII)  # no other image of the host's engine
_MOST = 16  # managers: each has warm kernels of its own


class Managers:
    """The managers of one server. Each starts when it is first needed.

    Args:
        settings: of all of them, but for the policy and the image.
        max_kernels: of each.

    Attributes:
        membership: the node of a cluster whose managers they are; None: of no cluster. Set before the first starts.
        draining: whether no more of them start.
    """

    def __init__(self, settings: Settings, max_kernels: int) -> None:
        self.membership: Membership | None = None
        self._settings = settings
        self._max_kernels = max_kernels
        self._managers: dict[tuple[str, str], AgentKernelManager] = {}
        self._starting: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._closed = False
        self.draining = False

    def __iter__(self) -> Iterator[AgentKernelManager]:
        return iter(list(self._managers.values()))

    async def of(self, policy: str, image: str = "") -> AgentKernelManager:
        """Return the started manager of a policy and an image.

        Args:
            image: the name of a sandbox image; "": the policy's.

        Raises:
            PolicyError: there is no such policy.
            InvalidInputError: the image is not one of Cellblock's, or there are too many combinations already.
            EngineError, StoreError: it cannot start.
            ServerUnavailableError: the server shuts down.
        """
        if image and not _IMAGE.fullmatch(image):
            raise InvalidInputError(
                f"{image[:100]!r} is no sandbox image.", remedy="`cellblock image list` on the server shows them."
            )
        key = policy, image
        if (running := self._managers.get(key)) is not None and not self._closed:
            return running
        async with self._starting.setdefault(key, asyncio.Lock()):
            if self._closed:
                raise ServerUnavailableError("the server shuts down.", remedy="Try again in a moment.", undone=True)
            found = self._managers.get(key)
            if found is None:
                if self.draining:
                    raise ServerUnavailableError("the server drains, and takes no new work.", undone=True)
                if len(self._managers) >= _MOST:
                    raise InvalidInputError(f"the server has {_MOST} combinations of policy and image in use already.")
                found = await self._start(policy, image)
                self._managers[key] = found
            return found

    def owns(self, owner: str) -> bool:
        """Return whether one of the managers is the owner of this name in the store."""
        return any(manager.instance_id and manager.instance_id in owner for manager in self)

    async def drain(self, seconds: float) -> dict[str, str]:
        """Start no more managers, and drain those that run. See ``AgentKernelManager.drain``."""
        self.draining = True
        left = await asyncio.gather(*(manager.drain(seconds) for manager in self))
        return {session_id: why for some in left for session_id, why in some.items()}

    def undrain(self) -> None:
        """Take sessions again. See ``AgentKernelManager.undrain``."""
        self.draining = False
        for manager in self:
            manager.undrain()

    async def close(self) -> None:
        """Shut all managers down, and keep their sessions.

        Raises:
            EngineError: the engine does not answer; the next start removes what is left.
        """
        self._closed = True
        managers = list(self._managers.values())
        ended = await asyncio.gather(
            *(manager.shutdown(keep_sessions=True) for manager in managers), return_exceptions=True
        )
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _start(self, policy: str, image: str) -> AgentKernelManager:
        settings = self._settings.model_copy(update={"policy": policy, **({"image": image} if image else {})})
        manager = await asyncio.to_thread(
            lambda: AgentKernelManager(
                self._max_kernels, settings=settings, keep_sessions=True, membership=self.membership
            )
        )
        try:
            await manager.start()
        except CellblockError:
            await manager.shutdown()
            raise
        return manager
