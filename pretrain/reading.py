"""How the tiles of an epoch came to the step, in one sentence: how long it waited for them, why, and what to change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MUCH_WAITING = 0.10  # share of the time above which something should be changed
BUSY = 0.80  # share of the time that the readers work, above which decoding is what the step waits for


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Attributes:
    elapsed_seconds: of the steps.
    wait_seconds, read_seconds: waiting of the step, work of the reader: means over the encoder ranks.
    first_wait_seconds: part of `wait_seconds` before the first step, when nothing has been read ahead yet.
    cache_seconds: part of `read_seconds` in which tiles came from the cache.
    num_encoders: encoder ranks, each with a reader of its own.
    """

    elapsed_seconds: float
    wait_seconds: float
    first_wait_seconds: float
    read_seconds: float
    cache_seconds: float
    num_tiles: int
    num_cached_tiles: int
    num_encoders: int

    @property
    def wait_share(self) -> float:
        return self.wait_seconds / max(self.elapsed_seconds, 1e-9)

    @property
    def cached_share(self) -> float:
        return self.num_cached_tiles / max(self.num_tiles, 1)

    @property
    def cached_tiles_per_second(self) -> float:
        """Of one reader, from the cache."""
        return self.num_cached_tiles / max(self.cache_seconds * self.num_encoders, 1e-9)

    @property
    def decoded_tiles_per_second(self) -> float:
        """Of one reader, from the slides; it includes writing them to the cache."""
        decode_seconds = max(self.read_seconds - self.cache_seconds, 1e-9)
        return (self.num_tiles - self.num_cached_tiles) / (decode_seconds * self.num_encoders)


def sum_reading(lines: Iterable[Mapping[str, Any]], elapsed_seconds: float, num_encoders: int) -> Reading:
    """Of the step lines of an epoch."""
    kept = list(lines)
    seconds = {name: sum(line["seconds"][name] for line in kept) for name in ("wait", "decode", "cache")}
    return Reading(
        elapsed_seconds=elapsed_seconds, wait_seconds=seconds["wait"],
        first_wait_seconds=kept[0]["seconds"]["wait"] if kept else 0.0, read_seconds=seconds["decode"],
        cache_seconds=seconds["cache"], num_tiles=sum(line["num_tiles"] for line in kept),
        num_cached_tiles=sum(line["num_cached_tiles"] for line in kept), num_encoders=num_encoders,
    )  # fmt: skip


def reading_sentence(reading: Reading, *, reader_threads: int, slides_ahead: int, has_cache: bool) -> str:
    """`waited for tiles 23% of the time; ...`, with the cache's share where there is one."""
    words = [f"waited for tiles {reading.wait_share:.0%} of the time"]
    if reading.num_cached_tiles:
        words.append(
            f"{reading.cached_share:.0%} of the tiles from the cache at {reading.cached_tiles_per_second:,.0f}/s"
        )
        if reading.num_cached_tiles < reading.num_tiles:
            words[-1] += f", the others decoded at {reading.decoded_tiles_per_second:,.0f}/s"
            if reading.cached_tiles_per_second < reading.decoded_tiles_per_second:
                words.append("data.cache is slower than decoding: put it on a faster disk or leave it out")
    if reading.wait_share > MUCH_WAITING:
        words.append(_advice(reading, reader_threads, slides_ahead, has_cache))
    return "; ".join(words)


def _advice(reading: Reading, reader_threads: int, slides_ahead: int, has_cache: bool) -> str:
    if reading.first_wait_seconds > reading.wait_seconds / 2:
        return "most of it for the first slide of the epoch; a longer epoch waits less"
    busy = reading.read_seconds / max(reading.elapsed_seconds, 1e-9)
    if busy < BUSY:  # the readers had time, but not at the right moment: a large slide after small ones
        return f"the readers worked {busy:.0%} of it: raise data.slides_ahead (now {slides_ahead})"
    cache = "" if has_cache else ", or name a folder on a fast local disk as data.cache"
    return f"the readers worked {busy:.0%} of it: raise data.reader_threads (now {reader_threads}){cache}"
