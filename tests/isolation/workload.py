"""Runs typical data work with each library of the image, inside a sandbox.

Prints a JSON object: the name of each task, with "ok" or its error. ``record_syscalls.py`` records the system calls of
this program; ``test_seccomp.py`` runs it under the profile.
"""

# mypy: ignore-errors
from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(dir="/work" if os.access("/work", os.W_OK) else None))


def where_known(call, *arguments):
    """Make a call that the kernel may lack: ENOSYS, which gVisor returns for some newer calls, is accepted."""
    try:
        return call(*arguments)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


def numpy_work():
    import numpy as np

    a = np.random.default_rng(1).random((400, 400))
    assert np.allclose(np.linalg.inv(a) @ a, np.eye(400), atol=1e-6)
    np.linalg.svd(a)
    np.fft.fft2(a)
    mapped = np.memmap(FOLDER / "map", dtype="float64", mode="w+", shape=(1000, 100))
    mapped[:] = 1
    mapped.flush()
    np.savez_compressed(FOLDER / "a.npz", a=a)
    assert (np.load(FOLDER / "a.npz")["a"] == a).all()


def pandas_work():
    import pandas as pd

    frame = pd.DataFrame(
        {"a": range(1000), "b": ["x", "y"] * 500, "t": pd.date_range("2024", periods=1000, tz="Europe/Berlin")}
    )
    frame.to_csv(FOLDER / "f.csv.gz")
    assert len(pd.read_csv(FOLDER / "f.csv.gz")) == 1000
    frame.to_pickle(FOLDER / "f.pkl")
    pd.read_pickle(FOLDER / "f.pkl")
    frame.assign(t=frame.t.dt.tz_localize(None)).to_excel(FOLDER / "f.xlsx")
    assert pd.read_excel(FOLDER / "f.xlsx").a.sum() == 499500
    frame.groupby("b").a.agg(["mean", "sum"]).merge(frame, on="b").pivot_table("a", "b")
    frame.to_json(FOLDER / "f.json")


def matplotlib_work():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2)
    axes[0, 0].plot([1, 2, 3])
    axes[1, 1].hist([1, 2, 2, 3])
    for kind in ("png", "svg", "pdf", "jpg"):
        figure.savefig(FOLDER / f"f.{kind}")


def seaborn_work():
    import matplotlib

    matplotlib.use("agg")
    import pandas as pd
    import seaborn as sns

    sns.heatmap(pd.DataFrame([[1, 2], [3, 4]])).figure.savefig(FOLDER / "s.png")


def scipy_work():
    import numpy as np
    from scipy import integrate, optimize, signal, sparse, stats
    from scipy.sparse import linalg

    optimize.minimize(lambda x: ((x - 3) ** 2).sum(), np.zeros(5))
    linalg.spsolve(sparse.eye(100, format="csc") * 2, np.ones(100))
    stats.ttest_ind(np.arange(10), np.arange(10) + 1)
    integrate.quad(np.sin, 0, 1)
    signal.welch(np.random.default_rng(1).random(1000))


def workbooks():
    import openpyxl
    import xlsxwriter

    book = openpyxl.Workbook()
    book.active["A1"] = "=1+1"
    book.save(FOLDER / "o.xlsx")
    openpyxl.load_workbook(FOLDER / "o.xlsx")
    with xlsxwriter.Workbook(FOLDER / "x.xlsx") as book:
        sheet = book.add_worksheet()
        sheet.write(0, 0, 1)
        chart = book.add_chart({"type": "line"})
        chart.add_series({"values": "=Sheet1!$A$1:$A$1"})
        sheet.insert_chart("B1", chart)


def pictures():
    from PIL import Image, ImageDraw, ImageFilter

    image = Image.new("RGB", (200, 200), "red")
    ImageDraw.Draw(image).line((0, 0, 100, 100))
    for kind in ("png", "jpeg", "gif", "webp", "tiff"):
        image.filter(ImageFilter.BLUR).save(FOLDER / f"i.{kind}")
        Image.open(FOLDER / f"i.{kind}").load()


def small_libraries():
    from tabulate import tabulate
    from tqdm import tqdm

    list(tqdm(range(100), file=sys.stderr))
    assert "1" in tabulate([[1, 2]])


def subprocesses():
    import shutil
    import subprocess

    shell = (
        "ls -la / | grep -v x | sed s/a/b/ | awk '{print $1}' | sort | uniq -c | head -3; find . -maxdepth 1; cp /etc/passwd p;"
        " mv p q; rm q; mkdir -p d/e; ln -s d l; tar czf t.tgz d; gzip -k t.tgz 2>/dev/null; du -s .; df . ; date; sleep 0.01;"
        " cat /proc/cpuinfo | wc -l; id; uname -a; env; echo a > f; chmod 600 f; touch f; stat f; diff f f; cut -c1 f; xargs echo < f;"
        " mkfifo p; (echo x > p &) ; cat p; trap 'true' USR1; kill -USR1 $$; timeout 5 true; nproc; seq 3 | tee s; dd if=/dev/zero of=z bs=1k count=1"
    )
    done = subprocess.run(["bash", "-c", shell], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert "Function not implemented" not in done.stderr and "not permitted" not in done.stderr, done.stderr
    subprocess.run(["sh", "-c", "exit 3"], start_new_session=True)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.communicate(b"x")[0] == b"x"
    shutil.copytree(FOLDER / "d", FOLDER / "d2")
    os.posix_spawn("/bin/true", ["true"], os.environ)
    os.wait()


def threads():
    import threading
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda n: n * 2, range(100))) == 9900
    event = threading.Event()
    timer = threading.Timer(0.01, event.set)
    timer.start()
    assert event.wait(5)
    threading.get_native_id()


def event_loops():
    import asyncio

    async def main():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        server.close()
        process = await asyncio.create_subprocess_exec("echo", "x", stdout=asyncio.subprocess.PIPE)
        assert await process.stdout.read() == b"x\n"
        await process.wait()
        await asyncio.to_thread(os.getpid)
        await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(10)))

    asyncio.run(main())


def double(number):
    return number * 2


def processes():
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import shared_memory

    for method in ("fork", "spawn", "forkserver"):
        context = mp.get_context(method)
        with context.Pool(2) as pool:
            assert pool.map(double, range(10)) == list(range(0, 20, 2))
    with ProcessPoolExecutor(2) as pool:
        assert list(pool.map(double, range(4))) == [0, 2, 4, 6]
    memory = shared_memory.SharedMemory(create=True, size=10000)
    memory.buf[0] = 1
    memory.close()
    memory.unlink()
    lock, queue, parent_end = mp.Lock(), mp.Queue(), mp.Pipe()[0]
    with lock:
        queue.put(1)
        assert queue.get(timeout=5) == 1
    parent_end.close()
    with mp.Manager() as manager:
        manager.dict()["a"] = 1


def databases():
    import dbm
    import sqlite3

    for path in (":memory:", FOLDER / "d.sqlite"):
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("create table t (a)")
            connection.executemany("insert into t values (?)", [(n,) for n in range(1000)])
            assert connection.execute("select sum(a) from t").fetchone() == (499500,)
    with dbm.open(str(FOLDER / "dbm"), "c") as store:
        store["a"] = "b"


def sockets():
    import select
    import socket

    left, right = socket.socketpair()
    left.send(b"x")
    assert right.recv(1) == b"x"
    socket.send_fds(left, [b"x"], [0])
    os.close(socket.recv_fds(right, 1, 1)[1][0])
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET6, ("::1", 0)),
        (socket.AF_UNIX, str(FOLDER / "u")),
    ):
        try:
            with socket.socket(family) as server, socket.socket(family) as client:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(address)
                server.listen()
                client.connect(server.getsockname())
                peer = server.accept()[0]
                peer.sendall(b"x")
                assert client.recv(1) == b"x"
                peer.shutdown(socket.SHUT_RDWR)
                peer.close()
                client.getpeername()
        except OSError as error:
            if family != socket.AF_INET6 or error.errno not in (97, 99):  # a host without IPv6
                raise
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        datagrams.sendto(b"x", datagrams.getsockname())
        datagrams.sendmsg([b"y"], [], 0, datagrams.getsockname())
        assert datagrams.recvfrom(10)[0] == b"x"
        datagrams.recvmsg(10)
    socket.if_nameindex()
    try:
        socket.getaddrinfo("example.com", 80)
    except socket.gaierror:
        pass
    poll, epoll = select.poll(), select.epoll()
    poll.register(left, select.POLLOUT)
    epoll.register(left, select.EPOLLOUT)
    assert poll.poll(10) and epoll.poll(0.1) and select.select([], [left], [], 0.1)[1]


def files():
    import fcntl
    import glob
    import mmap
    import shutil
    import tempfile

    path = FOLDER / "file"
    path.write_bytes(b"x" * 100_000)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_UN)
        file.truncate(50_000)
        os.fsync(file)
        os.fdatasync(file)
        os.posix_fallocate(file.fileno(), 0, 60_000)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.pread(file.fileno(), 10, 5)
        os.preadv(file.fileno(), [bytearray(10)], 5)
        os.pwrite(file.fileno(), b"y", 5)
        os.pwritev(file.fileno(), [b"y"], 5)
        os.writev(file.fileno(), [b"z"])
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0] = 1
            mapped.flush()
            mapped.madvise(mmap.MADV_WILLNEED)
    shutil.copyfile(path, FOLDER / "copy")
    os.link(path, FOLDER / "hard")
    os.symlink(path, FOLDER / "soft")
    os.readlink(FOLDER / "soft")
    os.rename(FOLDER / "copy", FOLDER / "moved")
    os.replace(FOLDER / "moved", FOLDER / "copy")
    os.utime(path, (1, 1))
    os.chmod(path, 0o600)
    os.access(path, os.R_OK)
    os.truncate(path, 10)
    os.statvfs(FOLDER)
    os.mkfifo(FOLDER / "fifo")
    os.chown(path, os.getuid(), os.getgid())
    os.listxattr(path)
    os.umask(os.umask(0o022))
    os.sync()
    descriptor = os.open(FOLDER, os.O_RDONLY)
    os.stat("file", dir_fd=descriptor)
    os.open("file", os.O_RDONLY, dir_fd=descriptor)
    os.fchdir(descriptor)
    os.getcwd()
    glob.glob(str(FOLDER / "**"), recursive=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=folder), tempfile.TemporaryFile():
        pass
    where_known(os.copy_file_range, os.open(path, os.O_RDONLY), os.open(FOLDER / "copy", os.O_WRONLY), 5)
    os.sendfile(os.open(FOLDER / "copy", os.O_WRONLY), os.open(path, os.O_RDONLY), 0, 5)
    descriptor = os.memfd_create("m")
    os.write(descriptor, b"x")
    os.eventfd_write(os.eventfd(0), 1)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.dup2(reader, os.dup(writer), inheritable=False)
    os.getrandom(8)


def signals():
    import faulthandler
    import resource
    import signal
    import threading
    import time

    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.05)
    signal.alarm(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    assert signal.sigtimedwait({signal.SIGUSR1}, 1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    signal.raise_signal(signal.SIGALRM)
    assert seen
    faulthandler.dump_traceback(file=open(FOLDER / "trace", "w"))
    resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    resource.getrusage(resource.RUSAGE_SELF)
    os.nice(0)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.sched_yield()
    os.getloadavg()
    os.times()
    time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
    time.clock_getres(time.CLOCK_MONOTONIC)
    child = os.fork()
    if child == 0:
        os.setsid()
        os._exit(0)
    descriptor = where_known(os.pidfd_open, child)
    os.waitid(os.P_PID, child, os.WEXITED)
    if descriptor is not None:
        os.close(descriptor)
    os.getpgid(0), os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0), os.getgroups(), os.getresuid()


def foreign_functions():
    import ctypes
    import ctypes.util

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.getpid() == os.getpid()
    watch = libc.inotify_init1(0)
    assert libc.inotify_add_watch(watch, str(FOLDER).encode(), 0x100) > 0
    (FOLDER / "watched").touch()
    assert os.read(watch, 1000)
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda a, b: 0)
    libc.qsort((ctypes.c_int * 3)(3, 1, 2), 3, 4, callback)
    ctypes.util.find_library("m")


def compression():
    import bz2
    import gzip
    import hashlib
    import io
    import lzma
    import secrets
    import tarfile
    import uuid
    import zipfile

    data = b"x" * 100_000
    for module in (bz2, gzip, lzma):
        assert module.decompress(module.compress(data)) == data
    with zipfile.ZipFile(io.BytesIO(), "w") as archive:
        archive.writestr("a", data)
    with tarfile.open(FOLDER / "t.tar.gz", "w:gz") as archive:
        archive.add(FOLDER / "a.npz", "a")
    hashlib.scrypt(b"x", salt=b"y", n=2, r=8, p=1)
    secrets.token_hex(), uuid.uuid1(), uuid.uuid4()


def network_libraries():
    import ssl
    import urllib.request

    ssl.create_default_context()
    try:
        urllib.request.urlopen("http://127.0.0.1:9", timeout=1)
    except OSError:
        pass


def terminals():
    import pty

    parent, child = pty.openpty()
    os.write(child, b"x\n")
    assert os.read(parent, 10)
    os.isatty(child)


def notebooks():
    import zoneinfo

    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    assert shell.run_cell("%timeit -n1 -r1 1\n!echo x\n%who\nimport os; os.getcwd()").success
    shell.complete("os.pa")
    zoneinfo.ZoneInfo("Europe/Berlin")


WORK = (
    numpy_work, pandas_work, matplotlib_work, seaborn_work, scipy_work, workbooks, pictures, small_libraries, subprocesses,
    threads, event_loops, processes, databases, sockets, files, signals, foreign_functions, compression, network_libraries,
    terminals, notebooks,
)  # fmt: skip


def attempt(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


if __name__ == "__main__":
    found = {work.__name__: attempt(work) for work in WORK}
    print("\n" + json.dumps(found))
