"""The images of a Docker engine: find, pull, import and build them. Every call blocks."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import CONFLICT
from pathlib import Path
from typing import IO, Any

import docker
from docker.errors import APIError, ImageNotFound

from orchestrator.container.engine import FAILURES, translate
from orchestrator.errors import ImageInUseError

_NO_TAG = "<none>:<none>"
_BUILD_SECONDS = 1800  # the longest silence between two lines of a build


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image as the engine describes it.

    Attributes:
        name: its tag; of an image without one, its identifier.
        image_id: the engine's identifier, with its ``sha256:`` prefix.
        size: bytes, uncompressed.
        created: seconds since the epoch, on the engine's clock.
    """

    name: str
    image_id: str
    labels: Mapping[str, str]
    size: int
    created: float


class EngineImages:
    """The images of one engine.

    Every method raises EngineError when the engine refuses, fails or does not answer in time.
    """

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    def architecture(self) -> str:
        """Return the engine's architecture in Docker's words, such as "amd64"."""
        try:
            return str(self._client.version()["Arch"])
        except FAILURES as error:
            raise translate(error) from error

    def find(self, name: str) -> EngineImage | None:
        """Return the image with this name, or None if the engine has none."""
        try:
            details: dict[str, Any] = self._client.api.inspect_image(name)
        except ImageNotFound:
            return None
        except FAILURES as error:
            raise translate(error) from error
        labels = (details.get("Config") or {}).get("Labels") or {}
        created = datetime.fromisoformat(str(details["Created"])[:19] + "+00:00").timestamp()  # without nanoseconds
        return EngineImage(name, str(details["Id"]), labels, int(details["Size"]), created)

    def listed(self) -> list[EngineImage]:
        """Return all images, one for each tag."""
        try:
            found: list[dict[str, Any]] = self._client.api.images()
        except FAILURES as error:
            raise translate(error) from error
        return [
            EngineImage(name, str(each["Id"]), each.get("Labels") or {}, int(each["Size"]), float(each["Created"]))
            for each in found
            for name in [tag for tag in each.get("RepoTags") or () if tag != _NO_TAG] or [str(each["Id"])]
        ]

    def used(self) -> dict[str, int]:
        """Return how many containers there are of each image, by its identifier."""
        try:
            return dict(Counter(str(each["ImageID"]) for each in self._client.api.containers(all=True)))
        except FAILURES as error:
            raise translate(error) from error

    def remove(self, name: str) -> None:
        """Remove a tag and, with the last one, its image.

        Raises:
            ImageInUseError: a container is made of it, or another image is built on it.
        """
        try:
            self._client.api.remove_image(name)
        except APIError as error:
            if error.status_code == CONFLICT:
                raise ImageInUseError(
                    f"{name} was not removed: {error.explanation}.",
                    image=name,
                    remedy="End the kernels that run from it (`cellblock ps`), and first remove images built on it.",
                ) from error
            raise translate(error) from error
        except FAILURES as error:
            raise translate(error) from error

    def remove_untagged(self, label: str) -> None:
        """Remove the images without a tag that have a label, such as the stages of a build, if nothing needs them.

        Args:
            label: ``NAME=VALUE``.
        """
        found: list[str] = []
        with contextlib.suppress(*FAILURES):
            found = self._client.api.images(quiet=True, filters={"label": [label], "dangling": True})
        for image in found:
            with contextlib.suppress(*FAILURES):
                self._client.api.remove_image(image)

    def pull(self, name: str) -> None:
        """Pull an image from its registry. A name without a tag means ``latest``."""
        try:
            self._client.images.pull(name if ":" in name.rpartition("/")[2] else f"{name}:latest")
        except FAILURES as error:
            raise translate(error) from error

    def import_archive(self, archive: Path, name: str, changes: list[str]) -> None:
        """Create an image from a tar file of its root file system.

        Args:
            name: ``REPOSITORY:TAG``.
            changes: Dockerfile instructions to apply, such as ``ENV A=b``.
        """
        repository, _, tag = name.partition(":")
        try:
            self._client.api.import_image_from_file(str(archive), repository=repository, tag=tag, changes=changes)
        except FAILURES as error:
            raise translate(error) from error

    @contextlib.contextmanager
    def build(
        self, context: IO[bytes], *, name: str, arguments: Mapping[str, str], labels: Mapping[str, str]
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Build an image without network access, and yield the engine's progress events.

        Leaving the block early disconnects; the engine then stops the build and removes its container.

        Args:
            context: the build context, a tar file.
            name: the tag that the finished image gets.
            arguments: build arguments.
        """
        try:
            events = self._client.api.build(
                fileobj=context,
                custom_context=True,
                buildargs=dict(arguments),
                labels=dict(labels),
                tag=name,
                network_mode="none",
                rm=True,
                forcerm=True,
                decode=True,
                timeout=_BUILD_SECONDS,
            )
            with contextlib.closing(events):
                yield events
        except FAILURES as error:
            raise translate(error) from error
