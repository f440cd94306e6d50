"""Make the root file system of the sandbox image in place. Runs as root inside the image build and nowhere else.

Unpacks the wheels of ``<build>/wheels`` for the interpreter that runs this program, adds Cellblock's own packages,
removes what no cell needs, compiles the rest and removes the build folder. Uses the standard library only, because the
base image has no pip.
"""

from __future__ import annotations

import compileall
import os
import platform
import py_compile
import re
import shutil
import site
import stat
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
SITE = Path(site.getsitepackages()[0])
STDLIB = Path(sysconfig.get_path("stdlib"))
OWN = ROOT / "opt/cellblock"
FONT_CACHE = OWN / "matplotlib"
OWNERS = OWN / "owners.txt"  # MODULE=PACKAGE in each line, since the packages' own lists of their files are removed

DOCUMENTATION = """
    usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/* usr/share/lintian usr/share/bash-completion
    usr/share/applications usr/share/pixmaps usr/share/menu usr/share/bug usr/share/binfmts
    usr/share/fonts/truetype/tlwg/Loma-* etc/fonts
"""
# The slim Python image has all of these, a base image of Debian packages some.
PACKAGE_MANAGERS = """
    usr/bin/apt* usr/bin/dpkg* usr/bin/perl* usr/bin/deb-systemd* usr/bin/update-alternatives usr/lib/apt usr/lib/dpkg
    usr/lib/*/perl* usr/share/perl* usr/share/dpkg usr/share/python3* etc/apt etc/dpkg var/lib/* var/cache/*
    usr/local/bin/pip* usr/local/bin/idle* usr/local/bin/2to3* usr/local/bin/*-config usr/local/include
    usr/local/lib/pkgconfig
"""
# Files for booting, logging and logins. gconv has character sets for iconv(1) and C programs; Python has its own.
SYSTEM = """
    usr/sbin/* etc/cron* etc/init.d etc/rc*.d etc/systemd etc/default etc/logrotate.d etc/update-motd.d usr/lib/init
    usr/lib/systemd usr/lib/udev usr/libexec usr/games usr/src usr/include usr/lib/*/gconv var/log/* var/backups
"""
STANDARD_LIBRARY = "test tkinter idlelib lib2to3 ensurepip turtledemo turtle.py config-* lib-dynload/_tkinter*"
PACKAGES = """
    pip pip-* setuptools* wheel* pkg_resources _distutils_hack distutils-precedence.pth *.dist-info/RECORD
    numpy/_core/include numpy/_core/lib numpy/random/lib matplotlib/mpl-data/sample_data
    jedi/third_party/django-stubs jedi/third_party/typeshed/stubs
    **/*.h **/*.hpp **/*.c **/*.cpp **/*.pyx **/*.pxd **/*.pxi **/*.a
"""
# numpy.testing imports modules of the first folder; jedi reads the .pyi files in the second.
KEPT_TESTS = SITE / "numpy/_core/tests"
KEPT_STUBS = SITE / "jedi/third_party"

READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH

# Debian's maintainer scripts make these, but do not run.
LINKS = {"usr/bin/awk": "mawk", "usr/bin/which": "which.debianutils"}
# Where models and other sandboxes' users put files. They lead to the working folder.
OTHER_WORK_FOLDERS = ("home/user", "workspace", "mnt/data")
# The host writes both files for each kernel, because each kernel has a user id of its own.
ACCOUNTS = {"etc/passwd": "/run/kernel/passwd", "etc/group": "/run/kernel/group"}
# Added to these modules of matplotlib.
FONT_CALLS = {
    "font_manager.py": 'install_in_text(FontManager, str(cbook._get_data_path("fonts/ttf/DejaVuSans.ttf")))',
    "_mathtext.py": "install_in_mathtext(UnicodeFonts, get_font)",
}
# The engine empties /etc/hosts, so libnss-myhostname resolves localhost and the sandbox's own name.
NAME_SERVICES = "passwd: files\ngroup: files\nhosts: files myhostname dns\nservices: files\nprotocols: files\n"


def main(build: Path, version: str) -> None:
    """Assemble the image from ``build``.

    Args:
        build: the folder of the build context.
        version: the Python version that the wheels are for, such as "3.11".

    Raises:
        SystemExit: the base image has another Python.
    """
    if "{}.{}".format(*sys.version_info) != version:
        raise SystemExit(f"the base image has Python {platform.python_version()}; the wheels are for Python {version}")
    for wheel in sorted((build / "wheels").glob("*.whl")):
        print("unpacking", *wheel.name.split("-")[:2], flush=True)
        note_owner(wheel)
        unpack(wheel, SITE)
    for package in ("cellblock_kernel", "cellblock_session", "cellblock_site"):
        shutil.copytree(build / package, SITE / package)
    (SITE / "cellblock_site.pth").write_text("import cellblock_site.machine\n")  # run by every Python at its start
    for name, call in FONT_CALLS.items():
        with (SITE / "matplotlib" / name).open("a") as module:
            module.write(f"\nimport cellblock_site.fonts\ncellblock_site.fonts.{call}\n")
    print("removing what no cell needs", flush=True)
    trim()
    lay_out()
    print("compiling", flush=True)
    compile_all()
    make_font_cache()
    shutil.rmtree(build)  # not earlier: the processes that compile may import this program again
    open_to_all_users()


def note_owner(wheel: Path) -> None:
    """Write down which modules a wheel brings."""
    OWNERS.parent.mkdir(parents=True, exist_ok=True)
    with OWNERS.open("a") as file:
        file.writelines(f"{name}={normal(wheel.name.split('-')[0])}\n" for name in sorted(modules_of(wheel)))


def modules_of(wheel: Path) -> set[str]:
    """Return the names of the modules and packages at the top of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        inside = [re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name) for name in archive.namelist()]
    return {name.partition("/")[0].partition(".")[0] for name in inside if ".dist-info/" not in name}


def normal(name: str) -> str:
    """Return the normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unpack(wheel: Path, target: Path) -> None:
    """Extract a wheel's modules into a folder, without its scripts, headers and other data."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            folder, _, rest = member.filename.partition("/")
            if folder.endswith(".data"):
                scheme, _, inside = rest.partition("/")
                if scheme not in ("purelib", "platlib"):
                    continue
                member.filename = inside
            if member.filename and not member.is_dir():
                extracted = Path(archive.extract(member, target))
                if member.external_attr >> 16 & EXECUTABLE:  # zipfile drops the mode
                    extracted.chmod(0o644 | EXECUTABLE)


def trim() -> None:
    """Remove what no cell needs. Runs ldconfig first, which makes the loader's cache and is then removed too."""
    if (ROOT / "usr/sbin/ldconfig").exists():
        subprocess.run(["/usr/sbin/ldconfig"], check=True)
    for pattern in (DOCUMENTATION + PACKAGE_MANAGERS + SYSTEM).split():
        remove_all(ROOT.glob(pattern))
    for pattern in STANDARD_LIBRARY.split():
        remove_all(STDLIB.glob(pattern))
    for pattern in PACKAGES.split():
        remove_all(SITE.glob(pattern))
    remove_all(folder for name in ("tests", "test") for folder in SITE.rglob(name) if folder != KEPT_TESTS)
    remove_all(path for path in KEPT_TESTS.glob("*") if path.name not in ("__init__.py", "_natype.py"))
    remove_all(stub for stub in SITE.rglob("*.pyi") if KEPT_STUBS not in stub.parents)
    for top in (STDLIB, SITE):
        remove_all(top.rglob("__pycache__"))


def remove_all(paths: Iterator[Path]) -> None:
    """Remove files, links and whole folders."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def lay_out() -> None:
    """Create the mount points, links and users that the sandbox relies on."""
    for folder in ("work", "run/kernel", "tmp", "opt/cellblock/bin"):
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("work", "tmp"):  # runc gives a tmpfs the mode of the folder below it
        (ROOT / folder).chmod(0o1777)
    for name in OTHER_WORK_FOLDERS:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).symlink_to("/work")
    for name, target in LINKS.items():
        if (ROOT / name).parent.joinpath(target).exists() and not os.path.lexists(ROOT / name):
            (ROOT / name).symlink_to(target)
    for name in ("opt/cellblock/bin/python", "usr/local/bin/python", "usr/local/bin/python3"):
        if not os.path.lexists(ROOT / name):
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).symlink_to(os.path.realpath(sys.executable))
    for name, target in ACCOUNTS.items():
        (ROOT / name).unlink(missing_ok=True)
        (ROOT / name).symlink_to(target)
    (ROOT / "etc/nsswitch.conf").write_text(NAME_SERVICES)
    zones = ROOT / "usr/share/zoneinfo"  # where the C library looks; the package tzdata of Python has the same files
    if not zones.exists():
        zones.symlink_to(SITE / "tzdata/zoneinfo")


def compile_all() -> None:
    """Compile every module.

    The compiled files are never checked against their sources: the sources cannot change, and image layers may change
    their time stamps.

    Raises:
        SystemExit: a module does not compile.
    """
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for top in (STDLIB, SITE):
        if not compileall.compile_dir(top, maxlevels=50, quiet=1, force=True, workers=0, invalidation_mode=mode):
            raise SystemExit(f"a module below {top} does not compile")


def make_font_cache() -> None:
    """Let matplotlib build its font cache, which takes a second in a cell."""
    command = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(command, check=True, env={"MPLCONFIGDIR": str(FONT_CACHE)})


def open_to_all_users() -> None:
    """Make every file readable for all users, because sandboxes have many user ids, and drop setuid and setgid bits."""
    for folder, folders, files in os.walk(ROOT):
        if folder == str(ROOT):
            folders[:] = [name for name in folders if name not in ("proc", "sys", "dev")]
        for path in [Path(folder), *(Path(folder, name) for name in files)]:
            open_up(path)


def open_up(path: Path) -> None:
    """Make a file readable, and a folder or program executable, for all users. Drop setuid and setgid."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return
    wanted = stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID) | READABLE
    if stat.S_ISDIR(mode) or mode & EXECUTABLE:
        wanted |= EXECUTABLE
    if wanted != stat.S_IMODE(mode):
        path.chmod(wanted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
