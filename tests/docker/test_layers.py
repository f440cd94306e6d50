"""Images with the packages of a lock file: built, named by a policy, used by kernels, listed and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import ImageMissingError
from orchestrator.container import engine
from orchestrator.container.engineimages import EngineImages
from orchestrator.errors import ImageBuildError, ImageInUseError
from orchestrator.image.build import build_image
from orchestrator.image.inventory import list_images, remove_images, remove_unused, unused
from orchestrator.image.locking import locked
from orchestrator.image.recipe import Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings
from tests.conftest import make_manager, one_session
from tests.docker.packageindex import PackageIndex


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """An index on loopback, which pip asks, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with PackageIndex(tmp_path / "index").serving() as serving:
        monkeypatch.setenv("PIP_INDEX_URL", serving.url)
        yield serving


@pytest.fixture
def images() -> Iterator[EngineImages]:
    client = engine.connect(120)
    found = EngineImages(client)
    before = {each.name for each in found.listed()}
    yield found
    for name in {each.name for each in found.listed()} - before:
        client.api.remove_image(name, force=True)
    client.close()


def plain() -> Recipe:
    return Recipe.of(Settings.load(), Image())


def lock_of(tmp_path: Path, *names: str) -> Path:
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join(names))
    return locked(listed, plain())


def policy_of(lock: Path) -> str:
    """Write a policy beside a lock file, and return its path."""
    policy = lock.with_name("policy.toml")
    policy.write_text(f'[image]\nrequirements = "{lock.name}"\n')
    return str(policy)


async def test_a_policys_kernels_have_the_packages_of_its_lock(
    runtime: str, tmp_path: Path, index: PackageIndex, images: EngineImages
) -> None:
    """Cells and commands find modules and programs. A session wakes with them, and under another policy without."""
    index.add_wheel("lilac", "1.0", program="bloom")
    index.add_wheel("violet", "2.0", requires=("lilac>=1", "numpy"))
    lock = lock_of(tmp_path, "violet")
    settings: dict[str, Any] = {"policy": policy_of(lock)}
    with pytest.raises(ImageMissingError, match="--policy"):
        async with make_manager(runtime, **settings) as manager:
            pass
    image = build_image(images, Recipe.of(Settings.load(), Image(requirements=str(lock))), lambda step: None)
    assert image.built
    code = (
        "import violet, lilac, sys; kept = violet.version\nviolet.version, lilac.version, violet.__file__.split('/')[1]"
    )
    async with make_manager(runtime, **settings) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            assert (await manager.execute(session, code)).result == "('2.0', '1.0', 'opt')"
            script = "bloom; /opt/cellblock/layer/lilac/bloom.sh; python3 -c 'import violet; print(violet.version)'"
            command = await manager.run_command(session, script)
            assert command.stdout == b"bloom\nbloom\n2.0\n", command.stderr_text
            result = await manager.execute(session, "%pip install violet")
            assert "already satisfied" in result.stdout
        assert await manager.hibernate("a")
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            assert (await manager.execute(session, "violet.version, kept")).result == "('2.0', '2.0')"
        assert await manager.hibernate("a")
    async with make_manager(runtime) as manager, manager.acquire_kernel("a", timeout=60) as (_, session):
        assert (await manager.execute(session, "kept")).result == "'2.0'"
        assert "ModuleNotFoundError" in str((await manager.execute(session, "import lilac")).error)


async def test_a_lock_may_have_another_version_than_the_image(
    runtime: str, tmp_path: Path, index: PackageIndex, images: EngineImages
) -> None:
    """The lock's version wins in cells; the packages that the kernel runs on cannot be replaced."""
    lock = tmp_path / "lock.txt"
    lock.write_text(f"tabulate==0.0.1 --hash=sha256:{index.add_wheel('tabulate', '0.0.1')}\n")
    recipe = Recipe.of(Settings.load(), Image(requirements=str(lock)))
    build_image(images, recipe, lambda step: None)
    async with one_session(runtime, policy=policy_of(lock)) as (manager, session):
        assert (await manager.execute(session, "import tabulate; tabulate.version")).result == "'0.0.1'"
    lock.write_text(f"tornado==0.0.1 --hash=sha256:{index.add_wheel('tornado', '0.0.1')}\n")
    with pytest.raises(ImageBuildError, match=r"tornado==0.0.1 cannot replace"):
        build_image(images, Recipe.of(Settings.load(), Image(requirements=str(lock))), lambda step: None)


def test_an_image_is_built_once_listed_and_removed(tmp_path: Path, index: PackageIndex, images: EngineImages) -> None:
    index.add_wheel("lilac", "1.0")
    recipe = Recipe.of(Settings.load(), Image(requirements=str(lock_of(tmp_path, "lilac", "numpy"))))
    assert build_image(images, recipe, lambda step: None).built
    assert not build_image(images, recipe, lambda step: pytest.fail(f"was built again: {step}")).built
    found = {each.name: each for each in list_images(images, Settings.load())}
    layer, sandbox = found[recipe.name], found[plain().name]
    assert (layer.kind, layer.python, layer.is_current, layer.containers) == ("layer", recipe.suite.python, True, 0)
    assert (sandbox.kind, layer.packages) == ("sandbox", sandbox.packages + 1)
    assert layer.size > sandbox.size
    assert layer not in unused(found.values())
    assert layer in unused(found.values(), everything=True)
    client = engine.connect(120)
    container = client.containers.create(recipe.name, ["true"], network_mode="none")
    try:
        with pytest.raises(ImageInUseError, match="not removed"):
            remove_images(images, found.values(), [recipe.name])
        assert remove_unused(images, [layer]) == [layer]
    finally:
        container.remove(force=True)
        client.close()
    with pytest.raises(ImageMissingError):
        remove_images(images, found.values(), [recipe.name, "python:3.11"])
    assert images.find(recipe.name) is not None
    assert remove_images(images, found.values(), [recipe.name.rpartition(":")[2]]) == [layer]
    assert images.find(recipe.name) is None


def test_an_image_of_earlier_sources_is_pruned(images: EngineImages) -> None:
    """What this version of Cellblock uses stays, whichever Python it has."""
    client = engine.connect(120)
    client.api.tag(plain().name, "cellblock-sandbox", "000000000000")
    try:
        found = list_images(images, Settings.load())
        old = [each for each in unused(found) if each.name == "cellblock-sandbox:000000000000"]
        assert len(old) == 1
        assert plain().name not in {each.name for each in unused(found)}
        assert remove_unused(images, old) == []
        assert images.find(plain().name) is not None
    finally:
        client.close()


def test_the_command_locks_builds_and_removes(tmp_path: Path, index: PackageIndex, images: EngineImages) -> None:
    """As its user types it: names are locked beside the file, the lock is used again, and a wrong file is refused."""
    index.add_wheel("lilac", "1.0")
    names = tmp_path / "names.txt"
    names.write_text("lilac  # a flower\n")
    first = cellblock("image", "build", "--requirements", str(names))
    assert first.returncode == 0, first.stderr
    lock = tmp_path / "names.lock.txt"
    assert "lilac==1.0" in lock.read_text()
    assert 'requirements = "names.lock.txt"' in first.stderr
    index.add_wheel("lilac", "2.0")
    again = cellblock("image", "build", "--policy", policy_of(lock), "--requirements", str(names))
    assert "is current" in again.stdout
    newer = cellblock("image", "build", "--requirements", str(names), "--upgrade")
    assert "built" in newer.stdout
    assert "lilac==2.0" in lock.read_text()
    shown = json.loads(cellblock("image", "list", "--json").stdout)
    tags = [each["name"] for each in shown if each["kind"] == "layer"]
    assert len(tags) >= 2
    assert cellblock("image", "rm", *[each for each in tags if each in newer.stdout]).returncode == 0
    unlocked = tmp_path / "policy.toml"
    unlocked.write_text('[image]\nrequirements = "names.txt"\n')
    refused = cellblock("image", "build", "--policy", str(unlocked))
    assert (refused.returncode, "is not locked" in refused.stderr.replace("\n", " ")) == (1, True)
    names.write_text("https://example.org/lilac.whl\n")
    assert cellblock("image", "build", "--requirements", str(names)).returncode == 1


def cellblock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli.app", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "COLUMNS": "200"}
    )
