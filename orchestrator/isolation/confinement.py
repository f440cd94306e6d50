"""Claims on what a cell finds when it looks for a way out: judged from the facts that ``inside.py`` brings."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.isolation.claims import Claim, Verdict, verdict
from orchestrator.isolation.subject import Subject
from orchestrator.limits import MIB

_AT_ONCE = 1.0  # seconds in which a connection must have failed
_UNREACHABLE = ("ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED")  # the last on the sandbox's own loopback
_WRITABLE = ("/work", "/tmp", "/dev/shm")
# The launcher's own files, and the probe's.
_OWN_FILES = ("/tmp/ipython/", "/tmp/matplotlib/", "/tmp/inside.py")
_WIRE = "/run/kernel"
_SOCKETS = tuple(f"{_WIRE}/k-{number}" for number in range(1, 6))
# What Docker and gVisor put into every container's /dev. gVisor's tun and fuse are its own, and reach nothing.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts/ptmx")
_GVISOR_DEVICES = ("net/tun", "fuse")
_HARMLESS_NAMES = ("CLICOLOR", "FORCE_COLOR", "PAGER", "TERM", "MPLBACKEND", "GIT_PAGER", "CLICOLOR_FORCE")
_IMAGE_NAMES = ("PATH", "LANG", "HOME", "USER", "HOSTNAME", "PYTHONDONTWRITEBYTECODE", "IPYTHONDIR", "MPLCONFIGDIR")
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
_GVISOR_ALLOWS = ("keyctl", "process_vm_readv", "ptrace")  # answered by gVisor's kernel, of the sandbox's own
_FILTERING = "2"  # seccomp's mode in /proc/self/status, when a filter is in force


async def _network(subject: Subject) -> Verdict:
    faults = [f"interface {name}" for name in await subject.fact("interfaces") if name != "lo"]
    for address, (said, seconds) in (await subject.fact("connections")).items():
        if said not in _UNREACHABLE or seconds > _AT_ONCE:
            faults.append(f"{address}: {said} after {seconds} s")
    if await subject.fact("lookup") == "resolved":
        faults.append("names resolve")
    return verdict(faults, "lo alone; every connection fails at once; no name resolves")


async def _abstract(subject: Subject) -> Verdict:
    said = await subject.fact("abstract_socket")
    return verdict([] if said == "ECONNREFUSED" else [f"the host's socket: {said}"], "the host's socket: refused")


async def _names(subject: Subject) -> Verdict:
    found = await subject.fact("names")
    faults = [] if found["hostname"] == "sandbox" else [f"host name {found['hostname']}"]
    known = {*_IMAGE_NAMES, *_HARMLESS_NAMES, *subject.policy.environment}
    faults += [f"variable {name}" for name in found["environment"] if name not in known]
    own = subject.kernel.container_name
    faults += found["resolvers"] + [line for line in found["hosts"] if "sandbox" not in line and own not in line]
    return verdict(faults, "host name `sandbox`, no variable, resolver or address of the host")


async def _writable(subject: Subject) -> Verdict:
    folders = (await subject.fact("tree"))["writable"]
    mounts = {target: (kind, options.split(",")) for target, kind, options in await subject.fact("mounts")}
    faults = [f"{folder} takes files" for folder in folders if not _under(folder, _WRITABLE)]
    for target in _WRITABLE:
        kind, options = mounts.get(target, ("nothing of its own", []))
        if kind != "tmpfs":
            faults.append(f"{target} is {kind}")
        elif not any(option.startswith("size=") for option in options):
            faults.append(f"{target} has no size")
    return verdict(faults, "a tmpfs each on /work, /tmp and /dev/shm takes files, and nothing else does")


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
    # The folder's permissions refuse too; that the file system does shows where they are not asked first.
    readonly = sum(said == "EROFS" for said in answers.values())
    if not readonly:
        faults.append("no change was refused because the file system is read-only")
    return verdict(faults, f"{len(answers)} kinds of change refused, {readonly} of them by a read-only file system")


async def _user(subject: Subject) -> Verdict:
    found = await subject.fact("identity")
    first, count = subject.config.uid_base, subject.config.uid_count
    ids = {*found["uids"], *found["gids"], *found["groups"]}
    faults = [f"id {number}" for number in sorted(ids) if not first <= number < first + count]
    if len(ids) != 1:
        faults.append(f"{len(ids)} different ids")
    return verdict(faults, f"uid, gid and group {found['uids'][0]}, of {first} to {first + count - 1}")


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
    # gVisor does not show the flag in /proc; there the engine's record stands for it.
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
    return verdict(faults, f"{len(answers)} paths of /proc and /sys are masked, absent or refuse")


async def _calls(subject: Subject) -> Verdict:
    answers = await subject.fact("calls")
    if subject.is_gvisor:
        refused = {name: said for name, said in answers.items() if name not in _GVISOR_ALLOWS}
        faults = [f"{name}: {said}" for name, said in refused.items() if said not in _GVISOR_REFUSALS]
        return verdict(await _not_gvisor(subject) + faults, "gVisor's kernel answers, not the host's")
    faults = [f"{name}: {said}" for name, said in answers.items() if said != "EPERM"]
    return verdict(await _not_filtered(subject) + faults, f"{len(answers)} kinds of call, each EPERM by the filter")


async def _families(subject: Subject) -> Verdict:
    answers = await subject.fact("families")
    if subject.is_gvisor:
        faults = [f"{name}: {said}" for name, said in answers.items() if said not in _GVISOR_REFUSALS]
        return verdict(await _not_gvisor(subject) + faults, f"{len(answers)} families, gVisor has none of them")
    faults = [f"{name}: {said}" for name, said in answers.items() if said != "EPERM"]
    return verdict(await _not_filtered(subject) + faults, f"{len(answers)} families, each EPERM by the filter")


async def _namespaces(subject: Subject) -> Verdict:
    said = await subject.fact("user_namespace")
    if subject.is_gvisor:
        return verdict(await _not_gvisor(subject), f"unshare: {said}, of gVisor's own; the host makes none")
    faults = [] if said == "EPERM" else [f"unshare: {said}"]
    return verdict(await _not_filtered(subject) + faults, "unshare: EPERM by the filter")


async def _not_filtered(subject: Subject) -> list[str]:
    mode = (await subject.fact("status")).get("Seccomp", "unknown")
    return [] if mode == _FILTERING else [f"seccomp mode {mode}: no filter is in force"]


async def _not_gvisor(subject: Subject) -> list[str]:
    said = await subject.fact("kernel_log")
    return [] if said == "gVisor" else [f"the kernel that answers is not gVisor's ({said})"]


async def _empty(subject: Subject) -> Verdict:
    files = (await subject.fact("tree"))["files"]
    faults = _some([path for path in files if not path.startswith(_OWN_FILES)])
    faults += [f"process {name}" for name in await subject.fact("processes") if not name.startswith("python")]
    return verdict(faults, "no file and no process but the launcher's")


async def _ipc(subject: Subject) -> Verdict:
    seen = await subject.fact("exists")
    return verdict(["the host's /dev/shm is in sight"] if seen else [], "a file in the host's /dev/shm is not seen")


async def _sockets(subject: Subject) -> Verdict:
    found = (await subject.fact("tree"))["sockets"]
    foreign = [path for path in found if path not in _SOCKETS]
    return verdict(_some(foreign), f"the {len(found)} sockets of its own wire, and no other")


async def _oom_score(subject: Subject) -> Verdict:
    asked = (await subject.record())["HostConfig"]["OomScoreAdj"]
    if subject.is_gvisor:  # its kernel shows a score of its own inside
        return Verdict(asked > 0, f"oom_score_adj {asked}, as the engine has it")
    seen = await subject.fact("oom_score")
    return Verdict(seen > 0, f"oom_score_adj {seen}")


def _under(folder: str, tops: Iterable[str]) -> bool:
    return any(folder == top or folder.startswith(f"{top}/") for top in tops)


def _some(found: list[str]) -> list[str]:
    """The first few of what was found, so that evidence stays one line."""
    return found[:5] + ([f"and {len(found) - 5} more"] if len(found) > 5 else [])


CLAIMS = (
    Claim("kernel_cannot_reach_network", "X1", "A cell reaches no network, and learns so at once.", _network),
    Claim("kernel_cannot_dial_the_hosts_abstract_sockets", "T3", "The host's abstract sockets are out of reach.",
          _abstract),
    Claim("kernel_finds_no_foreign_socket", "D1", "No socket is in sight but the kernel's own wire.", _sockets),
    Claim("kernel_knows_no_name_of_the_host", "X2", "No name, address or variable of the host is in sight.", _names),
    Claim("kernel_writes_to_sized_tmpfs_alone", "H2", "Whatever a cell can write lies in a sized tmpfs.", _writable),
    Claim("kernel_tmpfs_have_the_policys_sizes", "H2", "The tmpfs have the sizes that the policy says.", _sizes),
    Claim("kernel_cannot_change_its_wire", "O5", "The folder that the host mounts takes no change of any kind.", _wire),
    Claim("kernel_runs_as_nobody", "H6", "Its only user and group is an unprivileged one of the range.", _user),
    Claim("kernel_shares_its_user_with_no_other", "T2", "Two live kernels have different users.", _user_of_its_own),
    Claim("kernel_has_no_capability", "H6", "Every capability set is empty, and none can be gained.", _capabilities),
    Claim("kernel_finds_no_setuid_file", "H6", "No file in reach is setuid or setgid.", _setuid),
    Claim("kernel_dumps_no_core", "H6", "Core dumps are off, and cannot be turned on.", _core),
    Claim("kernel_sees_no_device", "H6", "No device is in sight but the harmless ones.", _devices),
    Claim("kernel_cannot_steer_the_host", "H6", "Paths of /proc and /sys that tell of or steer the host are shut.",
          _protected),
    Claim("kernel_surface_is_small", "H5", "System calls that a data kernel has no use for are refused.", _calls),
    Claim("kernel_has_no_odd_socket_family", "H5", "Socket families beyond unix, IP and netlink's routes are refused.",
          _families),
    Claim("kernel_makes_no_namespace_on_the_host", "H5", "A cell makes no user namespace of the host's kernel.",
          _namespaces),
    Claim("kernel_starts_empty", "T1", "Nothing of an earlier tenant is there: no file, no process.", _empty),
    Claim("kernel_has_its_own_ipc", "T3", "Shared memory of the host and of others is out of reach.", _ipc),
    Claim("kernel_dies_before_the_host", "H4", "When the host runs out of memory, a sandbox goes first.", _oom_score),
)  # fmt: skip
