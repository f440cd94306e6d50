"""Make ``os`` count the sandbox's share of the host's cores, and not the host's cores.

Every Python of the sandbox imports this at its start, by a .pth file. The host sets PYTHON_CPU_COUNT to the policy's
share, rounded up to whole cores. Python 3.13 reads that variable itself, except where it ignores the environment, as
the launcher does. No other module is imported here: typing alone would double the start of a Python.
"""

import os
import sys

_said = os.environ.get("PYTHON_CPU_COUNT", "")
CORES = int(_said) if _said.isdecimal() and int(_said) > 0 else 1
_host_affinity, _host_sysconf = os.sched_getaffinity, os.sysconf
_COUNTS = {name: os.sysconf_names[name] for name in ("SC_NPROCESSORS_ONLN", "SC_NPROCESSORS_CONF")}


def cpu_count() -> int:
    """Return how many cores the sandbox may use, at least 1."""
    return CORES


def process_cpu_count() -> int:
    """Return how many cores the calling thread may use, at least 1."""
    return len(sched_getaffinity(0))


def sched_getaffinity(pid: int, /) -> set[int]:
    """Return as many of a process's cores as the sandbox may use, the lowest numbers first."""
    return set(sorted(_host_affinity(pid))[:CORES])


def sysconf(name: int | str, /) -> int:
    """Return a setting of the system; the sandbox's cores where it is the number of cores."""
    return CORES if name in _COUNTS or name in _COUNTS.values() else _host_sysconf(name)


def install() -> None:
    """Replace the functions of ``os``, which pickle by their names there, so that no checkpoint names this module."""
    for function in (cpu_count, process_cpu_count, sched_getaffinity, sysconf):
        if hasattr(os, function.__name__):
            function.__module__ = "os"
            setattr(os, function.__name__, function)


install()

LAYER = "/opt/cellblock/layer"  # what the policy's image has beside the packages of every image
SITE = os.path.dirname(os.path.dirname(__file__))
if os.path.isdir(LAYER):
    sys.path.insert(sys.path.index(SITE), LAYER)

PACKAGES = "/tmp/.packages"  # what the host hands in while the session runs
sys.path.append(PACKAGES)  # also of programs that cells and commands start
