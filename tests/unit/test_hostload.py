"""What the machine has free, as it says itself."""

from __future__ import annotations

import itertools
import time

import psutil
import pytest

from orchestrator.limits import MIB
from orchestrator.pool.hostload import HostLoad


@pytest.mark.alone
def test_a_reading_is_what_the_machine_has() -> None:
    """Memory as /proc/meminfo tells it; all cores are taken for idle before there was time to see."""
    host = HostLoad(lambda: 7).read()
    assert host.cpus == host.cpus_idle == psutil.cpu_count()
    assert abs(host.memory_free - psutil.virtual_memory().available) < 512 * MIB
    assert host.memory_of_kernels == 7


@pytest.mark.alone
def test_a_core_that_works_is_not_idle() -> None:
    """This test keeps one busy for half a second."""
    load = HostLoad(lambda: 0)
    busy_until = time.monotonic() + 0.5
    while time.monotonic() < busy_until:
        pass
    host = load.read()
    assert 0 <= host.cpus_idle <= host.cpus - 0.5


def test_readings_are_bought_five_times_a_second_at_most() -> None:
    """A burst of ten thousand callers would else cost a second of readings."""
    readings = itertools.count()
    load = HostLoad(lambda: next(readings))
    assert [load.read().memory_of_kernels for _ in range(3)] == [0, 0, 0]
    time.sleep(0.25)
    assert load.read().memory_of_kernels == 1
