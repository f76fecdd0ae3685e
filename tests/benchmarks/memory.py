"""How much memory a process needed."""

from pathlib import Path


def peak_memory_bytes() -> int:
    """Peak resident memory of this process (VmHWM; ru_maxrss would inherit that of the parent)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status; this benchmark needs Linux")
