"""Work that is dealt to threads."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from ingest.threads import deal


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_item_is_done_once_by_a_worker_of_its_thread(num_threads: int) -> None:
    done: list[tuple[int, int, int]] = []

    def make_worker() -> Callable[[int], None]:
        maker = threading.get_ident()
        return lambda item: done.append((item, maker, threading.get_ident()))

    deal(range(100), make_worker, num_threads)
    assert Counter(item for item, _, _ in done) == Counter(range(100))
    assert all(maker == thread for _, maker, thread in done)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_a_worker_raises_comes_out(num_threads: int) -> None:
    def fail(item: int) -> None:
        if item == 5:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        deal(range(10), lambda: fail, num_threads)
