"""The sandbox image: it has no privileged programs, it has all tools of an agent, and it matches its sources."""

from __future__ import annotations

import re
from collections.abc import Iterator

import docker
import pytest

from orchestrator.container import engine
from orchestrator.container.engineimages import EngineImages
from orchestrator.image.build import BuiltImage, build_image, find_current_image, find_image
from orchestrator.image.recipe import Recipe
from orchestrator.policy.sections import Image
from orchestrator.settings import Settings

PYTHON = ["/opt/cellblock/bin/python", "-I"]
LIBRARIES = (
    "ipykernel.kernelapp, matplotlib.pyplot, numpy, openpyxl, pandas, PIL.Image, scipy.stats, seaborn, tabulate, tqdm, "
    "xlsxwriter"
)


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    client = engine.connect(120)
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(client: docker.DockerClient) -> BuiltImage:
    return build_image(EngineImages(client), Recipe.of(Settings.load(), Image()), lambda step: None)


def run(client: docker.DockerClient, image: BuiltImage, command: list[str], user: str = "200123:200123") -> str:
    """Run a command as in a sandbox, and return what it printed on both streams, in no fixed order."""
    container = client.containers.create(
        image.image_id,
        command=command[1:],
        entrypoint=command[:1],
        user=user,
        read_only=True,
        network_mode="none",
        cap_drop=["ALL"],
        tmpfs={"/tmp": "size=64m", "/work": "size=64m"},
        environment={"MPLCONFIGDIR": "/tmp"},
    )
    try:
        container.start()
        status = container.wait(timeout=120)["StatusCode"]
        printed = container.logs().decode()
        assert status == 0, printed
        return printed
    finally:
        container.remove(force=True)


def test_no_file_raises_privileges(client: docker.DockerClient, image: BuiltImage) -> None:
    """Root, who can see all files, finds no setuid or setgid file in the image."""
    assert run(client, image, ["/bin/sh", "-c", "find / -xdev -type f -perm /6000"], user="0:0") == ""


def test_neither_package_manager_nor_compiler(client: docker.DockerClient, image: BuiltImage) -> None:
    """The image has no program that installs or compiles software."""
    programs = "pip pip3 apt apt-get dpkg perl gcc cc g++ c++ tcc clang make ld as"
    assert run(client, image, ["/bin/sh", "-c", f"for p in {programs}; do command -v $p; done; true"]) == ""
    script = "import importlib.util as u; print([m for m in ('pip', 'ensurepip', 'setuptools') if u.find_spec(m)])"
    assert run(client, image, [*PYTHON, "-c", script]).strip() == "[]"


def test_default_user_is_not_root(client: docker.DockerClient, image: BuiltImage) -> None:
    """A container without a configured user does not run as root."""
    assert client.api.inspect_image(image.image_id)["Config"]["User"] == "65532:65532"


def test_libraries_import_compiled_on_a_read_only_root(client: docker.DockerClient, image: BuiltImage) -> None:
    """With any user id, without network or writable root, every library can be imported without compiling a module."""
    log = run(client, image, [*PYTHON, "-v", "-c", f"import {LIBRARIES}"])
    assert "code object from" in log
    assert re.findall(r"# code object from '?([^']*\.py)'?$", log, re.MULTILINE) == []


def test_fonts_are_cached(client: docker.DockerClient, image: BuiltImage) -> None:
    """matplotlib accepts the font cache that the kernel copies at its start."""
    script = 'cp /opt/cellblock/matplotlib/fontlist-*.json /tmp && exec /opt/cellblock/bin/python -c "$0"'
    check = "import logging; logging.basicConfig(level=20); import matplotlib.font_manager"
    assert "generated new fontManager" not in run(client, image, ["/bin/sh", "-c", script, check])


def test_shell_tools_of_an_agent_are_there(client: docker.DockerClient, image: BuiltImage) -> None:
    """Shell commands of a cell find the usual tools and a UTF-8 locale."""
    script = "for p in bash ls grep sed awk find tar gzip which diff; do command -v $p >/dev/null || echo no $p; done"
    assert run(client, image, ["/bin/sh", "-c", f"{script}; printf 'é' | wc -m"]) == "1\n"


def test_nothing_of_this_host_is_in_the_image(client: docker.DockerClient, image: BuiltImage) -> None:
    """The image contains neither the build context nor any user: each kernel's wire names its own."""
    script = "ls -d /build 2>/dev/null; readlink /etc/passwd /etc/group"
    assert run(client, image, ["/bin/sh", "-c", script]) == "/run/kernel/passwd\n/run/kernel/group\n"


def test_label_is_the_digest_of_the_sources(client: docker.DockerClient, image: BuiltImage) -> None:
    """An image whose label matches the sources is found without a build."""
    again = build_image(
        EngineImages(client), Recipe.of(Settings.load(), Image()), lambda step: pytest.fail(f"was built again: {step}")
    )
    assert again.image_id == image.image_id
    assert not again.built


def test_image_that_no_longer_matches_is_noticed(client: docker.DockerClient, image: BuiltImage) -> None:
    """An image with the right name and other inputs does not count as current."""
    stale = Recipe.of(Settings(image="cellblock-test:stale", base_image="made-from-something-else"), Image())
    client.api.tag(image.image_id, "cellblock-test", "stale")
    try:
        assert find_image(EngineImages(client), stale.name) is not None
        assert find_current_image(EngineImages(client), stale) is None
    finally:
        client.api.remove_image("cellblock-test:stale", noprune=True)
