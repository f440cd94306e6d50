"""Policies: which ones are refused, and that the error has the file, the line and the key of each fault."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.container.hostconfig import ContainerSpec, create_request
from orchestrator.errors import PolicyError
from orchestrator.policy import seccomp
from orchestrator.policy.policy import Policy, keys, shipped


def load(tmp_path: Path, text: str) -> Policy:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return Policy.load(str(file))


def refusal(tmp_path: Path, text: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        load(tmp_path, text)
    return caught.value


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_policy_is_valid(name: str) -> None:
    """Each can be loaded, and a container can be created with it."""
    policy = Policy.load(name)
    spec = ContainerSpec("c", "i", "runc", Path("/run/x/wire"), 200000, "i", "k", ("b", "n"), "h")
    create_request(spec, policy, policy.resource_limits())


@pytest.mark.parametrize(("memory", "size"), [(1024, 256), (832, 256), (700, 124), (640, 64)])
def test_a_policy_with_little_memory_has_a_smaller_tmp(memory: int, size: int, tmp_path: Path) -> None:
    """A policy that names no sizes stays valid where the largest /tmp does not fit."""
    assert load(tmp_path, f"[limits]\nmemory_mb = {memory}\n").tmpfs.tmp_mb == size


def test_a_size_of_tmp_that_is_written_down_holds(tmp_path: Path) -> None:
    """It is refused where it does not fit, and not made smaller."""
    assert "tmpfs" in str(refusal(tmp_path, "[limits]\nmemory_mb = 700\n[tmpfs]\ntmp_mb = 256\n"))
    assert "tmpfs" in str(refusal(tmp_path, "[limits]\nmemory_mb = 639\n"))


FAULTS = [
    ("[limits]\nmemory_gb = 3\n", 2, "limits.memory_gb", "no such key; did you mean limits.memory_mb?"),
    ("runtime = 'auto'\n\n[limits]\n\ncpu_percent = '80'\n", 5, "limits.cpu_percent", "number"),
    ("[limits]\ncpu_percent = 101\n", 2, "limits.cpu_percent", "less than or equal to 100"),
    ("[limits]\ncpu_percent = nan\n", 2, "limits.cpu_percent", "finite"),
    ("[limits]\nmemory_mb = 1024.0\n", 2, "limits.memory_mb", "integer"),
    ("[limits]\nmemory_mb = true\n", 2, "limits.memory_mb", "integer"),
    ("[limits]\npids = -1\n", 2, "limits.pids", "greater than"),
    ("[limits]\nmemory_mb = '1g'\n", 2, "limits.memory_mb", "integer"),
    ("# a\n\nruntime = 'kata'\n", 3, "runtime", "require-runsc"),
    ("privileged = true\n", 1, "privileged", "no such key"),
    ("[tmpfs]\nwork_mb = 4096\n", 1, "tmpfs", "more than limits.memory_mb"),
    ("[output]\nmime_types = [\n  'text/*',\n  'nonsense',\n]\n", 2, "output.mime_types.1", "pattern"),
    ("[environment]\nA = 'x'\nLD_PRELOAD = '/x'\n", 3, "environment.LD_PRELOAD", "set by the sandbox"),
    ("[environment]\n'A=B' = 'x'\n", 2, "environment.A=B", "pattern"),
    ("[data]\nok = '/nowhere/at/all'\n", 2, "data.ok", "cannot be used"),
    ("seccomp = 'none'\n", 1, "seccomp", "known ones: cellblock"),
    ("[limits]\npids = 64\n[limits]\npids = 65\n", 3, "", "not valid TOML"),
    ("preload = ['os', 'x; import os']\n", 1, "preload.1", "pattern"),
    ("limits = 3\n", 1, "limits", "Limits"),
    ("[limits\n", 1, "", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "line", "key", "reason"), FAULTS)
def test_a_fault_has_its_file_line_and_key(tmp_path: Path, text: str, line: int, key: str, reason: str) -> None:
    error = refusal(tmp_path, text)
    assert len(error.faults) == 1
    fault = error.faults[0]
    assert (fault.key, fault.line) == (key, line)
    assert reason in fault.reason
    assert f"mine.toml:{line}: " in error.message


def test_all_faults_are_reported_in_the_files_order(tmp_path: Path) -> None:
    error = refusal(tmp_path, "[limits]\npids = 1\ncpu_percent = 0\nmemory = 5\n[chanels]\n")
    assert [fault.line for fault in error.faults] == [2, 3, 4, 5]


def test_a_path_that_is_no_small_regular_file_is_refused(tmp_path: Path) -> None:
    """Opening a fifo would block, and a device never ends. A large file is no policy."""
    fifo, big = tmp_path / "fifo.toml", tmp_path / "big.toml"
    os.mkfifo(fifo)
    big.write_text("#" * 100_000)
    for path in (fifo, big, tmp_path, tmp_path / "none.toml", Path("/dev/zero"), Path("x\0.toml")):
        with pytest.raises(PolicyError):
            Policy.load(str(path) if path.suffix or "/" in str(path) else f"./{path}")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_policy_or_a_policy_error(content: bytes) -> None:
    path = Path("/dev/shm") / f"policy-{os.getpid()}.toml"
    path.write_bytes(content)
    try:
        Policy.load(str(path))
    except PolicyError:
        pass
    finally:
        path.unlink()


def test_no_setting_overrides_a_required_runtime(tmp_path: Path) -> None:
    strict = Policy.load("strict")
    assert strict.choose_runtime("") == strict.choose_runtime("auto") == strict.choose_runtime("runsc") == "runsc"
    with pytest.raises(PolicyError, match="requires the runtime runsc"):
        strict.choose_runtime("runc")
    assert load(tmp_path, "runtime = 'runc'").choose_runtime("") == "runc"
    assert load(tmp_path, "runtime = 'runc'").choose_runtime("runsc") == "runsc"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def test_a_data_folder_is_resolved_at_load(tmp_path: Path, data: Path) -> None:
    """A link is resolved when the policy is loaded, also one that a relative path names."""
    (tmp_path / "link").symlink_to(data)
    assert load(tmp_path, "[data]\nsales = 'link'\n").data == {"sales": data.resolve()}
    assert load(tmp_path, f"[data]\nsales = '{tmp_path}/link'\n").data == {"sales": data.resolve()}


@pytest.mark.parametrize("system", ["/", "/etc", "/proc", "/var", "/var/run", "/run", "/dev/shm", "/root", "/var/lib"])
def test_folders_of_the_system_are_refused_as_data(tmp_path: Path, system: str) -> None:
    link = tmp_path / "innocent"
    link.symlink_to(system)
    for name in (system, link):
        assert refusal(tmp_path, f"[data]\nx = '{name}'\n").faults[0].key == "data.x"


def test_a_data_folder_with_a_socket_or_fifo_is_refused(tmp_path: Path, data: Path) -> None:
    """A read-only mount protects files from changes, but a sandbox could still use a socket or fifo in it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data / "docker.sock"))
        assert "socket" in refusal(tmp_path, f"[data]\nx = '{data}'\n").message
    (data / "docker.sock").unlink()
    (data / "deep").mkdir()
    os.mkfifo(data / "deep" / "fifo")
    assert "fifo" in refusal(tmp_path, f"[data]\nx = '{data}'\n").message


@pytest.mark.parametrize("name", ["..", "a/b", "A", "", "."])
def test_names_of_data_are_plain(tmp_path: Path, data: Path, name: str) -> None:
    refusal(tmp_path, f"[data]\n'{name}' = '{data}'\n")


def test_a_data_folder_that_the_sandbox_cannot_read_is_refused(tmp_path: Path, data: Path) -> None:
    data.chmod(0o700)
    assert "chmod" in refusal(tmp_path, f"[data]\nx = '{data}'\n").message


def _profile(**changes: object) -> str:
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []} | changes)


PROFILES = [
    _profile(defaultAction="SCMP_ACT_ALLOW"),
    _profile(defaultAction="SCMP_ACT_LOG"),
    _profile(syscalls=[{"names": ["io_uring_setup"], "action": "SCMP_ACT_ALLOW"}]),
    _profile(syscalls=[{"name": "bpf", "action": "SCMP_ACT_ALLOW"}]),
    _profile(syscalls=[{"names": ["clone3"], "action": "SCMP_ACT_ALLOW"}]),
    _profile(syscalls=[{"names": ["socket"], "action": "SCMP_ACT_ALLOW"}]),
    _profile(syscalls=[{"names": ["read"], "action": "SCMP_ACT_TRACE"}]),
    _profile(syscalls=[{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]),
    _profile(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390"]}}]),
    _profile(syscalls={"read": 1}),
    _profile(syscalls=[7]),
    "[" * 100_000,
    "not json",
    "[]",
]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seccomp_profile_that_allows_too_much_is_refused(tmp_path: Path, profile: str) -> None:
    (tmp_path / "mine.json").write_text(profile)
    assert refusal(tmp_path, "seccomp = 'mine.json'\n").faults[0].key == "seccomp"


def test_a_valid_profile_of_the_user_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(_profile(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]))
    policy = load(tmp_path, "seccomp = 'mine.json'\n")
    assert json.loads(policy.seccomp_json)["syscalls"][0]["names"] == ["read"]


def test_the_shipped_profile_denies_what_no_sandbox_may_do() -> None:
    profile = json.loads(Policy.load("default").seccomp_json)
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert len(allowed) > 150
    assert not allowed & seccomp.NEVER


def test_keys_are_dotted_and_complete() -> None:
    assert {"runtime", "limits.memory_mb", "tmpfs.shm_mb", "channels.stdin", "data"} <= {key for key, _ in keys()}
