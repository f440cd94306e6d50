"""Seccomp profiles: found, read, and refused when they let through what no sandbox may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.settings import data_folder

_LARGEST = 1024 * 1024  # bytes
_DENIALS = ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS")
_ACTIONS = (*_DENIALS, "SCMP_ACT_ALLOW")
# What row H5 of the threat model names, and what only the owner of a machine does.
NEVER = frozenset((
    "io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "userfaultfd", "perf_event_open", "keyctl",
    "add_key", "request_key", "unshare", "setns", "mount", "umount", "umount2", "mount_setattr", "move_mount",
    "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "pivot_root", "chroot", "kexec_load",
    "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module", "open_by_handle_at",
    "name_to_handle_at", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "fanotify_init", "quotactl",
    "quotactl_fd", "acct", "swapon", "swapoff", "reboot", "settimeofday", "clock_settime", "clock_adjtime",
    "adjtimex", "syslog", "iopl", "ioperm", "modify_ldt", "vmsplice", "lookup_dcookie", "nfsservctl",
    "sethostname", "setdomainname", "vhangup", "uselib",
))  # fmt: skip
# What may be allowed with conditions on its arguments alone, and clone3 not at all: its flags lie in memory.
CONDITIONAL = frozenset(("socket", "clone", "personality", "ioctl"))
_FLAGS_IN_MEMORY = "clone3"


def find(name: str, folder: Path) -> Path:
    """Return the path of a profile: of ``policies/seccomp/`` by its name, any other by its path.

    Args:
        folder: what a relative path is relative to.

    Raises:
        ValueError: there is no such name.
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
    """Read a profile in Docker's format.

    Raises:
        ValueError: it cannot be read, or allows too much; the message says what.
    """
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError(f"{path} is not a file of at most {_LARGEST} bytes")
        profile = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the seccomp profile {path} cannot be read: {error}") from error
    faults = breaches(profile)
    if faults:
        raise ValueError(f"the seccomp profile {path} {'; '.join(faults[:5])}")
    checked: dict[str, Any] = profile
    return checked


def breaches(profile: Any) -> list[str]:
    """Name what a profile lets through although no sandbox may do it."""
    if not isinstance(profile, dict) or not isinstance(profile.get("syscalls"), list):
        return ["is no profile in Docker's format"]
    faults = [] if profile.get("defaultAction") in _DENIALS else ["does not deny by default"]
    for rule in profile["syscalls"]:
        faults += _rule_breaches(rule)
    return faults


def _rule_breaches(rule: Any) -> list[str]:
    if not isinstance(rule, dict) or rule.get("action") not in _ACTIONS:
        return ["has a rule that neither allows nor denies"]
    names = rule.get("names", [rule.get("name")])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ["has a rule without names"]
    if rule["action"] in _DENIALS:
        return []
    faults = [f"allows {name}" for name in names if name in NEVER or name == _FLAGS_IN_MEMORY]
    if not rule.get("args"):
        faults += [f"allows {name} whatever its arguments" for name in names if name in CONDITIONAL]
    if rule.get("includes") or rule.get("excludes"):
        faults.append("allows calls depending on the host")
    return faults
