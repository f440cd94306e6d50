"""What a cell finds when it looks for a way out: claims on a live kernel, under each runtime.

Each probe runs in a forked child, so that one that succeeds does not spoil the next.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import docker
import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession
from tests.conftest import make_manager

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = KernelResourceLimits(max_memory_mb=256, max_execution_time=60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime, max_kernels=3, limits=LIMITS) as manager:
        yield manager


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: AgentKernelManager) -> AsyncIterator[KernelSession]:
    async with manager.acquire_kernel("prober", timeout=60) as (_kernel, session):
        yield session


async def probe(manager: AgentKernelManager, session: KernelSession, body: str) -> Any:
    """Run a function body in a forked child of the kernel; return its value, or "TypeName: errno"."""
    lines = "\n".join("        " + line for line in body.strip().splitlines())
    code = f"""
import json, os, subprocess, sys
program = '''
import json, os, socket, ctypes
def attempt():
    try:
{lines}
    except Exception as error:
        return f"{{type(error).__name__}}: {{getattr(error, 'errno', None)}}"
print(json.dumps(attempt()))
'''
print(subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout)
"""
    result = await manager.execute_code(session, code)
    assert result["status"] == "ok", result["error"]
    return json.loads(result["stdout"])


async def inspect(session: KernelSession) -> dict[str, Any]:
    client = docker.from_env()
    try:
        details: dict[str, Any] = client.api.inspect_container(f"cellblock-{session.kernel_id}")
        return details
    finally:
        client.close()


async def test_there_is_no_interface_but_lo(manager: AgentKernelManager, session: KernelSession) -> None:
    """The kernel sees the loopback interface alone."""
    assert await probe(manager, session, "return sorted(name for _, name in socket.if_nameindex())") == ["lo"]


@pytest.mark.parametrize("address", ["1.1.1.1", "169.254.169.254", "172.17.0.1"])
async def test_the_network_fails_at_once(manager: AgentKernelManager, session: KernelSession, address: str) -> None:
    """A connection to anywhere fails within a second; it does not hang."""
    body = f"""
import time
begun = time.monotonic()
try:
    socket.create_connection(({address!r}, 80), timeout=20)
    return "connected"
except OSError as error:
    return [error.errno, time.monotonic() - begun]
"""
    errno, seconds = await probe(manager, session, body)
    assert errno in (101, 113)  # ENETUNREACH under runc, EHOSTUNREACH under runsc
    assert seconds < 1


async def test_names_do_not_resolve(manager: AgentKernelManager, session: KernelSession) -> None:
    """No name server is reachable."""
    assert await probe(manager, session, "return socket.getaddrinfo('example.com', 80)") == "gaierror: -3"


async def test_writes_work_in_the_tmpfs_alone(manager: AgentKernelManager, session: KernelSession) -> None:
    """Of all folders of the image, /work, /tmp and /dev/shm alone take a file."""
    body = """
import stat
taken = []
for top, folders, _ in os.walk('/'):
    folders[:] = [f for f in folders if os.path.join(top, f) not in ('/proc', '/sys')]
    try:
        path = os.path.join(top, 'probe')
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)
        taken.append(top)
    except OSError:
        pass
    depth = top.count('/')
    if depth > 6:
        folders.clear()
return sorted({'/'.join(t.split('/')[:3 if t.startswith('/dev') else 2]) for t in taken})
"""
    assert await probe(manager, session, body) == ["/dev/shm", "/tmp", "/work"]


@pytest.mark.parametrize(
    "operation",
    [
        "open('/run/kernel/x', 'w')",
        "os.symlink('/etc/passwd', '/run/kernel/x')",
        "os.mkfifo('/run/kernel/x')",
        "os.link('/run/kernel/connection.json', '/run/kernel/x')",
        "os.unlink('/run/kernel/k-1')",
        "os.rename('/run/kernel/k-1', '/run/kernel/k-9')",
        "os.chmod('/run/kernel', 0o777)",
        "open('/run/kernel/connection.json', 'a')",
        "socket.socket(socket.AF_UNIX).bind('/run/kernel/x')",
    ],
)
async def test_the_mounted_folder_refuses_every_change(
    manager: AgentKernelManager, session: KernelSession, operation: str
) -> None:
    """No file, link, fifo, socket, removal, renaming or mode change in the folder that the host mounts."""
    said = await probe(manager, session, f"return repr({operation})")
    # EROFS, or EPERM or EACCES where the file's owner is asked first
    assert said.split(": ")[1] in ("30", "1", "13"), said


async def test_the_user_is_nobody(manager: AgentKernelManager, session: KernelSession) -> None:
    """All user and group ids are one unprivileged id, from the configured range."""
    ids = await probe(manager, session, "return [*os.getresuid(), *os.getresgid(), *os.getgroups()]")
    assert len(set(ids)) == 1
    assert 200_000 <= ids[0] < 250_000


async def test_two_live_kernels_have_different_users(manager: AgentKernelManager, session: KernelSession) -> None:
    """What the host's kernel counts per user is counted per container."""
    async with manager.acquire_kernel("second", timeout=60) as (_kernel, second):
        mine = await probe(manager, session, "return os.getuid()")
        assert await probe(manager, second, "return os.getuid()") != mine
    await manager.end_session("second")


async def test_every_capability_set_is_empty(manager: AgentKernelManager, session: KernelSession) -> None:
    """Effective, permitted, inheritable, bounding and ambient: all empty, and no_new_privs is set."""
    body = "return [l.split() for l in open('/proc/self/status') if l.startswith(('Cap', 'NoNewPrivs'))]"
    rows = dict(await probe(manager, session, body))
    assert {name: int(value, 16) for name, value in rows.items() if name.startswith("Cap")} == dict.fromkeys(
        (name for name in rows if name.startswith("Cap")), 0
    )
    # gVisor does not show the flag in /proc; there the engine's own record stands for it
    assert rows.get("NoNewPrivs", "1") == "1"
    assert (await inspect(session))["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]


async def test_no_setuid_file_is_in_reach(manager: AgentKernelManager, session: KernelSession) -> None:
    """No file of the image has a setuid or setgid bit."""
    body = """
found = []
for top, folders, files in os.walk('/'):
    folders[:] = [f for f in folders if os.path.join(top, f) not in ('/proc', '/sys')]
    for name in files:
        try:
            if os.lstat(os.path.join(top, name)).st_mode & 0o6000:
                found.append(os.path.join(top, name))
        except OSError:
            pass
return found
"""
    assert await probe(manager, session, body) == []


async def test_memory_beyond_the_limit_ends_that_kernel_and_no_other(
    manager: AgentKernelManager, session: KernelSession
) -> None:
    """A memory bomb is told that it was out of memory; its neighbour's variables are untouched."""
    await manager.execute_code(session, "kept = 'mine'")
    async with manager.acquire_kernel("bomber", timeout=60) as (_kernel, bomber):
        code = "print('fuse', flush=True)\nhold = []\nwhile True: hold.append(bytearray(b'x' * (8 << 20)))"
        result = await manager.execute_code(bomber, code)
    assert result["outcome"] == "oom"
    assert result["kernel_state"] == "dead"
    assert result["error"]["ename"] == "KernelOutOfMemory"
    assert (await manager.execute_code(session, "kept"))["result"] == "'mine'"


async def test_files_count_against_the_memory_limit(manager: AgentKernelManager, session: KernelSession) -> None:
    """Filling the tmpfs past the memory limit ends the kernel; the host's disk is not involved."""
    async with manager.acquire_kernel("filler", timeout=60) as (_kernel, filler):
        code = "f = open('/work/x', 'wb')\nfor _ in range(512): f.write(bytes(1 << 20)); f.flush()"
        result = await manager.execute_code(filler, code)
    assert result["outcome"] in ("oom", "error")
    assert result["status"] == "error"
    assert (await manager.execute_code(session, "1"))["result"] == "1"


async def test_the_tmpfs_are_sized(manager: AgentKernelManager, session: KernelSession) -> None:
    """/work, /tmp and /dev/shm have the policy's sizes."""
    body = """
sizes = {}
for path in ('/work', '/tmp', '/dev/shm'):
    info = os.statvfs(path)
    sizes[path] = info.f_blocks * info.f_frsize >> 20
return sizes
"""
    assert await probe(manager, session, body) == {"/work": 512, "/tmp": 64, "/dev/shm": 64}


async def test_processes_are_limited(runtime: str) -> None:
    """A fork bomb runs into EAGAIN well below the host's own limits, and the kernel lives."""
    body = """
children = 0
try:
    for _ in range(2000):
        if os.fork() == 0:
            import time
            time.sleep(5)
            os._exit(0)
        children += 1
except OSError as error:
    return [children, error.errno]
return [children, 0]
"""
    async with make_manager(runtime) as manager, manager.acquire_kernel("forker", timeout=60) as (_kernel, session):
        children, errno = await probe(manager, session, body)
        assert errno == 11  # EAGAIN
        assert children < 300
        assert (await manager.execute_code(session, "1"))["result"] == "1"


async def test_nothing_of_the_host_is_in_the_environment(manager: AgentKernelManager, session: KernelSession) -> None:
    """The environment holds what the image and the host's configuration put there, and no host name."""
    body = "return sorted(os.environ)"
    known = {"PATH", "LANG", "HOME", "USER", "HOSTNAME", "PYTHONDONTWRITEBYTECODE", "IPYTHONDIR", "MPLCONFIGDIR"}
    names = set(await probe(manager, session, body))
    assert {name for name in names if "HOST" in name} <= {"HOSTNAME"}
    assert not any("PROXY" in name.upper() or "CERT" in name for name in names)
    assert known & names >= {"PATH", "HOME", "MPLCONFIGDIR"}
    assert await probe(manager, session, "return socket.gethostname()") == "sandbox"


async def test_the_engine_was_asked_for_every_lock(session: KernelSession, runtime: str) -> None:
    """The live container's configuration: what CIS section 5 asks, as the engine itself reports it."""
    details = await inspect(session)
    config = details["HostConfig"]
    assert config["Privileged"] is False
    assert config["ReadonlyRootfs"] is True
    assert config["NetworkMode"] == "none"
    assert config["CapDrop"] == ["ALL"]
    assert not config["CapAdd"]
    assert config["IpcMode"] == "private"
    assert config["PidMode"] == ""
    assert config["Memory"] == config["MemorySwap"] == 256 << 20
    assert config["PidsLimit"] > 0
    assert config["CpuQuota"] > 0
    assert config["Runtime"] == runtime
    assert not config["Devices"]
    assert not config["Binds"]
    assert [(mount["Destination"], mount["RW"]) for mount in details["Mounts"]] == [("/run/kernel", False)]
    assert all("size=" in options for options in config["Tmpfs"].values())
