"""Progress that people can read: a live bar with time left on a terminal, a plain line every 20 seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")
PLAIN_INTERVAL_SECONDS = 20.0


def track(items: Iterable[ItemT], total: int, title: str) -> Iterator[ItemT]:
    """The same items; progress goes to stderr so that stdout stays the result."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description=title, total=total, console=Console(stderr=True))
        return
    started_at = last_print_at = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_print_at >= PLAIN_INTERVAL_SECONDS or done == total:
            last_print_at = now
            print(progress_line(title, done, total, now - started_at), file=sys.stderr, flush=True)


def progress_line(title: str, done: int, total: int, elapsed_seconds: float) -> str:
    """`title: 3/10, 12 s, 28 s left`."""
    left = elapsed_seconds / done * (total - done) if done else float("nan")
    return f"{title}: {done:,}/{total:,}, {elapsed_seconds:.0f} s, {left:.0f} s left"
