"""Seccomp profiles: find them, read them, and refuse those that allow system calls that no sandbox may make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.settings import data_folder

_LARGEST = 1024 * 1024  # bytes
_DENIALS = ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS")
_ACTIONS = (*_DENIALS, "SCMP_ACT_ALLOW")
# System calls that no profile may allow: those of row H5 of the threat model, and those for administering a machine.
NEVER = frozenset((
    "io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "userfaultfd", "perf_event_open", "keyctl",
    "add_key", "request_key", "unshare", "setns", "mount", "umount", "umount2", "mount_setattr", "move_mount",
    "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "pivot_root", "chroot", "kexec_load",
    "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module", "open_by_handle_at",
    "name_to_handle_at", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "fanotify_init", "quotactl",
    "quotactl_fd", "acct", "swapon", "swapoff", "reboot", "settimeofday", "clock_settime", "clock_adjtime",
    "adjtimex", "syslog", "iopl", "ioperm", "modify_ldt", "vmsplice", "lookup_dcookie", "nfsservctl",
    "sethostname", "setdomainname", "vhangup", "uselib",
    "sync", "syncfs",  # they write whole file systems of the host, and its neighbours wait for that
))  # fmt: skip
# System calls that a profile may allow only with conditions on their arguments.
CONDITIONAL = frozenset(("socket", "clone", "personality", "ioctl"))
_FLAGS_IN_MEMORY = "clone3"  # never allowed: seccomp cannot check flags that are in memory


def find(name: str, folder: Path) -> Path:
    """Return the path of a profile, which is given by its name in ``policies/seccomp/`` or by a path.

    Args:
        folder: the start of relative paths.

    Raises:
        ValueError: there is no profile with this name.
    """
    if "/" in name or name.endswith(".json"):
        return folder / name
    known = {path.stem: path for path in (data_folder("policies") / "seccomp").glob("*.json")}
    if name not in known:
        raise ValueError(
            f"there is no seccomp profile {name!r}; known ones: {', '.join(sorted(known))}; or give a path"
        )
    return known[name]


def load(path: Path) -> dict[str, Any]:
    """Return a profile in Docker's format.

    Raises:
        ValueError: the file cannot be read, or the profile allows too much. The message says what.
    """
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError(f"the seccomp profile {path} is not a file of at most {_LARGEST} bytes")
        profile = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the seccomp profile {path} cannot be read: {error}") from error
    faults = breaches(profile)
    if faults:
        raise ValueError(f"the seccomp profile {path} {'; '.join(faults[:5])}")
    checked: dict[str, Any] = profile
    return checked


def breaches(profile: Any) -> list[str]:
    """Return what is wrong with a profile: each fault continues a sentence that begins with the profile."""
    if not isinstance(profile, dict) or not isinstance(profile.get("syscalls"), list):
        return ["is not in Docker's format"]
    faults = [] if profile.get("defaultAction") in _DENIALS else ["does not deny by default"]
    for rule in profile["syscalls"]:
        faults += _rule_breaches(rule)
    return faults


def _rule_breaches(rule: Any) -> list[str]:
    if not isinstance(rule, dict) or rule.get("action") not in _ACTIONS:
        return ["has a rule whose action neither allows nor denies"]
    names = rule.get("names", [rule.get("name")])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ["has a rule without names"]
    if rule["action"] in _DENIALS:
        return []
    faults = [f"allows {name}" for name in names if name in NEVER or name == _FLAGS_IN_MEMORY]
    if not rule.get("args"):
        faults += [f"allows {name} with any arguments" for name in names if name in CONDITIONAL]
    if rule.get("includes") or rule.get("excludes"):
        faults.append("has a rule with conditions on the host")
    return faults
