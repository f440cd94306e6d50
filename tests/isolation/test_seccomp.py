"""The seccomp profile allows what the image's libraries need, and denies the rest."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from orchestrator import KernelResourceLimits
from orchestrator.policy.policy import Policy
from tests.conftest import make_manager

WORKLOAD = Path(__file__).with_name("workload.py")
LIMITS = KernelResourceLimits(max_memory_mb=1024, max_execution_time=120)
EPERM = 1
RUN = "import subprocess, sys; _ = subprocess.run([sys.executable, 'workload.py'], stderr=subprocess.DEVNULL)"
# (name, number, first argument): numbers of x86_64
CALLS = [
    ("io_uring_enter", 426, 0), ("io_uring_register", 427, 0), ("unshare", 272, 0x10000000), ("setns", 308, 0),
    ("kexec_load", 246, 0), ("init_module", 175, 0), ("finit_module", 313, 0), ("delete_module", 176, 0),
    ("swapon", 167, 0), ("settimeofday", 164, 0), ("clock_settime", 227, 0), ("clock_adjtime", 305, 0),
    ("adjtimex", 159, 0), ("iopl", 172, 3), ("ioperm", 173, 0), ("modify_ldt", 154, 0), ("vmsplice", 278, 0),
    ("splice", 275, 0), ("tee", 276, 0), ("lookup_dcookie", 212, 0), ("nfsservctl", 180, 0), ("sethostname", 170, 0),
    ("process_vm_writev", 311, 1), ("fsmount", 432, 0), ("fsconfig", 431, 0), ("fspick", 433, 0),
    ("mount_setattr", 442, 0), ("uselib", 134, 0), ("vhangup", 153, 0), ("pidfd_getfd", 438, 0),
    ("personality", 135, 0x0400000), ("landlock_create_ruleset", 444, 0),
    ("clone with a user namespace", 56, 0x10000011),
    ("clone with a hidden high bit", 56, 0x10000011 | 1 << 32),
]  # fmt: skip


async def test_every_library_of_the_image_works(runtime: str) -> None:
    """The workload of all libraries, with processes, shells and sockets, succeeds in a real kernel."""
    async with make_manager(runtime, limits=LIMITS) as manager, manager.acquire_kernel("worker") as (_kernel, session):
        await manager.put_file(session, WORKLOAD, "workload.py")
        result = await manager.execute_code(session, RUN)
    assert result["outcome"] == "ok", result["error"]
    found = json.loads(result["stdout"].strip().splitlines()[-1])
    assert len(found) > 20
    assert {name: said for name, said in found.items() if said != "ok"} == {}


async def test_each_call_is_denied_by_the_filter() -> None:
    """Under runc every call outside the profile returns EPERM, also with high bits set in its arguments."""
    assert platform.machine() == "x86_64", "the numbers below are those of x86_64"
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
found = {{}}
for name, number, first in {CALLS!r}:
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), ctypes.c_long(first), 0, 0, 0, 0, 0)
    if answer == 0 and name.startswith("clone"): os._exit(0)
    found[name] = ctypes.get_errno() if answer < 0 else "done"
import fcntl, socket
for family in (40, 38, 17, 31, 44, 30, 21, 41):
    try: socket.socket(family, socket.SOCK_RAW).close(); found[f"family {{family}}"] = "done"
    except OSError as error: found[f"family {{family}}"] = error.errno
pty, _ = os.openpty()
try: fcntl.ioctl(pty, 0x5412, b"x"); found["TIOCSTI"] = "done"
except OSError as error: found["TIOCSTI"] = error.errno
answer = libc.syscall(16, pty, ctypes.c_long(1 << 32 | 0x5412), b"x")
found["TIOCSTI with a high bit"] = ctypes.get_errno() if answer < 0 else "done"
print(found)
print(ctypes.get_errno() if libc.syscall(435, 0, 0) < 0 else "done")
"""
    async with make_manager("runc") as manager, manager.acquire_kernel("prober", timeout=60) as (_kernel, session):
        result = await manager.execute_code(session, code)
    assert result["status"] == "ok", result["error"]
    found, clone3 = result["stdout"].splitlines()
    assert {name: answer for name, answer in json.loads(found.replace("'", '"')).items() if answer != EPERM} == {}
    assert clone3 == "38"  # ENOSYS: glibc then uses clone, whose flags a filter can check


@pytest.mark.parametrize(
    "call",
    [
        "page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))",  # int 0x80, getpid as i386 numbers it
        "page.write(bytes([0xB8, 39, 0, 0, 0x40, 0x0F, 0x05, 0xC3]))",  # syscall, getpid as x32 numbers it
    ],
)
async def test_calls_of_other_tables_are_refused(call: str) -> None:
    """System calls of the i386 and x32 tables are denied, or kill the process."""
    program = f"""
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
{call}
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))() > 0)
"""
    code = (
        "import subprocess, sys\n"
        f"done = subprocess.run([sys.executable, '-c', {program!r}], capture_output=True, text=True, timeout=10)\n"
        "print(done.stdout.strip() or 'ended')"
    )
    async with make_manager("runc") as manager, manager.acquire_kernel("prober", timeout=60) as (_kernel, session):
        result = await manager.execute_code(session, code)
    assert result["stdout"].strip() in ("False", "ended"), result


def test_the_profile_is_an_allow_list() -> None:
    """The profile denies by default, and allows fewer calls than a general-purpose profile."""
    profile = json.loads(Policy.load("default").seccomp_json)
    names = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert 200 < len(names) < 300
