"""Packages that sessions install while they run: from an index on loopback, and two from the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AgentKernelManager, PackageError, Settings
from tests.conftest import make_manager, one_session
from tests.docker.packageindex import PackageIndex


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    with PackageIndex(tmp_path / "index").serving() as index:
        yield index


def policy(folder: Path, allow: list[str], url: str = "", **packages: Any) -> str:
    """Write a policy, and return its path."""
    lines = ["[packages]", f"allow = {json.dumps(allow)}", f'index = "{url}"']
    lines += [f"{key} = {value}" for key, value in packages.items()]
    path = folder / "policy.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


async def reason_of(manager: AgentKernelManager, session: Any, *requirements: str) -> str:
    with pytest.raises(PackageError) as caught:
        await manager.install(session, requirements)
    return caught.value.reason


async def test_the_default_policy_allows_none_and_says_which_setting_would(runtime: str) -> None:
    """The refusal is immediate, from the manager, ``%pip`` and ``!pip``; what the image has is satisfied."""
    async with one_session(runtime) as (manager, session):
        with pytest.raises(PackageError, match=r"\[packages\] allow = \[\"emoji\"\]"):
            await manager.install(session, ["emoji"])
        for code in ("%pip install emoji", "!pip install emoji", "!python3 -m pip install -q emoji==2.14"):
            result = await manager.execute(session, code)
            assert "does not allow" in result.stderr
            assert "[packages] allow" in result.stderr
            assert result.warnings
        result = await manager.execute(session, "!pip install numpy 'pandas>=1'")
        assert result.stdout.count("Requirement already satisfied") == 2
        assert (result.outcome, result.warnings) == ("ok", ())


async def test_a_package_is_there_at_once_and_after_sleep_restore_and_fork(
    runtime: str, tmp_path: Path, index: PackageIndex
) -> None:
    index.add_wheel("lilac", "1.0", program="bloom")
    index.add_wheel("violet", "2.0", requires=("lilac>=1", "numpy"))
    settings: dict[str, Any] = {
        "policy": policy(tmp_path, ["lilac", "violet"], index.url),
        "audit_log": str(tmp_path / "audit.jsonl"),
    }
    async with make_manager(runtime, max_kernels=3, **settings) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            result = await manager.execute(
                session, "%pip install violet\nimport violet, lilac\nviolet.version, lilac.version"
            )
            assert result.result == "('2.0', '1.0')", result.stderr
            assert "Successfully installed" in result.stdout
            assert await manager.install(session, ["lilac"]) == ["lilac-1.0"]
            command = await manager.run_command(session, ["python3", "-c", "import violet; print(violet.version)"])
            assert command.stdout == b"2.0\n"
            assert (await manager.run_command(session, ["/tmp/.packages/lilac/bloom.sh"])).stdout == b"bloom\n"
            checkpoint = await manager.checkpoint(session)
            assert checkpoint.lost == ()
            [fork] = await manager.fork(session, 1)
            result = await manager.execute(fork, "violet.version, __import__('lilac').version")
            assert (result.result, result.warnings) == ("('2.0', '1.0')", ())
            restored = await manager.restore(session, checkpoint)
            assert {wheel.name for wheel in restored.packages} == {"lilac", "violet"}
        assert await manager.hibernate("a")
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            result = await manager.execute(session, "violet.version")
            assert (result.result, result.warnings) == ("'2.0'", ())
    entries = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    installed = [entry for entry in entries if entry["event"] == "packages.installed"]
    assert installed[0]["outcome"] == "ok"
    assert {each["package"] for each in installed[0]["wheels"]} == {"violet-2.0", "lilac-1.0"}


async def test_what_is_refused(runtime: str, tmp_path: Path, index: PackageIndex) -> None:
    """An unlisted name, a squatting one, a version, a hash, a source distribution, a dependency, a URL, an option."""
    digest = index.add_wheel("lilac", "1.0")
    index.add_wheel("lilac", "2.0")
    index.add_wheel("lilacs", "1.0")
    index.add_wheel("needy", "1.0", requires=("lilacs",))
    index.add_wheel("rose", "1.0")
    index.add_wheel("large", "1.0", size=3 * 2**20)
    index.add_source("source", "1.0")
    allowed = ["lilac", "needy", "rose<1", "large", "source", "absent"]
    path = policy(tmp_path, allowed, index.url, max_mb=2)
    async with one_session(runtime, policy=path) as (manager, session):
        assert await reason_of(manager, session, "lilacs") == "not_allowed"
        assert await reason_of(manager, session, "lila") == "not_allowed"
        assert await reason_of(manager, session, "li-lac") == "not_allowed"
        assert await reason_of(manager, session, "needy") == "not_allowed"
        assert await reason_of(manager, session, "rose") == "no_wheel"
        assert await reason_of(manager, session, "rose==1.0") == "no_wheel"
        assert await reason_of(manager, session, "large") == "too_large"
        assert await reason_of(manager, session, "source") == "no_wheel"
        assert await reason_of(manager, session, "absent") == "no_wheel"
        assert await reason_of(manager, session, f"lilac==1.0 --hash=sha256:{'0' * 64}") == "wrong_hash"
        assert await reason_of(manager, session, f"lilac==2.0 --hash=sha256:{digest}") == "wrong_hash"
        for text in ("lilac @ https://example.com/x.whl", "git+https://example.com/x", "../lilac", "--pre", "",
                     "lilac --index-url=http://example.com", "x" * 5000):  # fmt: skip
            assert await reason_of(manager, session, text) == "malformed"
        assert await reason_of(manager, session) == "malformed"
        assert await manager.install(session, [f"LILAC==1.0 --hash=sha256:{digest}"]) == ["lilac-1.0"]
        result = await manager.execute(session, "%pip install --index-url http://example.com lilac")
        assert "--index-url is not supported" in result.stderr


async def test_an_unreachable_index(runtime: str, tmp_path: Path) -> None:
    """What was resolved once comes from the cache, in any later session; anything else is refused with a reason."""
    index = PackageIndex(tmp_path / "index")
    index.add_wheel("lilac", "1.0")
    index.add_wheel("violet", "1.0")
    with index.serving():
        path = policy(tmp_path, ["lilac", "violet"], index.url)
        async with one_session(runtime, policy=path) as (manager, session):
            await manager.install(session, ["lilac"])
    async with one_session(runtime, policy=path) as (manager, session):
        assert await manager.install(session, ["lilac"]) == ["lilac-1.0"]
        assert (await manager.execute(session, "import lilac; lilac.version")).result == "'1.0'"
        assert await reason_of(manager, session, "violet") == "unreachable"


async def test_a_changed_cache_is_noticed(runtime: str, tmp_path: Path, index: PackageIndex, cache: Path) -> None:
    index.add_wheel("lilac", "1.0")
    path = policy(tmp_path, ["lilac"], index.url)
    async with make_manager(runtime, policy=path) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            await manager.install(session, ["lilac"])
            [wheel] = (cache / "cellblock" / "packages" / "wheels").rglob("*.whl")
            wheel.write_bytes(wheel.read_bytes() + b"evil")
        assert await manager.hibernate("a")
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            result = await manager.execute(session, "1")
            assert any("lilac-1.0" in warning for warning in result.warnings), result.warnings
            assert await manager.install(session, ["lilac"]) == ["lilac-1.0"]  # fetched again


async def test_a_hostile_wheel_stays_in_its_folder(runtime: str, tmp_path: Path, index: PackageIndex) -> None:
    """The host never unpacks a wheel, and the sandbox's own unpacking leaves no folder of its own."""
    index.add_wheel("lilac", "1.0", hidden="../../../work/escaped")
    path = policy(tmp_path, ["lilac"], index.url)
    async with one_session(runtime, policy=path) as (manager, session):
        await manager.install(session, ["lilac"])
        assert not await manager.exists(session, "/work/escaped")
        assert (await manager.execute(session, "import lilac; lilac.version")).result == "'1.0'"


async def test_real_packages(runtime: str, tmp_path: Path) -> None:
    """emoji, and orjson with its compiled code, from the host's own index."""
    path = policy(tmp_path, ["emoji", "orjson"])
    async with make_manager(runtime, policy=path) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            result = await manager.execute(
                session, "%pip install emoji orjson\nimport emoji, orjson\norjson.dumps([1])"
            )
            assert result.result == "b'[1]'", result.stderr
        assert await manager.hibernate("a")
        async with manager.acquire_kernel("a", timeout=60) as (_, session):
            result = await manager.execute(session, "orjson.loads('[2]'), emoji.emojize(':dog:')")
            assert result.result == "([2], '\U0001f415')"


def test_a_policy_names_packages(tmp_path: Path) -> None:
    """Requirements alone, without URLs."""
    from orchestrator import Policy, PolicyError

    assert Policy.load(policy(tmp_path, ["emoji==2.*", "x[y]>1"])).packages.allow == ("emoji==2.*", "x[y]>1")
    for bad in (["a b"], ["x @ https://example.com/x.whl"], [""]):
        with pytest.raises(PolicyError, match="packages"):
            Policy.load(policy(tmp_path, bad))
    with pytest.raises(PolicyError, match="index"):
        Policy.load(policy(tmp_path, [], "ftp://example.com"))
    assert Settings.load().policy
