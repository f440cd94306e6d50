"""The sandbox as a machine: names, clocks, fonts, room for temporary files, and what it shows of the host."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SettingsError
from orchestrator.outcome import Exit, Outcome
from orchestrator.settings import private_folder
from tests.conftest import one_session

NAMES = """
import getpass, grp, mimetypes, os, pwd, socket, subprocess
def shell(command): return subprocess.run(command, shell=True, capture_output=True, text=True).stdout.strip()
print({
    "name": (getpass.getuser(), pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name, shell("whoami"),
             shell("id -gn")),
    "home": (os.path.expanduser("~"), os.path.expanduser("~sandbox"), shell("echo ~sandbox"), str(os.getuid() > 1000)),
    "hosts": [socket.gethostbyname("localhost"), socket.getaddrinfo("localhost", "http", socket.AF_INET)[0][4],
              bool(socket.gethostbyname(socket.gethostname()))],
    "numbers": (socket.getservbyname("https"), socket.getprotobyname("icmp")),
    "types": [mimetypes.guess_type(f"a.{end}")[0] for end in ("xlsx", "csv", "webp")],
})
"""
KNOWN_NAMES = {
    "name": ("sandbox",) * 5,
    "home": ("/work", "/work", "/work", "True"),
    "hosts": ["127.0.0.1", ("127.0.0.1", 80), True],
    "numbers": (443, 1),
    "types": ["application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "text/csv", "image/webp"],
}
ZONES = """
import datetime, os, subprocess, time, zoneinfo
def shell(command): return subprocess.run(command, shell=True, capture_output=True, text=True).stdout.strip()
os.environ["TZ"] = "Asia/Tokyo"; time.tzset()
found = [time.tzname[0], datetime.datetime.now().astimezone().utcoffset().total_seconds() / 3600, shell("date +%z"),
         shell("TZ=Asia/Kolkata date +%z"), "Europe/Berlin" in zoneinfo.available_timezones()]
del os.environ["TZ"]; time.tzset()
print([*found, shell("date +%z")])
"""
CORES = """
import concurrent.futures, multiprocessing, os, psutil, subprocess, sys
def python(*options):
    code = "import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))"
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True).stdout.strip()
print([os.cpu_count(), multiprocessing.cpu_count(), len(os.sched_getaffinity(0)), os.sysconf("SC_NPROCESSORS_ONLN"),
       psutil.cpu_count(), multiprocessing.Pool()._processes, concurrent.futures.ProcessPoolExecutor()._max_workers,
       int(subprocess.run("nproc", capture_output=True).stdout), python(), python("-I"),
       os.environ["OPENBLAS_NUM_THREADS"], os.environ["POLARS_MAX_THREADS"], os.environ["NUMEXPR_MAX_THREADS"]])
"""
FONTS = """
import logging, warnings
import matplotlib.pyplot as plt
logging.getLogger("matplotlib.font_manager").setLevel("ERROR")
heard = []
class Handler(logging.Handler):
    def emit(self, record): heard.append(record.getMessage())
logging.getLogger("matplotlib.mathtext").addHandler(Handler())
texts = ["中文销售数据", "繁體銷售", "ひらカタ漢字", "한글판매", "שלום", "مرحبا", "สวัสดี",
         "नमस्ते", "😀📈🚀✅", "中文 $R^2$ 数据"]
def boxes(**font):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = plt.figure(figsize=(3, 3))
        for text in texts: figure.text(0, 0, text, **font)
        figure.savefig("/tmp/figure.png"); plt.close(figure)
    return [str(warning.message) for warning in caught if "missing from font" in str(warning.message)]
found = [boxes(), boxes(fontfamily="serif"), boxes(fontfamily="SimHei")]
plt.rcParams["font.sans-serif"] = ["Arial"]
print([*found, boxes(), [line for line in heard if "does not have a glyph" in line]])
"""
BIG = """
import numpy, os, pandas
values = numpy.random.default_rng(0).integers(97, 123, (75_000, 1000), dtype="uint8")
frame = pandas.DataFrame({"text": [bytes(row).decode() for row in values]})
del values
frame.to_excel("big.xlsx", index=False)
print(os.path.getsize("big.xlsx") > 2**25)
"""
HOST_NUMBERS = """
import os
def size(path):
    try: return len(os.listdir(path)) if os.path.isdir(path) else len(open(path, "rb").read(1))
    except OSError: return 0
known = {"cpuinfo", "dma", "execdomains", "filesystems", "meminfo", "mounts", "net", "self", "stat", "sys",
         "thread-self", "uptime", "version", "sysvipc"}
fine = ("cgroup", "erofs", "tmpfs")  # its own, and features of Linux
print(sorted(name for name in os.listdir("/proc") if not name.isdigit() and name not in known and size("/proc/" + name))
      + [name for name in os.listdir("/sys") if name not in ("class", "fs") and size("/sys/" + name)]
      + [name for name in os.listdir("/sys/fs") if name not in fine and size("/sys/fs/" + name)])
"""
LIBRARIES = """
import os, psutil, warnings
warnings.simplefilter("ignore")
names = '''getloadavg disk_io_counters disk_partitions virtual_memory swap_memory boot_time cpu_stats cpu_freq cpu_times
    cpu_percent net_io_counters net_if_addrs sensors_temperatures sensors_battery sensors_fans users pids'''
for name in names.split(): getattr(psutil, name)()
print(len(os.getloadavg()))
"""
SYNCS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def number(answer): return ctypes.get_errno() if answer < 0 else 0
file = os.open("/usr/bin/env", os.O_RDONLY)
print([number(libc.syscall(162)), number(libc.syscall(306, 0)), number(libc.syscall(221, file, 0, 0, 4)),
       number(libc.syscall(221, file, 0, 0, 4 | 1 << 32)), number(libc.syscall(221, file, 0, 0, 2))])
os.sync(), os.fsync(os.open("/work/a", os.O_CREAT | os.O_WRONLY))
"""
SOCKETS = """
import socket
held, sent = [], 0
server = socket.create_server(("127.0.0.1", 0))
for _ in range(40):
    one = socket.create_connection(server.getsockname()); other, _ = server.accept()
    for end in (one, other):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    one.setblocking(False)
    held += [one, other]
    try:
        while True: sent += one.send(bytes(65536))
    except BlockingIOError: pass
print(sent >> 20)
"""


async def _printed(runtime: str, code: str) -> Any:
    async with one_session(runtime) as (manager, session):
        result = await manager.execute_code(session, code)
    assert result["outcome"] == "ok", result["error"]
    return ast.literal_eval(result["stdout"])


async def test_users_hosts_and_services_have_names(runtime: str) -> None:
    """The sandbox's user has a name, localhost and the host name resolve, and services and MIME types are known."""
    assert await _printed(runtime, NAMES) == KNOWN_NAMES


async def test_time_zones_work_in_the_c_library_too(runtime: str) -> None:
    """TZ is understood by Python and by programs, and the sandbox's own zone is UTC."""
    assert await _printed(runtime, ZONES) == ["JST", 9.0, "+0900", "+0530", True, "+0000"]


async def test_cores_are_the_policys(runtime: str) -> None:
    """What counts cores or starts a thread for each sees the policy's share of a core, and not the host's cores."""
    assert await _printed(runtime, CORES) == [1, 1, 1, 1, 1, 1, 1, 1, "1 1", "1 1", "1", "1", "1"]


async def test_texts_of_many_scripts_are_drawn(runtime: str) -> None:
    """Titles of ten scripts are glyphs, in every font family, in one that is not there, and beside a formula."""
    assert await _printed(runtime, FONTS) == [[], [], [], [], []]


async def test_a_large_workbook_has_room(runtime: str) -> None:
    """A frame of 75 MB becomes a workbook under the default policy, whose libraries first write it to /tmp."""
    assert await _printed(runtime, BIG) is True


async def test_what_shows_the_host_is_masked() -> None:
    """Under runc the only readable entries of /proc and /sys are those that the threat model names."""
    assert await _printed("runc", HOST_NUMBERS) == []


async def test_libraries_read_masked_paths(runtime: str) -> None:
    """The functions of psutil and os that read masked paths raise nothing."""
    assert await _printed(runtime, LIBRARIES) == 3


async def test_a_cell_cannot_write_or_drop_the_hosts_cache() -> None:
    """Under runc sync, syncfs and POSIX_FADV_DONTNEED are denied, and what programs call for their own files works."""
    assert await _printed("runc", SYNCS) == [1, 1, 1, 1, 0]


async def test_sockets_take_no_memory_of_the_host() -> None:
    """Under runc TCP sockets of one sandbox hold at most 64 MiB that no memory limit counts."""
    assert await _printed("runc", SOCKETS) <= 64


def test_sigbus_is_explained_and_other_ends_are_not() -> None:
    """Only exit code 135 stands for mapped memory without room."""
    assert "shm_mb" in Exit(Outcome.KERNEL_DIED, 135).describe()
    assert Exit(Outcome.KERNEL_DIED, 139).describe() == "ended (exit code 139)"


def test_a_state_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Below /tmp, a folder that another user made, a link and an open folder are refused; an own one is kept."""
    own = private_folder(tmp_path / "own")
    assert private_folder(own) == own
    assert own.stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "file").touch(mode=0o700)
    refused = ["open", "link", "file"]
    if os.geteuid() == 0:
        (tmp_path / "foreign").mkdir(mode=0o700)
        os.chown(tmp_path / "foreign", 12345, 12345)
        refused.append("foreign")
    for name in refused:
        with pytest.raises(SettingsError, match="mode 0700"):
            private_folder(tmp_path / name)
