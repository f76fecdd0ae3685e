"""Deal work to threads: each takes the next item as soon as it is done with its last."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def deal(items: Iterable[Item], make_worker: Callable[[], Callable[[Item], None]], num_threads: int) -> None:
    """Hand out `items` in order; every thread makes a worker of its own, with its own buffers. Raises what one raises."""
    lock = threading.Lock()
    waiting = iter(items)

    def work() -> None:
        worker = make_worker()
        while True:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            worker(item)

    if num_threads == 1:
        work()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(work) for _ in range(num_threads)]:
            future.result()
