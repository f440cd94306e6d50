"""Images with the packages of a lock file: built, named by a policy, used by kernels, listed and removed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import ImageMissingError
from orchestrator.container import engine
from orchestrator.container.engineimages import EngineImages
from orchestrator.errors import ImageBuildError, ImageInUseError
from orchestrator.image.build import build_image, find_current_image
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
            await manager.execute(session, "import warnings; warnings.simplefilter('ignore', lilac.Odd)")
        assert await manager.hibernate("a")
    async with make_manager(runtime) as manager, manager.acquire_kernel("a", timeout=60) as (_, session):
        assert (await manager.execute(session, "kept")).result == "'2.0'"
        warned = await manager.execute(session, "import warnings; warnings.warn('still')")
        assert "UserWarning: still" in warned.stderr
        assert "ModuleNotFoundError" in str((await manager.execute(session, "import lilac")).error)
        async with manager.acquire_kernel("b", timeout=60) as (_, other):
            await manager.execute(other, "mine = 1")
        assert await manager.hibernate("b")
    async with make_manager(runtime, **settings) as manager, manager.acquire_kernel("b", timeout=60) as (_, session):
        assert (await manager.execute(session, "import lilac; mine, lilac.version")).result == "(1, '1.0')"


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


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("tornado", {}, r"tornado==0\.0\.1 would replace version"),
        ("lilac", {"hidden": "tornado/__init__.py"}, "would replace the module tornado"),
        ("lilac", {"hidden": "cellblock_kernel/app.py"}, "would replace the module cellblock_kernel"),
        ("lilac", {"hidden": "lilac-0.0.1.data/purelib/zmq/__init__.py"}, "would replace the module zmq"),
        ("lilac", {"hidden": "sitecustomize.py"}, "would replace the module sitecustomize"),
        ("lilac", {"hidden": "usercustomize.py"}, "would replace the module usercustomize"),
        ("lilac", {"requires": ("violet>=1",)}, "lilac 0.0.1 needs violet, which is not there"),
        ("lilac", {"requires": ("numpy<1",)}, r"lilac 0\.0\.1 needs numpy<1, not 2"),
        ("numpy", {}, r"needs numpy.*, not 0\.0\.1"),
    ],
)
def test_a_lock_that_does_not_fit_the_image_is_refused(
    tmp_path: Path, index: PackageIndex, images: EngineImages, name: str, options: dict[str, Any], reason: str
) -> None:
    """The message names what does not fit. Nothing of the build is left."""
    lock = tmp_path / "lock.txt"
    lock.write_text(f"{name}==0.0.1 --hash=sha256:{index.add_wheel(name, '0.0.1', **options)}\n")
    before = {each.image_id for each in images.listed()}
    with pytest.raises(ImageBuildError, match=reason) as caught:
        build_image(images, Recipe.of(Settings.load(), Image(requirements=str(lock))), lambda step: None)
    assert "\x1b" not in str(caught.value)
    assert {each.image_id for each in images.listed()} == before


def test_the_files_of_a_package_are_all_there(tmp_path: Path, index: PackageIndex, images: EngineImages) -> None:
    """Data that looks like sources stays, modes raise no privilege, and a broken module does not stop the build."""
    index.add_wheel("lilac", "1.0", hidden="lilac/Utility/header.h")
    lock = lock_of(tmp_path, "lilac")
    image = build_image(images, Recipe.of(Settings.load(), Image(requirements=str(lock))), lambda step: None)
    client = engine.connect(120)
    header = "/opt/cellblock/layer/lilac/Utility/header.h"
    script = f"cat {header}; find / -xdev -perm /6000 -type f; ls -d /build /opt/cellblock/unpacked; true"
    container = client.containers.create(image.image_id, ["-c", script], entrypoint=["/bin/sh"], network_mode="none")
    try:
        container.start()
        container.wait(timeout=60)
        printed = container.logs(stderr=False).decode()
    finally:
        container.remove(force=True)
        client.close()
    assert printed == "evil"


def test_a_layer_is_built_again_on_another_image(tmp_path: Path, index: PackageIndex, images: EngineImages) -> None:
    """It is current only on the image that has the name now, which stays while a layer is built on it."""
    index.add_wheel("lilac", "1.0")
    lock = lock_of(tmp_path, "lilac")
    client = engine.connect(120)
    client.api.tag(plain().name, "cellblock-test", "named")
    settings = Settings(image="cellblock-test:named")
    recipe = Recipe.of(settings, Image(requirements=str(lock)))
    try:
        assert build_image(images, recipe, lambda step: None).built
        found = list_images(images, settings)
        assert next(each for each in found if each.name == recipe.name).is_current
        assert recipe.name not in {each.name for each in unused(found)}
        with pytest.raises(ImageInUseError, match="built on it"):
            remove_images(images, found, ["cellblock-test:named"])
        base = next(each for each in images.listed() if each.name.startswith("cellblock-base:"))
        client.api.tag(base.name, "cellblock-test", "named")
        assert find_current_image(images, recipe) is None
    finally:
        client.api.remove_image("cellblock-test:named", noprune=True)
        client.close()


def test_a_lock_file_of_somebody_else_stays(tmp_path: Path, index: PackageIndex) -> None:
    """A file that was made by hand, of another list or for another Python is not overwritten."""
    index.add_wheel("lilac", "1.0")
    (tmp_path / "names.lock.txt").write_text("by hand\n")
    with pytest.raises(ImageBuildError, match="stays as it is"):
        lock_of(tmp_path, "lilac")
    assert (tmp_path / "names.lock.txt").read_text() == "by hand\n"
    (tmp_path / "names.lock.txt").unlink()
    lock = lock_of(tmp_path, "lilac")
    other = tmp_path / "names.in"
    other.write_text("lilac\n")
    with pytest.raises(ImageBuildError, match="stays as it is"):
        locked(other, plain())
    newer = Recipe.of(Settings.load(), Image(python="3.13" if plain().suite.python == "3.11" else "3.11"))
    assert locked(tmp_path / "names.txt", newer) != lock
    with pytest.raises(ImageBuildError, match="applies"):
        lock_of(tmp_path, "lilac; python_version < '3'")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("lilac", "nosuchname"), "no wheel for nosuchname"),
        (("sourced",), "no wheel for sourced"),
        (("lilac", "numpy<1"), "numpy"),
    ],
)
def test_names_that_cannot_be_locked_say_why(
    tmp_path: Path, index: PackageIndex, names: tuple[str, ...], reason: str
) -> None:
    index.add_wheel("lilac", "1.0")
    index.add_source("sourced", "1.0")
    index.add_wheel("numpy", "0.9")
    with pytest.raises(ImageBuildError, match=reason):
        lock_of(tmp_path, *names)
    assert not (tmp_path / "names.lock.txt").exists()


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
        assert remove_unused(images, found.values(), [layer]) == [layer]
    finally:
        container.remove(force=True)
        client.close()
    with pytest.raises(ImageMissingError):
        remove_images(images, found.values(), [recipe.name, "python:3.11"])
    assert images.find(recipe.name) is not None
    assert remove_images(images, found.values(), [recipe.name.rpartition(":")[2]]) == [layer]
    assert images.find(recipe.name) is None


def test_an_image_of_earlier_sources_is_pruned(tmp_path: Path, images: EngineImages) -> None:
    """What this version of Cellblock uses stays, whichever Python it has."""
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    images.import_archive(tmp_path / "empty.tar", "cellblock-sandbox:000000000000", [])
    found = list_images(images, Settings.load())
    old = [each for each in unused(found) if each.name == "cellblock-sandbox:000000000000"]
    assert len(old) == 1
    assert plain().name not in {each.name for each in unused(found)}
    assert remove_unused(images, found, old) == []
    assert images.find(old[0].name) is None
    assert images.find(plain().name) is not None


def test_an_image_that_a_user_built_on_ours_stays(images: EngineImages) -> None:
    """It inherits our labels, and is neither listed nor removed. A name of the operator may have a hyphen."""
    client = engine.connect(120)
    try:
        client.images.build(fileobj=io.BytesIO(f"FROM {plain().name}\nLABEL own=1".encode()), tag="cellblock-test:own")
        client.api.tag("cellblock-test:own", "cellblock-test", "7-rc1")
        assert "cellblock-test:own" not in {each.name for each in list_images(images, Settings.load())}
        found = list_images(images, Settings(image="cellblock-test:7-rc1"))
        assert next(each for each in found if each.name == "cellblock-test:7-rc1").is_current
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
    early = tmp_path / "early.toml"
    early.write_text('[image]\nrequirements = "later.lock.txt"\n')
    (tmp_path / "later.txt").write_text("lilac\n")
    assert "writes lock files" in cellblock("image", "build", "--policy", str(early)).stderr.replace("\n", " ")
    assert (
        cellblock("image", "build", "--policy", str(early), "--requirements", str(tmp_path / "later.txt")).returncode
        == 0
    )
    assert cellblock("image", "show", "--policy", str(early)).returncode == 0
    assert cellblock("image", "build", "--requirements", "").returncode == 2
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
