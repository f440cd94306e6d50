"""The paths of /proc and /sys that show numbers or names of the host, which every container has masked.

The engine skips those that its Linux does not have. A masked file is empty, and a masked folder is an empty file
system.
"""

from __future__ import annotations

__all__ = ["MASKED_PATHS"]

_PROC = (
    "acpi", "allocinfo", "asound", "bootconfig", "buddyinfo", "bus", "cgroups", "cmdline", "config.gz", "consoles",
    "crypto", "devices", "diskstats", "dma", "driver", "dynamic_debug", "execdomains", "fb", "fs", "interrupts",
    "iomem", "ioports", "irq", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount",
    "kpageflags", "latency_stats", "loadavg", "locks", "mdstat", "misc", "modules", "mpt", "mtrr", "pagetypeinfo",
    "partitions", "pressure", "sched_debug", "schedstat", "scsi", "slabinfo", "softirqs", "spl", "swaps",
    "timer_list", "timer_stats", "tty", "version_signature", "vmallocinfo", "vmstat", "xen", "zoneinfo",
)  # fmt: skip
_PROC_SYS = (
    "debug", "dev", "fs/aio-nr", "fs/dentry-state", "fs/epoll", "fs/file-nr", "fs/inode-nr", "fs/inode-state",
    "fs/quota", "kernel/bootloader_type", "kernel/bootloader_version", "kernel/hung_task_detect_count",
    "kernel/keys", "kernel/modprobe", "kernel/pty", "kernel/random/boot_id", "kernel/random/entropy_avail",
    "kernel/tainted",
)  # fmt: skip
# Not /sys/fs, which has the sandbox's own cgroup, and not /sys/class, which has only links to the masked devices.
_SYS = (
    "block", "bus", "dev", "devices", "firmware", "fs/bcache", "fs/bpf", "fs/btrfs", "fs/erofs", "fs/ext4",
    "fs/f2fs", "fs/fuse", "fs/nilfs2", "fs/pstore", "fs/resctrl", "fs/selinux", "fs/smackfs", "fs/tmpfs", "fs/xfs",
    "fs/zfs", "hypervisor", "kernel", "module", "power",
)  # fmt: skip
MASKED_PATHS = (
    *(f"/proc/{name}" for name in _PROC),
    *(f"/proc/sys/{name}" for name in _PROC_SYS),
    *(f"/sys/{name}" for name in _SYS),
)
