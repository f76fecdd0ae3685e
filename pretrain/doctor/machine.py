"""The machine and the limits that a container or a login puts on it."""

import os
import platform
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from pretrain.doctor.finding import GIB, Finding, Wanted


def system(wanted: Wanted) -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    what = f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores for this process"
    yield Finding("system", "ok", what)


def memory(wanted: Wanted) -> Iterator[Finding]:
    shm = shutil.disk_usage("/dev/shm").total / GIB
    if shm < wanted.min_shm_gib:
        yield Finding("/dev/shm", "problem", f"{shm:.2f} GiB, wanted are {wanted.min_shm_gib:g} (NCCL between GPUs of one node)",
                      "docker run --ipc=host or --shm-size=8g; on a host: mount -o remount,size=8G /dev/shm")  # fmt: skip
    else:
        yield Finding("/dev/shm", "ok", f"{shm:.1f} GiB")
    free = _free_bytes() / GIB
    if free < wanted.min_ram_gib:
        yield Finding("memory", "problem", f"{free:.1f} GiB free, wanted are {wanted.min_ram_gib:g}",
                      "end other programs, raise the limit of the container or job, or lower data.slides_ahead")  # fmt: skip
    else:
        yield Finding("memory", "ok", f"{free:.1f} GiB free")


def _free_bytes() -> int:
    """Free memory of the machine, or the limit of the control group if that is less."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    limit = Path("/sys/fs/cgroup/memory.max")
    free = int(found[1]) * 1024 if found else 0
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else ""
    return min(free, int(text)) if text.isdigit() else free


def limits(wanted: Wanted) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted.min_open_files:
        yield Finding("open files", "problem", f"limit {soft:,} (at most {hard:,}), wanted are {wanted.min_open_files:,}",
                      f"ulimit -n {wanted.min_open_files}, or docker run --ulimit nofile={wanted.min_open_files}")  # fmt: skip
    else:
        yield Finding("open files", "ok", f"limit {soft:,}")
