"""Policies on real kernels: a sandbox gets what its policy sets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.errors import EngineError, PolicyError
from orchestrator.output.events import CommMessage
from orchestrator.policy.policy import shipped
from tests.conftest import make_manager

COMMAND = str(Path(sys.executable).parent / "cellblock")
WORK = (
    "import numpy, pandas, matplotlib.pyplot as plt\n"
    "frame = pandas.DataFrame({'x': numpy.arange(1000.0)})\n"
    "plt.plot(frame.x); plt.show()\n"
    "float(numpy.linalg.norm(frame.x.to_numpy()))"
)


@asynccontextmanager
async def session_under(
    tmp_path: Path, runtime: str, text: str
) -> AsyncIterator[tuple[AgentKernelManager, KernelSession]]:
    policy = tmp_path / "mine.toml"
    policy.write_text(text)
    manager = make_manager(runtime, max_kernels=1, policy=str(policy))
    async with manager, manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        yield manager, session


@pytest.mark.parametrize("name", shipped())
async def test_every_shipped_policy_runs_data_work(runtime: str, name: str) -> None:
    """Every shipped policy leaves enough memory for numpy, pandas and a picture."""
    if name == "strict" and runtime != "runsc":
        with pytest.raises(PolicyError, match="requires the runtime runsc"):
            async with make_manager(runtime, policy=name) as manager:
                await manager.start()
        return
    async with make_manager(runtime, policy=name) as manager, manager.acquire_kernel("agent") as (_kernel, session):
        result = await manager.execute_code(session, WORK)
    assert result["outcome"] == "ok", result["error"]
    assert float(result["result"]) == pytest.approx(18243.7, abs=0.1)
    assert any("image/png" in output.get("data", {}) for output in result["outputs"])


async def test_data_is_read_and_never_written(runtime: str, tmp_path: Path) -> None:
    """A cell reads a data folder but cannot change it, even where the host's permissions allow it."""
    data = tmp_path / "sales"
    data.mkdir()
    data.chmod(0o777)
    (data / "table.csv").write_text("a,b\n1,2\n")
    (data / "table.csv").chmod(0o666)
    (data / "out").symlink_to("/etc/hostname")
    (data / "up").symlink_to(tmp_path)
    code = """
import errno, json, os
def attempt(change):
    try:
        change()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
found = [attempt(change) for change in (
    lambda: open("/data/sales/table.csv", "a"),
    lambda: open("/data/sales/new", "w"),
    lambda: os.unlink("/data/sales/table.csv"),
    lambda: os.rename("/data/sales/table.csv", "/data/sales/x"),
    lambda: os.chmod("/data/sales/table.csv", 0o777),
    lambda: os.symlink("/", "/data/sales/link"),
    lambda: os.mkdir("/data/sales/folder"),
    lambda: os.utime("/data/sales/table.csv"),
    lambda: os.mkdir("/data/other"),
    lambda: os.listdir("/data/sales/up"),
)]
print(json.dumps([open("/data/sales/table.csv").read(), open("/data/sales/out").read().strip(), *found]))
"""
    async with session_under(tmp_path, runtime, f"[data]\nsales = '{data}'\n") as (manager, session):
        result = await manager.execute_code(session, code)
    table, host_name, *found = json.loads(result["stdout"])
    assert table == "a,b\n1,2\n"
    # links resolve inside the sandbox: one leads to its own file, the target of the other does not exist there
    assert (host_name, found[-1]) == ("sandbox", "ENOENT")
    assert found.count("EROFS") >= 8
    assert set(found) <= {"EROFS", "EPERM", "ENOENT"}  # gVisor checks permissions before the mount
    assert (data / "table.csv").read_text() == "a,b\n1,2\n"


async def test_a_mount_below_a_data_folder_is_not_visible(runtime: str, tmp_path: Path) -> None:
    """A mount below a data folder, which read-only would not cover, is refused at load and never reaches a kernel."""
    below = tmp_path / "sales" / "below"
    below.mkdir(parents=True)
    below.parent.chmod(0o755)
    policy = tmp_path / "mine.toml"
    policy.write_text("[data]\nsales = 'sales'\n")
    async with make_manager(runtime, policy=str(policy)) as manager:
        await manager.start()
        async with mounted_at(below):
            with pytest.raises(PolicyError, match="another file system"):
                make_manager(runtime, policy=str(policy))
            if runtime == "runsc":
                with pytest.raises(EngineError):
                    async with manager.acquire_kernel("agent"):
                        pass
                return
            async with manager.acquire_kernel("agent") as (_kernel, session):
                result = await manager.execute_code(session, "import os; os.listdir('/data/sales/below')")
            assert result["result"] == "[]"


@asynccontextmanager
async def mounted_at(folder: Path) -> AsyncIterator[None]:
    """Mount a writable file system that contains a file."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0777", "cellblock-test", str(folder)]
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        (folder / "secret").write_text("x")
        yield
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", str(folder)], check=True)


async def test_environment_variables_of_the_policy_are_set(runtime: str, tmp_path: Path) -> None:
    """The policy's environment variables reach the kernel."""
    text = "[environment]\nREGION = 'north = \"x\"'\n"
    async with session_under(tmp_path, runtime, text) as (manager, session):
        result = await manager.execute_code(session, "import os; print(os.environ['REGION'], os.environ['HOME'])")
    assert result["stdout"] == 'north = "x" /work\n'


async def test_mime_types_that_the_policy_leaves_out_do_not_arrive(runtime: str, tmp_path: Path) -> None:
    """A mime type that the policy does not list is dropped and reported."""
    text = "[output]\nmime_types = ['text/plain', 'image/png']\n"
    code = "from IPython.display import HTML, display\ndisplay(HTML('<script>1</script>'))"
    async with session_under(tmp_path, runtime, text) as (manager, session):
        result = await manager.execute_code(session, code)
    assert [sorted(output["data"]) for output in result["outputs"]] == [["text/plain"]]
    assert result["mime_dropped"] == ["text/html"]


async def test_comms_arrive_where_the_policy_has_them(runtime: str, tmp_path: Path) -> None:
    """Comm messages become events only if the policy enables channels.comms."""
    code = "from ipykernel.comm import Comm\nc = Comm(target_name='t', data={'n': 1}); c.send({'n': 2})"
    for allowed, expected in ((True, [("comm_open", 1), ("comm_msg", 2)]), (False, [])):
        text = f"[channels]\ncomms = {str(allowed).lower()}\n"
        async with session_under(tmp_path, runtime, text) as (manager, session):
            events = [event async for event in manager.stream_code(session, code)]
        seen = [(event.kind, event.data["n"]) for event in events if isinstance(event, CommMessage)]
        assert seen == expected


def _policy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "policy", *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_policy_list_shows_every_policy() -> None:
    """`policy list` prints the name of every shipped policy."""
    done = _policy("list")
    assert done.returncode == 0
    assert all(name in done.stdout for name in shipped())


def test_policy_check_accepts_the_output_of_policy_show(tmp_path: Path) -> None:
    """The file that `policy show` prints is valid."""
    shown = _policy("show", "strict").stdout
    (tmp_path / "mine.toml").write_text(shown)
    done = _policy("check", str(tmp_path / "mine.toml"))
    assert (done.returncode, "valid" in done.stdout) == (0, True)


def test_policy_check_names_file_line_and_key(tmp_path: Path) -> None:
    """A fault is reported with the file, the line and the key, without a traceback."""
    file = tmp_path / "mine.toml"
    file.write_text("[limits]\nmemory_gb = 4\n")
    done = _policy("check", str(file))
    assert done.returncode == 1
    assert "mine.toml:2: limits.memory_gb" in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


def test_policy_explain_shows_the_container_request(tmp_path: Path) -> None:
    """`policy explain` prints the values of the request that the engine would get."""
    done = _policy("explain", "strict")
    assert done.returncode == 0
    for said in ("Memory=536870912", "Runtime=runsc", "Ulimits.nofile=256", "CpuQuota=50000"):
        assert said in done.stdout
