import pytest

from pretrain.reading import Reading, reading_sentence, sum_reading


def reading(wait: float, read: float, cached: int = 0, cache_seconds: float = 0.0, first: float = 1.0) -> Reading:
    return Reading(elapsed_seconds=100.0, wait_seconds=wait, first_wait_seconds=first, read_seconds=read,
                   cache_seconds=cache_seconds, num_tiles=4000, num_cached_tiles=cached, num_encoders=2)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "has_cache", "sentence"),
    [
        (reading(9.0, 95.0), False, "waited for tiles 9% of the time"),
        (
            reading(40.0, 95.0), False,
            "waited for tiles 40% of the time; the readers worked 95% of it: raise data.reader_threads (now 1), or name a "
            "folder on a fast local disk as data.cache",
        ),
        (
            reading(40.0, 30.0), False,
            "waited for tiles 40% of the time; the readers worked 30% of it: raise data.slides_ahead (now 2)",
        ),
        (
            reading(40.0, 95.0, first=21.0), False,
            "waited for tiles 40% of the time; most of it for the first slide of the epoch; a longer epoch waits less",
        ),
        # 1,000 of 4,000 tiles in 5 s by 2 readers: 100 tiles/s each; 3,000 in 15 s: 100 tiles/s each as well.
        (
            reading(2.0, 20.0, 1000, 5.0), True,
            "waited for tiles 2% of the time; 25% of the tiles from the cache at 100/s, the others decoded at 100/s",
        ),
        (
            reading(2.0, 20.0, 1000, 10.0), True,
            "waited for tiles 2% of the time; 25% of the tiles from the cache at 50/s, the others decoded at 150/s; "
            "data.cache is slower than decoding: put it on a faster disk or leave it out",
        ),
        (
            reading(90.0, 99.0, 4000, 99.0), True,
            "waited for tiles 90% of the time; 100% of the tiles from the cache at 20/s; the readers worked 99% of it: raise "
            "data.reader_threads (now 1)",
        ),
    ],
)  # fmt: skip
def test_the_sentence_says_how_long_why_and_what_to_change(given: Reading, has_cache: bool, sentence: str) -> None:
    assert reading_sentence(given, reader_threads=1, slides_ahead=2, has_cache=has_cache) == sentence


def test_an_epoch_is_the_sum_of_its_steps() -> None:
    line = {"seconds": {"wait": 1.0, "decode": 2.0, "cache": 0.5}, "num_tiles": 10, "num_cached_tiles": 4}
    total = sum_reading([line, line], elapsed_seconds=8.0, num_encoders=1)
    assert total.first_wait_seconds == 1.0
    assert (total.wait_share, total.cached_share) == (0.25, 0.4)
    assert (total.cached_tiles_per_second, total.decoded_tiles_per_second) == (8.0, 4.0)
