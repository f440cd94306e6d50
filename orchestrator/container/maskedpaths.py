"""The paths of /proc and /sys that show numbers or names of the host, which every container has masked.

The engine skips those that its Linux does not have. A masked file is empty, and a masked folder is an empty file
system.
"""

from __future__ import annotations

__all__ = ["MASKED_PATHS"]

# Without the files that only root can read.
_PROC = (
    "acpi", "asound", "bootconfig", "buddyinfo", "bus", "cgroups", "cmdline", "config.gz", "consoles", "crypto",
    "devices", "diskstats", "driver", "fs", "interrupts", "iomem", "ioports", "irq", "kallsyms", "kcore", "key-users",
    "keys", "latency_stats", "loadavg", "locks", "mdstat", "misc", "modules", "mtrr", "partitions", "pressure",
    "sched_debug", "schedstat", "scsi", "softirqs", "spl", "swaps", "timer_list", "timer_stats", "tty",
    "version_signature", "vmstat", "xen", "zoneinfo",
)  # fmt: skip
_PROC_SYS = ("fs", "kernel/pty", "kernel/random/boot_id")
# Not /sys/fs, which has the sandbox's own cgroup, and not /sys/class, which has only links to the masked devices.
_SYS = (
    "block", "bus", "dev", "devices", "firmware", "fs/btrfs", "fs/ext4", "fs/f2fs", "fs/fuse", "fs/xfs", "fs/zfs",
    "hypervisor", "kernel", "module", "power",
)  # fmt: skip
MASKED_PATHS = (
    *(f"/proc/{name}" for name in _PROC),
    *(f"/proc/sys/{name}" for name in _PROC_SYS),
    *(f"/sys/{name}" for name in _SYS),
)
