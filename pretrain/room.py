"""Shared memory for slides that are read ahead: how much it is, and whether it is there. No torch: readers need none."""

import re
from pathlib import Path

from ingest.errors import ConfigError


def ring_bytes(num_slots: int, tiles_per_slot: int, tile_size_px: int) -> int:
    """Shared memory of one reader's slots: pixels and tile indices."""
    return num_slots * tiles_per_slot * (3 * tile_size_px**2 + 8)


def check_memory(num_bytes: int, num_slots: int, tiles_per_slot: int) -> None:
    """Raises:
    ConfigError: one ring of `num_bytes` is larger than what is free.
    """
    available = available_bytes()
    if available is not None and num_bytes > available:
        raise ConfigError(
            f"feeder: {num_slots} slots of {tiles_per_slot:,} tiles need {num_bytes / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB are free; use fewer slots, fewer tiles per slot, or more ranks"
        )


def available_bytes() -> int | None:
    """Memory left on the machine, or all that its control group allows, whichever is less; None if nothing tells."""
    limits: list[int] = []
    meminfo, group_limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        limits.append(int(found[1]) * 1024)
    if group_limit.exists() and (text := group_limit.read_text().strip()).isdigit():
        limits.append(int(text))  # what is used of it counts the page cache, which gives way
    return min(limits, default=None)
