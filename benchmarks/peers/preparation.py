"""Prepares what the peers need: an environment for each, an image and a network. Every function blocks.

Environments, wheels and the base image are kept for the next run. The network and containers end with the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound

from orchestrator.container.engine import connect
from orchestrator.container.engineimages import EngineImages
from orchestrator.errors import ImageMissingError
from orchestrator.host import hostcommand
from orchestrator.image import wheels
from orchestrator.image.build import find_current_image
from orchestrator.image.recipe import Recipe
from orchestrator.image.suite import Target
from orchestrator.policy.packagelock import Lock
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / "out" / "peers"
IMAGE = Path(__file__).with_name("image")
LABEL = "org.cellblock.peers"  # its value is the run; the containers inherit it from their image
_NAME = "cellblock-peers"
_INSTALL_SECONDS = 900.0
_ENGINE_SECONDS = 600.0

Report = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """What the peers use to start their containers.

    Attributes:
        image: an image with the packages of all peers.
        network: a bridge network of Docker.
        gateway: this host's address on it.
        engine: the engine's version.
    """

    image: str
    network: str
    gateway: str
    engine: str


def environment(lock: Path, report: Report) -> Path:
    """Return the Python of an environment with the packages of a lock file. Create the environment if necessary.

    Raises:
        RuntimeError: pip could not install it.
    """
    folder = CACHE / "environments" / f"{lock.stem}-{_digest(lock)}"
    python, whole = folder / "bin" / "python", folder / ".complete"
    if not whole.exists():
        report(f"{lock.stem}: creating its environment")
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run([*pip, "--require-hashes", "-r", str(lock)])
        whole.touch()
    return python


@contextlib.contextmanager
def place(report: Report) -> Iterator[Place]:
    """Create an image and a network for the peers. Remove them and all the peers' containers when the context ends.

    Raises:
        EngineError: no engine answers, or the engine has no current sandbox image.
    """
    run = f"{os.getpid()}"
    name = f"{_NAME}-{run}"
    with contextlib.closing(connect(_ENGINE_SECONDS)) as client, contextlib.ExitStack() as stack:
        base = _image(client, report)
        image = f"{_NAME}:run-{run}"
        stack.callback(_ignoring, client.images.remove, image, force=True)
        client.images.build(fileobj=io.BytesIO(f"FROM {base}".encode()), labels={LABEL: run}, tag=image, rm=True)
        network = client.networks.create(name, driver="bridge", labels={LABEL: run})
        stack.callback(_ignoring, network.remove)
        stack.callback(_remove_containers, client, run)
        network.reload()
        gateway = network.attrs["IPAM"]["Config"][0]["Gateway"]
        yield Place(image, name, gateway, client.version()["Version"])


def _image(client: docker.DockerClient, report: Report) -> str:
    """Return the peers' image. Build it on the sandbox image if necessary."""
    recipe = Recipe.of(Settings.load(), Image())
    sandbox = find_current_image(EngineImages(client), recipe)
    if sandbox is None:
        raise ImageMissingError(
            "the engine has no sandbox image of this checkout.",
            image=recipe.name,
            remedy="`make image` builds it.",
        )
    lock = IMAGE / "requirements.txt"
    name = f"{_NAME}:{_digest(lock, IMAGE / 'Dockerfile', salt=sandbox.image_id)}"
    try:
        client.images.get(name)
    except ImageNotFound:
        report("building the peers' image")
        target = Target(recipe.suite, client.version()["Arch"])
        pinned = Lock.read(lock, target.environment())
        fetched = wheels.fetch(pinned, target, CACHE, lambda done, total, _name: None)
        with tempfile.TemporaryDirectory() as context:
            shutil.copytree(fetched[0].parent, Path(context, "wheels"))
            shutil.copy(IMAGE / "Dockerfile", context)
            arguments = {"SANDBOX": sandbox.name}
            client.images.build(path=context, buildargs=arguments, tag=name, network_mode="none", rm=True, forcerm=True)
    return name


def _remove_containers(client: docker.DockerClient, run: str) -> None:
    for container in client.containers.list(all=True, filters={"label": f"{LABEL}={run}"}):
        _ignoring(container.remove, force=True)


def _ignoring(call: Callable[..., Any], *arguments: object, **options: object) -> None:
    """Call a function and ignore errors of Docker, so that the clean-up goes on."""
    with contextlib.suppress(DockerException):
        call(*arguments, **options)


def _run(command: list[str]) -> None:
    finished = hostcommand.run(command, seconds=_INSTALL_SECONDS)
    if finished.code != 0:
        raise RuntimeError(f"{command[2:4]} ended with {finished.code}:\n{finished.tail}")


def _digest(*files: Path, salt: str = "") -> str:
    content = salt.encode() + b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:12]
