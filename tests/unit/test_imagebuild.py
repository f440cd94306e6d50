"""The inputs of the sandbox image, and how a change of them is noticed."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest

from orchestrator.errors import ImageBuildError
from orchestrator.image import baseimage, wheels
from orchestrator.image import suite as suites
from orchestrator.image.recipe import Recipe, input_digest
from orchestrator.image.suite import BOOKWORM, TRIXIE, Target
from orchestrator.policy.packagelock import Lock, Pin
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings, data_folder


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "kernel.py").write_text("print(1)\n")
    return tmp_path


def test_digest_stays_while_nothing_changes(sources: Path) -> None:
    """The digest depends on names and contents, not on times or the order of directory entries."""
    before = input_digest(sources, BOOKWORM)
    (sources / "kernel.py").touch()
    assert input_digest(sources, BOOKWORM) == before


@pytest.mark.parametrize("change", ["content", "new file", "name", "base"])
def test_digest_changes_with_every_input(sources: Path, change: str) -> None:
    """A changed, added or renamed input and another base image each change the digest."""
    before = input_digest(sources, BOOKWORM)
    base = ""
    match change:
        case "content":
            (sources / "kernel.py").write_text("print(2)\n")
        case "new file":
            (sources / "packages.txt").write_text("")
        case "name":
            (sources / "kernel.py").rename(sources / "launcher.py")
        case "base":
            base = "python:3.11"
    assert input_digest(sources, BOOKWORM, base) != before


def test_image_is_made_of_the_hosts_own_release(sources: Path) -> None:
    """Debian 12 and 13 each give their own Python; other hosts and an operator's image give that of Debian 12."""
    assert suites.choose(codename="trixie") == TRIXIE
    assert TRIXIE.slim_image == "python:3.13-slim-trixie"
    assert {suites.choose(codename=name) for name in ("bookworm", "noble", "")} == {BOOKWORM}
    assert suites.choose("team/base:1", codename="trixie") == BOOKWORM
    assert input_digest(sources, BOOKWORM) != input_digest(sources, TRIXIE)
    assert Target(TRIXIE, "amd64").platforms()[0] == "manylinux_2_41_x86_64"


def test_digest_cannot_be_shifted_between_files(tmp_path: Path) -> None:
    """Moving text from the end of one file to the start of the next changes the digest."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, first, second in ((one, "ab", "c"), (two, "a", "bc")):
        folder.mkdir()
        (folder / "a").write_text(first)
        (folder / "b").write_text(second)
    assert input_digest(one, BOOKWORM) != input_digest(two, BOOKWORM)


@pytest.mark.parametrize("leftover", ["__pycache__/kernel.cpython-311.pyc", ".kernel.py.swp", "kernel.py~"])
def test_files_of_tools_are_no_inputs(sources: Path, leftover: str) -> None:
    """Files that editors and interpreters create do not change the digest."""
    before = input_digest(sources, BOOKWORM)
    (sources / leftover).parent.mkdir(exist_ok=True)
    (sources / leftover).write_text("x")
    assert input_digest(sources, BOOKWORM) == before


def test_image_name_is_the_operators_or_the_digest() -> None:
    """CELLBLOCK_IMAGE sets the name; otherwise the tag is the digest of the inputs."""
    assert Recipe.of(Settings(image="team/sandbox:7"), Image()).name == "team/sandbox:7"
    digest = input_digest(data_folder("sandbox_image"), suites.choose())
    assert Recipe.of(Settings(image="", base_image=""), Image()).name == f"cellblock-sandbox:{digest[:12]}"


def test_lock_file_pins_every_package_with_hashes_and_names_no_index() -> None:
    """The image's requirements have exact versions and hashes, and no addresses or local paths."""
    lock = (data_folder("sandbox_image") / "requirements.txt").read_text()
    lines = [line for line in lock.splitlines() if not line.startswith("#")]
    pins = [line for line in lines if not line.startswith(" ")]
    assert pins
    assert all("==" in pin and pin.endswith("\\") for pin in pins)
    assert all(line.strip().startswith("--hash=sha256:") for line in lines if line.startswith(" "))
    assert "://" not in lock
    assert "debugpy==" not in lock


def test_wheel_cache_is_complete_only_with_every_pinned_wheel(tmp_path: Path) -> None:
    """A missing wheel and a wheel with another hash are both noticed."""
    wheel = tmp_path / "one-1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    pin = Pin("one", "1.0", (hashlib.sha256(b"wheel").hexdigest(),))
    assert wheels.complete(tmp_path, Lock((pin,)))
    assert not wheels.complete(tmp_path, Lock((pin, Pin("two", "1.0", ("00",)))))
    wheel.write_bytes(b"other")
    assert not wheels.complete(tmp_path, Lock((pin,)))


def test_wheels_are_chosen_for_the_engines_architecture(tmp_path: Path) -> None:
    """An engine on ARM gets ARM's wheels, and one on an architecture without wheels gets an error."""
    assert Target(BOOKWORM, "arm64").platforms()[0].endswith("_aarch64")
    with pytest.raises(ImageBuildError, match="riscv64"):
        wheels.fetch(Lock(()), Target(BOOKWORM, "riscv64"), tmp_path, lambda *progress: None)


def test_package_list_is_read_without_its_comments(tmp_path: Path) -> None:
    """The list of Debian packages may have comments."""
    listing = tmp_path / "packages.txt"
    listing.write_text("# base\nbash\n\ntar  # for archives\n")
    assert baseimage.package_names(listing, BOOKWORM) == ["bash", "tar", "python3.11"]


NAMES_IN_CHECKPOINTS = {
    "arrays": {"_make_view"},
    "notrestored": {"NotRestored"},
    "pickling": {
        "_name", "_make_function", "_make_module", "_fill_module", "_make_cell", "_fill_cell", "_make_exception",
        "_bare", "_set_state", "_make_handler", "_standard_stream", "_closed_file", "_make_memory", "_dead_reference",
        "_weak_values", "_weak_keys", "_make_cached",
    },
}  # fmt: skip


@pytest.mark.parametrize("module", NAMES_IN_CHECKPOINTS)
def test_checkpoints_of_earlier_images_find_their_functions(module: str) -> None:
    """A pickle refers to functions by module and name, so these must stay where they are."""
    source = (data_folder("sandbox_image") / "cellblock_session" / f"{module}.py").read_text()
    defined = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert defined >= NAMES_IN_CHECKPOINTS[module]
