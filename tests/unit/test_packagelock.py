"""Lock files of packages: which files are one, which pins apply, and what their digest depends on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PolicyError
from orchestrator.image.recipe import Recipe
from orchestrator.image.suite import BOOKWORM, TRIXIE, Suite, Target, choose
from orchestrator.policy import packagelock
from orchestrator.policy.packagelock import Lock, Pin
from orchestrator.policy.policy import Policy
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings

ONE, TWO = "1" * 64, "2" * 64
HERE = Target(BOOKWORM, "amd64").environment()


def file_of(folder: Path, text: str) -> Path:
    path = folder / "lock.txt"
    path.write_text(text)
    return path


def test_a_lock_of_uv_or_pip_is_read(tmp_path: Path) -> None:
    """Comments, markers and several hashes are understood; names take their normal form."""
    text = (
        "# made by uv\n"
        f"Typing_Extensions==4.1 \\\n    --hash=sha256:{TWO} \\\n    --hash=sha256:{ONE}\n    # via x\n"
        f'colorama==0.4 ; sys_platform == "win32" --hash=sha256:{ONE}\n'
        f'tomli==2.0 ; python_version < "3.13" \\\n    --hash=sha256:{ONE}\n'
    )
    lock = Lock.read(file_of(tmp_path, text), HERE)
    assert lock.versions == {"tomli": "2.0", "typing-extensions": "4.1"}
    assert lock.text.splitlines()[1] == f"typing-extensions==4.1 --hash=sha256:{ONE} --hash=sha256:{TWO}"
    newer = Lock.read(file_of(tmp_path, text), Target(TRIXIE, "amd64").environment())
    assert newer.versions.keys() == {"typing-extensions"}


def test_the_digest_is_of_the_packages_alone(tmp_path: Path) -> None:
    one, two = f"a==1 --hash=sha256:{ONE}", f"b==2 --hash=sha256:{TWO}"
    first = Lock.read(file_of(tmp_path, f"{one}\n{two}\n"), HERE)
    second = Lock.read(file_of(tmp_path, f"# again\n{two}  # why\n\n{one}\r\n"), HERE)
    assert first.digest == second.digest
    assert first.digest != Lock.read(file_of(tmp_path, one), HERE).digest
    image = Lock((Pin("a", "1.0", (ONE, TWO)), Pin("b", "2", (ONE,))))
    assert first.without(image).versions == {"b": "2"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("emoji\n", "not locked"),
        ("emoji==2.14\n", "not locked"),
        (f"emoji==2.* --hash=sha256:{ONE}\n", "not locked"),
        (f"emoji>=2 --hash=sha256:{ONE}\n", "not locked"),
        ("emoji==2.14 --hash=md5:00\n", "option"),
        ("--index-url https://example.org\nemoji\n", "option"),
        ("-e .\n", "option"),
        ("-r other.txt\n", "option"),
        ("./emoji.whl\n", "no requirement"),
        (f"emoji @ https://example.org/e.whl --hash=sha256:{ONE}\n", "URL"),
        ("# nothing\n", "names no package"),
        ("", "names no package"),
    ],
)
def test_a_policy_refuses_a_file_that_is_no_lock(tmp_path: Path, text: str, reason: str) -> None:
    """The fault has the line of the key, and says why."""
    file_of(tmp_path, text)
    policy = tmp_path / "policy.toml"
    policy.write_text('[image]\n\nrequirements = "lock.txt"\n')
    with pytest.raises(PolicyError, match=reason) as caught:
        Policy.load(str(policy))
    assert (caught.value.faults[0].key, caught.value.faults[0].line) == ("image.requirements", 3)


@pytest.mark.parametrize("content", ["missing", "folder", "fifo", "large", "binary"])
def test_a_path_that_is_no_small_text_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock.txt"
    match content:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "large":
            path.write_bytes(b"#" * (5 * 1024 * 1024))
        case "binary":
            path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError, match=r"lock\.txt"):
        packagelock.entries(path)


@given(st.text(max_size=200))
def test_any_line_is_an_entry_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert packagelock.entry(text).requirement.name


def test_a_package_that_is_pinned_twice_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, f"a-b==1 --hash=sha256:{ONE}\nA_b==2 --hash=sha256:{TWO}\n")
    with pytest.raises(ValueError, match="twice"):
        Lock.read(path, HERE)


def test_the_shipped_lock_fits_the_images_packages(tmp_path: Path) -> None:
    """The full image replaces no package of the plain one, under every Python."""
    for python in ("3.11", "3.13"):
        recipe = Recipe.of(Settings(), Image(requirements="full", python=python))
        assert recipe.lock is not None
        shared = recipe.lock.versions.keys() & recipe.pinned.versions.keys()
        assert {"numpy", "pandas"} <= shared
        assert {name: recipe.lock.versions[name] for name in shared} == {
            name: recipe.pinned.versions[name] for name in shared
        }
    assert "://" not in packagelock.shipped().read_text()


def test_a_name_tells_images_apart(tmp_path: Path) -> None:
    """The lock, the Python and the operator's image are in the name of an image with more packages."""
    lock = str(file_of(tmp_path, f"a==1 --hash=sha256:{ONE}\n"))
    plain = Recipe.of(Settings(image=""), Image())
    names = {
        plain.name,
        Recipe.of(Settings(image=""), Image(requirements=lock)).name,
        Recipe.of(Settings(image=""), Image(python="3.13")).name,
        Recipe.of(Settings(image=""), Image(python="3.13", requirements=lock)).name,
        Recipe.of(Settings(image="team/sandbox:7"), Image(requirements=lock)).name,
    }
    assert len(names) == 5
    assert all(name.startswith("cellblock-sandbox:") for name in names)
    assert Recipe.of(Settings(image=""), Image(requirements=lock)).name.startswith(f"{plain.name}-")


def test_each_python_has_its_suite() -> None:
    """Debian 12 has 3.11, Debian 13 has 3.13; 3.12 needs an image of a registry, and so does an operator's own."""
    assert choose(codename="bookworm", python="3.13") == TRIXIE
    assert choose(codename="trixie", python="3.11") == BOOKWORM
    assert choose(codename="trixie", python="3.12") == Suite("bookworm", "3.12", 36)
    assert choose("team/base:1", python="3.13").python == "3.13"
    assert choose(codename="bookworm", python="3.12").slim_image == "python:3.12-slim-bookworm"
