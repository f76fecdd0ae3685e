"""The running line of an epoch: a bar with time left on a terminal, a plain line every 20th step elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ingest.progress import progress_line

PLAIN_INTERVAL_STEPS = 20

Show = Callable[[Mapping[str, Any]], None]  # takes the line of a step


@contextmanager
def live_line(title: str, num_steps: int, console: Console | None = None) -> Iterator[Show]:
    """Call what it gives once per step; `num_steps` are those that are left. Everything goes to stderr."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _plain(title, num_steps)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[facts]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=num_steps, facts="")
        yield lambda line: progress.update(task, advance=1, facts=_facts(line))


def _plain(title: str, num_steps: int) -> Show:
    started_at, num_done = time.monotonic(), 0

    def show(line: Mapping[str, Any]) -> None:
        nonlocal num_done
        num_done += 1
        if num_done % PLAIN_INTERVAL_STEPS == 0 or num_done == num_steps:
            progress = progress_line(title, num_done, num_steps, time.monotonic() - started_at)
            print(f"{progress}, {_facts(line)}", file=sys.stderr, flush=True)

    return show


def _facts(line: Mapping[str, Any]) -> str:
    seconds = line["seconds"]
    waited = seconds["wait"] / max(seconds["step"], 1e-9)
    return (f"loss {line['loss']:.3f}, {line['num_tiles']:,} tiles, {line['tiles_per_second']:,.0f}/s, "
            f"waited {waited:.0%}, {line['peak_memory_bytes'] / 2**30:.1f} GiB")  # fmt: skip
