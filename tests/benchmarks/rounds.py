"""Timing several ways of doing one thing, in turn."""

import time
from collections.abc import Callable, Mapping


def cpu_seconds_in_turn(kinds: Mapping[str, Callable[[], None]], num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each kind in each round; one round before them warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_number in range(num_rounds + 1):
        for name, run in kinds.items():
            started_at = time.process_time()
            run()
            if round_number:
                seconds[name].append(time.process_time() - started_at)
    return seconds
