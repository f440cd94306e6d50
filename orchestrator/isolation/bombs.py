"""Claims about a cell that exhausts a resource: the limit stops it, the result says why, and no neighbour is harmed."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from pathlib import Path
from typing import Any

from orchestrator.isolation.claims import Claim, Verdict, verdict
from orchestrator.isolation.measure import daemon_cpu, processes_of, quiet_p99, spent, watch
from orchestrator.isolation.subject import Subject
from orchestrator.limits import MIB
from orchestrator.output.events import ExecutionResult

_HOLD = 0.8  # seconds for which a bomb holds what it took
_OVERSHOOT = 32  # how far beyond the limit a bomb goes before it stops: then the limit did not hold
_OVERFLOW = 16  # MiB that a cell tries to write beyond the size of a tmpfs
_DAEMON_SHARE = 0.05  # of a core: what the engine and its shims may use while a container floods its output
_FLOOD = 2.0  # seconds for which a container floods its output
_REMOVED = 6.0  # seconds until a paused kernel must be gone; killing it without unpausing takes 10 s
_EAGAIN, _EMFILE = errno.EAGAIN, errno.EMFILE

# Each bomb takes as much as it can, holds it, releases it, and prints [the amount, the errno of the refusal].
_FORKS = """
end = time.monotonic() + {hold}
def take():
    child = os.fork()
    if child == 0:
        while time.monotonic() < end: pass
        os._exit(0)
    return child
give_back = lambda child: os.waitpid(child, 0)
"""
_THREADS = """
import threading
over = threading.Event()
def take():
    thread = threading.Thread(target=over.wait)
    try: thread.start()
    except RuntimeError: raise OSError(errno.EAGAIN, "no more threads")
    return thread
def give_back(thread):
    over.set()
    thread.join()
"""
_DESCRIPTORS = "take, give_back = lambda: os.dup(0), os.close"
_INOTIFY = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def take():
    descriptor = libc.inotify_init()
    if descriptor < 0: raise OSError(ctypes.get_errno(), "no more instances")
    return descriptor
give_back = os.close
"""
_COUNT = """
import errno, os, time
{bomb}
taken, refusal = [], 0
try:
    while len(taken) < {most}: taken.append(take())
except OSError as error:
    refusal = error.errno
time.sleep({hold})
for one in taken: give_back(one)
print([len(taken), refusal])
"""
_ONE_INOTIFY = "import ctypes, os; d = ctypes.CDLL(None).inotify_init(); print(d >= 0); _ = d >= 0 and os.close(d)"
_MEMORY = """
held, pages = [], b"x" * 256
while len(held) < {most}:
    held.append(bytearray(1 << 20))
    held[-1][::4096] = pages
print(len(held))
"""
_CHILD_MEMORY = """
import subprocess, sys
program = '''{program}'''
print(subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode)
"""
_FILES = """
import errno
found = {{}}
for folder, most in {folders}:
    written, refusal = 0, 0
    try:
        with open(folder + "/bomb", "wb", buffering=0) as file:
            while written < most: written += file.write(bytes(1 << 20))
    except OSError as error:
        refusal = error.errno
    found[folder] = [written, refusal]
print(found)
"""
_OUTPUT = """
import os, subprocess, sys, time
seconds, block = {seconds}, b"x" * 65536
flood = "import os, time; end = time.monotonic() + %s\\nwhile time.monotonic() < end: os.write(%s, b'x' * 65536)"
children = [subprocess.Popen([sys.executable, "-I", "-S", "-c", flood % (seconds, way)]) for way in (1, 2)]
ways, end = [], time.monotonic() + seconds
for path in ("/proc/1/fd/0", "/proc/1/fd/1", "/proc/1/fd/2", "/dev/console"):
    try: ways.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError: pass
while time.monotonic() < end:
    written = 0
    for way in ways:
        try: written += os.write(way, block)
        except OSError: pass
    if not written: time.sleep(0.001)
for child in children: child.wait()
"""


def _bomb(bomb: str, most: int) -> str:
    """Return a cell that runs a bomb in a small child process, which forks quickly under gVisor too."""
    program = _COUNT.format(bomb=bomb.format(hold=_HOLD), most=most, hold=_HOLD)
    return f"import subprocess, sys\n_ = subprocess.run([sys.executable, '-I', '-S', '-c', {program!r}], check=True)"


async def _is_refused(subject: Subject, bomb: str, limit: int, refusal: int) -> Verdict:
    """Run a bomb: the kernel must refuse it at the limit with ``refusal``, and the kernel must survive."""
    code = _bomb(bomb, limit + _OVERSHOOT)
    result, cost, faults = await _beside_a_neighbour(subject, code)
    if result.outcome != "ok":
        return Verdict(False, f"the cell ended as {result.outcome}: {_said(result)}")
    taken, refused = json.loads(result.stdout)
    if refused != refusal or not limit // 2 <= taken <= limit:
        faults.append(f"the bomb took {taken}, then got {errno.errorcode.get(refused, 'no error')}")
    if (await subject.run("6 * 7")).result != "42":
        faults.append("the kernel does not answer after the bomb")
    return verdict(faults, f"{errno.errorcode[refusal]} after {taken}; {cost}")


async def _forks(subject: Subject) -> Verdict:
    return await _is_refused(subject, _FORKS, subject.policy.limits.pids, _EAGAIN)


async def _threads(subject: Subject) -> Verdict:
    return await _is_refused(subject, _THREADS, subject.policy.limits.pids, _EAGAIN)


async def _descriptors(subject: Subject) -> Verdict:
    return await _is_refused(subject, _DESCRIPTORS, subject.policy.limits.open_files, _EMFILE)


async def _inotify(subject: Subject) -> Verdict:
    """Hold as many inotify instances as possible in one kernel: a neighbour must still get one."""
    assert subject.neighbour is not None
    code = _bomb(_INOTIFY, subject.policy.limits.open_files + _OVERSHOOT)
    bomb = asyncio.create_task(subject.run(code))
    try:
        await asyncio.sleep(_HOLD)
        beside = await subject.neighbour.run(_ONE_INOTIFY)
    finally:
        result = await bomb
    mine, theirs = [(await kernel.fact("identity"))["uids"][0] for kernel in (subject, subject.neighbour)]
    faults = [] if beside.stdout.strip() == "True" else ["the neighbour cannot get an inotify instance"]
    faults += ["the neighbour has the same user, and inotify instances are counted per user"] if mine == theirs else []
    if result.outcome != "ok":
        return Verdict(False, f"the cell ended as {result.outcome}: {_said(result)}")
    taken, refused = json.loads(result.stdout)
    return verdict(faults, f"{errno.errorcode.get(refused, 'no refusal')} after {taken}; the neighbour still gets one")


async def _memory(subject: Subject) -> Verdict:
    code = _MEMORY.format(most=subject.limits.max_memory_mb + _OVERSHOOT)
    result, cost, faults = await _beside_a_neighbour(subject, code)
    if result.outcome != "oom" or result.kernel_state != "dead":
        faults.append(f"the cell ended as {result.outcome}, the kernel {result.kernel_state}")
    return verdict(faults, f"reported as oom after {result.duration_s:.1f} s; {cost}")


async def _child_memory(subject: Subject) -> Verdict:
    """Exceed the limit in a child: the cell must see the child killed, or the result must report ``oom``."""
    result, cost, faults = await _beside_a_neighbour(
        subject, _CHILD_MEMORY.format(program=_MEMORY.format(most=subject.limits.max_memory_mb + _OVERSHOOT))
    )
    reported = result.outcome == "oom" or (result.outcome == "ok" and result.stdout.strip() == "-9")
    if not reported:
        faults.append(f"the cell ended as {result.outcome}, and its child ended with {result.stdout.strip()!r}")
    return verdict(faults, f"the cell ended as {result.outcome}, its child killed; {cost}")


async def _files(subject: Subject) -> Verdict:
    """Fill each tmpfs: the write must fail at the tmpfs's size, or the kernel must run out of memory."""
    sizes = subject.policy.tmpfs
    folders = {"/work": sizes.work_mb, "/tmp": sizes.tmp_mb, "/dev/shm": sizes.shm_mb}
    wanted = [(folder, (size + _OVERFLOW) * MIB) for folder, size in folders.items()]
    result, cost, faults = await _beside_a_neighbour(subject, _FILES.format(folders=wanted))
    if result.outcome == "oom":
        return verdict(faults, f"out of memory, reported as oom; {cost}")
    if result.outcome != "ok":
        return Verdict(False, f"the cell ended as {result.outcome}: {_said(result)}")
    found: dict[str, list[int]] = json.loads(result.stdout.replace("'", '"'))
    for folder, (written, refusal) in found.items():
        if refusal != errno.ENOSPC or written > folders[folder] * MIB:
            faults.append(f"{folder} took {written // MIB} MiB")
    said = ", ".join(f"{folder} {written // MIB} MiB" for folder, (written, _) in found.items())
    return verdict(faults, f"ENOSPC at {said}; {cost}")


async def _beside_a_neighbour(subject: Subject, code: str) -> tuple[ExecutionResult, str, list[str]]:
    """Run a bomb while a neighbour runs cells; return the result, a description of its cost, and the faults."""
    neighbour = subject.neighbour
    assert neighbour is not None
    before = await quiet_p99(neighbour)
    async with watch(neighbour) as cost:
        result = await subject.run(code)
    return result, f"neighbour p99 {cost.p99 / before:.1f} times", cost.errors + cost.slowdown(before)


async def _output(subject: Subject) -> Verdict:
    """Write to every descriptor that may lead to the container's log: disk use and engine load must not grow."""
    log = Path((await subject.record()).get("LogPath") or "/nonexistent")
    size, cpu, begun = _size(log), daemon_cpu(), time.monotonic()
    result = await subject.run(_OUTPUT.format(seconds=_FLOOD), seconds=_FLOOD + 20)
    after, seconds = daemon_cpu(), time.monotonic() - begun
    grown = _size(log) - size
    faults = [f"the log grew by {grown} bytes"] if grown else []
    if result.outcome not in ("ok", "timeout"):
        faults.append(f"the cell ended as {result.outcome}: {_said(result)}")
    if cpu is None or after is None:
        return verdict(faults, "disk +0; the engine's processes are not visible, so their CPU was not measured")
    share = spent(cpu, after) / seconds
    if share > _DAEMON_SHARE:
        faults.append(f"the engine and its shims used {100 * share:.0f} % of a core")
    return verdict(faults, f"disk +0; the engine and its shims used {100 * share:.1f} % of a core")


async def _paused(subject: Subject) -> Verdict:
    """Pause a container, then stop its kernel: the container and its shim must both disappear."""
    engine = subject.instance.engine
    identifier = (await subject.record())["Id"]
    await engine.retry(engine.client.api.pause, identifier)
    if not await asyncio.to_thread(processes_of, identifier):
        return Verdict(True, "the engine's processes are not visible, so its shims were not checked")
    begun = time.monotonic()
    await subject.stop()
    while left := await asyncio.to_thread(processes_of, identifier):
        if time.monotonic() - begun > _REMOVED:
            return Verdict(False, f"still running after {_REMOVED:.0f} s: {', '.join(left)}")
        await asyncio.sleep(0.1)
    return Verdict(True, f"container and shim gone after {time.monotonic() - begun:.1f} s")


async def _input(subject: Subject) -> Verdict:
    """Ask for input: the cell must fail at once instead of hanging its caller."""
    if subject.policy.channels.stdin:
        return Verdict(True, "the policy lets a cell ask for input")
    result = await subject.run("input('password: ')", seconds=1)
    name = result.error.ename if result.error else "nothing"
    return Verdict(name == "StdinNotImplementedError", f"input() ended with {name} after {result.duration_s:.2f} s")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _said(result: ExecutionResult) -> str:
    return "" if result.error is None else f"{result.error.ename}: {result.error.evalue}"[:200]


def _attack(name: str, row: str, promise: str, probe: Any) -> Claim:
    return Claim(name, row, promise, probe, attacks=True)


CLAIMS = (
    _attack("fork_bomb_hits_a_wall", "H3", "A fork bomb fails at the process limit, zombies included.", _forks),
    _attack(
        "thread_bomb_hits_a_wall", "H3", "A thread bomb fails at the process limit and harms no neighbour.", _threads
    ),
    _attack("descriptor_bomb_hits_a_wall", "H3", "Opening files fails at the descriptor limit.", _descriptors),
    _attack(
        "inotify_bomb_leaves_the_neighbour_its_own",
        "T2",
        "A kernel that exhausts a per-user resource takes none of its neighbour's share.",
        _inotify,
    ),
    _attack(
        "memory_bomb_ends_its_own_kernel",
        "H4",
        "A kernel that exceeds its memory limit dies alone, and its cell reports oom.",
        _memory,
    ),
    _attack(
        "childs_memory_counts",
        "H4",
        "A child process that exceeds the memory limit is killed, and the cell can see it.",
        _child_memory,
    ),
    _attack(
        "files_hit_a_wall", "H2", "Writing files fails at the size of the tmpfs, and nothing reaches a disk.", _files
    ),
    _attack(
        "container_output_costs_nothing",
        "H1",
        "Endless output of a container uses no disk, and less than 5 % of a core in the engine.",
        _output,
    ),
    _attack("paused_kernel_is_removed_whole", "D3", "A paused kernel is removed together with its shim.", _paused),
    Claim("input_fails_at_once", "O6", "A cell that asks for input fails at once, and its caller never hangs.", _input),
)
