"""Claims about what a cell finds when it looks for a way out, judged from the facts that ``inside.py`` collects."""

from __future__ import annotations

from collections.abc import Container, Iterable

from orchestrator.isolation.claims import Claim, Verdict, verdict
from orchestrator.isolation.subject import Subject
from orchestrator.limits import MIB

_AT_ONCE = 1.0  # seconds until a connection attempt must have failed
_UNREACHABLE = ("ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED")  # the last one on the sandbox's own loopback
_WRITABLE = ("/work", "/tmp", "/dev/shm")
# Files that the launcher and the probe write.
_OWN_FILES = ("/tmp/ipython/", "/tmp/matplotlib/", "/tmp/inside.py")
_WIRE = "/run/kernel"
_SOCKETS = tuple(f"{_WIRE}/k-{number}" for number in range(1, 6))
# What Docker and gVisor put into every container's /dev. gVisor implements tun and fuse itself; they reach nothing.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts/ptmx")
_GVISOR_DEVICES = ("net/tun", "fuse")
_HARMLESS_NAMES = ("CLICOLOR", "FORCE_COLOR", "PAGER", "TERM", "MPLBACKEND", "GIT_PAGER", "CLICOLOR_FORCE")
_IMAGE_NAMES = ("PATH", "LANG", "HOME", "USER", "HOSTNAME", "PYTHONDONTWRITEBYTECODE", "IPYTHONDIR", "MPLCONFIGDIR")
# How many threads libraries may start: the policy's share of a core, not the host's cores.
_THREAD_NAMES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_MAX_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "LOKY_MAX_CPU_COUNT",
    "PYTHON_CPU_COUNT",
)  # fmt: skip
_REFUSALS = ("EROFS", "EACCES", "EPERM")
_GVISOR_REFUSALS = (
    "ENOSYS",
    "EPERM",
    "EACCES",
    "ENODEV",
    "EINVAL",
    "ENOTSUP",
    "ESRCH",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
)
_GVISOR_ALLOWS = ("keyctl", "process_vm_readv", "ptrace", "sync", "syncfs")  # its kernel handles them in the sandbox
_FILTERING = "2"  # seccomp's mode in /proc/self/status while a filter is active


async def _network(subject: Subject) -> Verdict:
    faults = [f"interface {name}" for name in await subject.fact("interfaces") if name != "lo"]
    for address, (said, seconds) in (await subject.fact("connections")).items():
        if said not in _UNREACHABLE or seconds > _AT_ONCE:
            faults.append(f"{address}: {said} after {seconds} s")
    if await subject.fact("lookup") == "resolved":
        faults.append("names resolve")
    return verdict(faults, "only lo; every connection fails at once; no name resolves")


async def _abstract(subject: Subject) -> Verdict:
    said = await subject.fact("abstract_socket")
    return verdict([] if said == "ECONNREFUSED" else [f"the host's socket: {said}"], "the host's socket: refused")


async def _names(subject: Subject) -> Verdict:
    found = await subject.fact("names")
    faults = [] if found["hostname"] == "sandbox" else [f"host name {found['hostname']}"]
    known = {*_IMAGE_NAMES, *_HARMLESS_NAMES, *_THREAD_NAMES, *subject.policy.environment}
    faults += [f"variable {name}" for name in found["environment"] if name not in known]
    own = subject.kernel.container_name
    faults += found["resolvers"] + [line for line in found["hosts"] if "sandbox" not in line and own not in line]
    return verdict(faults, "host name `sandbox`, no variable, resolver or address of the host")


async def _writable(subject: Subject) -> Verdict:
    folders = (await subject.fact("tree"))["writable"]
    mounts = {target: (kind, options.split(",")) for target, kind, options in await subject.fact("mounts")}
    faults = [f"{folder} is writable" for folder in folders if not _under(folder, _WRITABLE)]
    for target in _WRITABLE:
        kind, options = mounts.get(target, ("not a mount", []))
        if kind != "tmpfs":
            faults.append(f"{target} is {kind}")
        elif not any(option.startswith("size=") for option in options):
            faults.append(f"{target} has no size")
    return verdict(faults, "only /work, /tmp and /dev/shm are writable, each a tmpfs with a size")


async def _sizes(subject: Subject) -> Verdict:
    wanted = subject.policy.tmpfs
    sizes = dict(zip(_WRITABLE, (wanted.work_mb, wanted.tmp_mb, wanted.shm_mb), strict=True))
    found = await subject.fact("sizes")
    faults = [
        f"{path} has {found[path] // MIB} MiB, not {size}" for path, size in sizes.items() if found[path] != size * MIB
    ]
    return verdict(faults, ", ".join(f"{path} {size} MiB" for path, size in sizes.items()))


async def _wire(subject: Subject) -> Verdict:
    answers = await subject.fact("changes")
    faults = [f"{change}: {said}" for change, said in answers.items() if said not in _REFUSALS]
    # The folder's permissions may refuse first. At least one change must reach the read-only file system.
    readonly = sum(said == "EROFS" for said in answers.values())
    if not readonly:
        faults.append("no change was refused because the file system is read-only")
    return verdict(faults, f"{len(answers)} kinds of change refused, {readonly} of them by the read-only file system")


async def _user(subject: Subject) -> Verdict:
    found = await subject.fact("identity")
    first, count = subject.config.uid_base, subject.config.uid_count
    ids = {*found["uids"], *found["gids"], *found["groups"]}
    faults = [f"id {number}" for number in sorted(ids) if not first <= number < first + count]
    if len(ids) != 1:
        faults.append(f"{len(ids)} different ids")
    return verdict(faults, f"uid, gid and group {found['uids'][0]}, from the range {first} to {first + count - 1}")


async def _user_of_its_own(subject: Subject) -> Verdict:
    mine = (await subject.fact("identity"))["uids"][0]
    if subject.neighbour is None:
        return Verdict(False, "there is no second kernel to compare with")
    theirs = (await subject.neighbour.fact("identity"))["uids"][0]
    return Verdict(mine != theirs, f"two live kernels: {mine} and {theirs}")


async def _capabilities(subject: Subject) -> Verdict:
    rows = await subject.fact("status")
    sets = {name: int(value, 16) for name, value in rows.items() if name.startswith("Cap")}
    faults = [f"{name} {value:#x}" for name, value in sets.items() if value]
    # gVisor does not show the flag in /proc; container_has_no_privilege checks it in the engine's record.
    if rows.get("NoNewPrivs", "1" if subject.is_gvisor else "0") != "1":
        faults.append("no_new_privs is not set")
    return verdict(faults, f"{len(sets)} capability sets, all empty")


async def _setuid(subject: Subject) -> Verdict:
    found = (await subject.fact("tree"))["setuid"]
    return verdict(_some(found), "no setuid or setgid file")


async def _core(subject: Subject) -> Verdict:
    found = (await subject.fact("rlimits"))["RLIMIT_CORE"]
    return Verdict(found == [0, 0], f"core limit {found[0]}, hard {found[1]}")


async def _devices(subject: Subject) -> Verdict:
    known = {f"/dev/{name}" for name in (*_DEVICES, *(_GVISOR_DEVICES if subject.is_gvisor else ()))}
    found = (await subject.fact("tree"))["devices"]
    return verdict(_some(sorted({*found} - known)), f"{len(found)} devices, all harmless")


async def _protected(subject: Subject) -> Verdict:
    answers = await subject.fact("protected")
    faults = [f"{what}: {said}" for what, said in answers.items() if said in ("readable", "done")]
    return verdict(faults, f"{len(answers)} paths of /proc and /sys are masked, absent or denied")


async def _watched(subject: Subject) -> Verdict:
    answers = await subject.fact("watched")
    if subject.is_gvisor:  # its kernel makes its own /proc and /sys
        return verdict(await _not_gvisor(subject), "the files of /proc and /sys are gVisor's own")
    faults = [f"read {path}: {said}" for path, said in answers.items() if said == "readable"]
    return verdict(_some(faults), f"{len(answers)} paths of /proc and /sys are masked, absent or denied")


async def _calls(subject: Subject) -> Verdict:
    return await _refused(subject, "calls", "kinds of system call", _GVISOR_ALLOWS)


async def _families(subject: Subject) -> Verdict:
    return await _refused(subject, "families", "socket families")


async def _refused(subject: Subject, fact: str, what: str, gvisor_allows: Container[str] = ()) -> Verdict:
    """Check that every answer of a fact is a refusal: by gVisor's kernel, or by the seccomp filter."""
    answers = await subject.fact(fact)
    if subject.is_gvisor:
        others = {name: said for name, said in answers.items() if name not in gvisor_allows}
        faults = [f"{name}: {said}" for name, said in others.items() if said not in _GVISOR_REFUSALS]
        return verdict(await _not_gvisor(subject) + faults, f"{len(others)} {what}, each refused by gVisor's kernel")
    faults = [f"{name}: {said}" for name, said in answers.items() if said != "EPERM"]
    return verdict(await _not_filtered(subject) + faults, f"{len(answers)} {what}, each EPERM by the filter")


async def _namespaces(subject: Subject) -> Verdict:
    said = await subject.fact("user_namespace")
    if subject.is_gvisor:
        return verdict(await _not_gvisor(subject), f"unshare: {said}, within gVisor; the host creates no namespace")
    faults = [] if said == "EPERM" else [f"unshare: {said}"]
    return verdict(await _not_filtered(subject) + faults, "unshare: EPERM by the filter")


async def _not_filtered(subject: Subject) -> list[str]:
    mode = (await subject.fact("status")).get("Seccomp", "unknown")
    return [] if mode == _FILTERING else [f"seccomp mode {mode}: no filter is active"]


async def _not_gvisor(subject: Subject) -> list[str]:
    said = await subject.fact("kernel_log")
    return [] if said == "gVisor" else [f"the kernel is not gVisor's ({said})"]


async def _empty(subject: Subject) -> Verdict:
    files = (await subject.fact("tree"))["files"]
    faults = _some([path for path in files if not path.startswith(_OWN_FILES)])
    faults += [f"process {name}" for name in await subject.fact("processes") if not name.startswith("python")]
    return verdict(faults, "only the launcher's files and processes")


async def _ipc(subject: Subject) -> Verdict:
    seen = await subject.fact("exists")
    return verdict(["the host's /dev/shm is visible"] if seen else [], "a file in the host's /dev/shm is not visible")


async def _sockets(subject: Subject) -> Verdict:
    found = (await subject.fact("tree"))["sockets"]
    foreign = [path for path in found if path not in _SOCKETS]
    return verdict(_some(foreign), f"only the {len(found)} sockets of its own wire")


async def _oom_score(subject: Subject) -> Verdict:
    asked = (await subject.record())["HostConfig"]["OomScoreAdj"]
    if subject.is_gvisor:  # gVisor's kernel shows another score inside
        return Verdict(asked > 0, f"oom_score_adj {asked}, in the engine's record")
    seen = await subject.fact("oom_score")
    return Verdict(seen > 0, f"oom_score_adj {seen}")


def _under(folder: str, tops: Iterable[str]) -> bool:
    return any(folder == top or folder.startswith(f"{top}/") for top in tops)


def _some(found: list[str]) -> list[str]:
    """Return at most five entries and a count of the rest, so that evidence stays one line."""
    return found[:5] + ([f"and {len(found) - 5} more"] if len(found) > 5 else [])


CLAIMS = (
    Claim(
        "kernel_cannot_reach_network", "X1", "A cell cannot reach any network, and its attempts fail at once.", _network
    ),
    Claim(
        "kernel_cannot_connect_to_abstract_sockets_of_the_host",
        "T3",
        "A cell cannot connect to the host's abstract sockets.",
        _abstract,
    ),
    Claim("kernel_finds_no_foreign_socket", "D1", "A cell sees no socket except those of its own kernel.", _sockets),
    Claim(
        "kernel_knows_no_name_of_the_host",
        "X2",
        "A cell sees no name, address or environment variable of the host.",
        _names,
    ),
    Claim(
        "kernel_writes_to_sized_tmpfs_alone", "H2", "A cell can write only to tmpfs mounts that have a size.", _writable
    ),
    Claim("kernel_tmpfs_have_the_policys_sizes", "H2", "Each tmpfs has the size that the policy sets.", _sizes),
    Claim(
        "kernel_cannot_change_its_wire",
        "O5",
        "A cell cannot change anything in the wire folder that the host mounts.",
        _wire,
    ),
    Claim(
        "kernel_runs_as_nobody", "H6", "A cell runs as one unprivileged user and group of the configured range.", _user
    ),
    Claim("kernel_shares_its_user_with_no_other", "T2", "Two live kernels have different users.", _user_of_its_own),
    Claim(
        "kernel_has_no_capability",
        "H6",
        "Every capability set is empty, and no capability can be gained.",
        _capabilities,
    ),
    Claim("kernel_finds_no_setuid_file", "H6", "No reachable file is setuid or setgid.", _setuid),
    Claim("kernel_dumps_no_core", "H6", "Core dumps are off, and cannot be turned on.", _core),
    Claim("kernel_sees_no_device", "H6", "A cell sees only harmless devices.", _devices),
    Claim(
        "kernel_cannot_steer_the_host",
        "H6",
        "A cell cannot read the paths of /proc and /sys that reveal the host, or write those that configure it.",
        _protected,
    ),
    Claim(
        "kernel_cannot_watch_the_host",
        "H6",
        "A cell cannot read the host's load, disks, devices, locks, memory zones or boot parameters in /proc and /sys.",
        _watched,
    ),
    Claim("kernel_surface_is_small", "H5", "System calls that data work does not need are refused.", _calls),
    Claim(
        "kernel_has_no_odd_socket_family",
        "H5",
        "Socket families other than unix, IP and netlink route are refused.",
        _families,
    ),
    Claim(
        "kernel_makes_no_namespace_on_the_host",
        "H5",
        "A cell cannot create a user namespace in the host's kernel.",
        _namespaces,
    ),
    Claim("kernel_starts_empty", "T1", "A new kernel finds no file and no process of an earlier tenant.", _empty),
    Claim("kernel_has_its_own_ipc", "T3", "A cell cannot reach shared memory of the host or of other sandboxes.", _ipc),
    Claim(
        "kernel_dies_before_the_host", "H4", "When the host runs out of memory, a sandbox is killed first.", _oom_score
    ),
)
