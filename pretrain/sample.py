"""Which tiles of a slide take part in a step, on which rank, and in which chunk: pure functions of a seed.

Positions count the tissue tiles of a slide in raster order, 0 .. num_tiles - 1. Shares are contiguous runs of raster
order, so that a rank decodes every compressed tile of the file once; inside a rank the order is shuffled, so that
BatchNorm sees mixed tissue in every chunk.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from ingest.errors import ConfigError, InputError
from pretrain.config import SampleConfig

Positions = NDArray[np.int64]


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed in 0 .. 2**63 - 1 for one purpose, as in `derive_seed(run_seed, epoch, slide_key)`; same on any machine."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def sample_tiles(
    tile_indices: Positions,
    config: SampleConfig,
    seed: int,
    num_columns: int | None = None,
    clusters_T: NDArray[np.uint8] | None = None,
) -> Positions:
    """The tiles of a slide that one step uses.

    all      every tile
    random   K tiles without replacement; every tile if the slide has fewer
    paper    K tiles without replacement; if the slide has fewer, K with replacement (Campanella et al. 2024, EGFR)
    grid     K tiles spread over the slide: K equal runs along a walk through a square grid of cells, one from each
    cluster  K tiles spread evenly over the slide's kinds of tissue (`pretrain.clusters`; after Xie et al. 2020)

    Args:
        tile_indices: [T] indices in the tile grid (row * num_columns + column), rising.
        num_columns: columns of the tile grid; only for grid.
        clusters_T: the cluster of each tile; only for cluster.
    Returns:
        [K] positions into `tile_indices`, rising; a position repeats only in paper mode.
    Raises:
        InputError: the slide has no tile.
        ConfigError: what the mode needs was not given.
    """
    num_tiles = len(tile_indices)
    if num_tiles == 0:
        raise InputError("sample: the slide has 0 tissue tiles; leave it out of the manifest's split")
    if config.mode == "all" or config.num_tiles is None:
        return np.arange(num_tiles, dtype=np.int64)
    wanted = config.num_tiles
    generator = np.random.default_rng(seed)
    if num_tiles <= wanted:
        if config.mode == "paper" and num_tiles < wanted:
            return np.sort(generator.integers(num_tiles, size=wanted, dtype=np.int64))
        return np.arange(num_tiles, dtype=np.int64)
    if config.mode == "grid":
        if num_columns is None:
            raise ConfigError("sample.mode = grid: the number of grid columns was not given")
        return _one_per_run(_cell_walk(tile_indices, num_columns, wanted), wanted, generator)
    if config.mode == "cluster":
        if clusters_T is None or len(clusters_T) != num_tiles:
            raise ConfigError(
                "sample.mode = cluster: the clusters of the slide's tiles were not given; set sample.clusters"
            )
        return _even_over_clusters(clusters_T, wanted, generator)
    return np.sort(generator.choice(num_tiles, size=wanted, replace=False)).astype(np.int64)


def share_counts(num_tiles: int, num_ranks: int) -> tuple[int, ...]:
    """Sizes of contiguous shares, one per encoder rank: they differ by at most one tile, some are 0 on a tiny slide."""
    small, rest = divmod(num_tiles, num_ranks)
    return tuple(small + (index < rest) for index in range(num_ranks))


def share_slice(counts: tuple[int, ...], index: int) -> slice:
    """The run of the slide's sampled tiles that belongs to share `index`."""
    start = sum(counts[:index])
    return slice(start, start + counts[index])


def chunk_positions(num_tiles: int, num_chunks: int, seed: int | None) -> list[Positions]:
    """A rank's share cut into chunks: shuffled by `seed` (None keeps the order), sizes differ by at most one.

    Even chunks avoid a last chunk of one tile, on which BatchNorm has no variance. Some chunks are empty only if there
    are more chunks than tiles.
    """
    order = np.arange(num_tiles) if seed is None else np.random.default_rng(seed).permutation(num_tiles)
    bounds = np.cumsum((0, *share_counts(num_tiles, num_chunks))) if num_chunks else np.zeros(1, dtype=np.int64)
    return [order[bounds[i] : bounds[i + 1]] for i in range(num_chunks)]


def _cell_walk(tile_indices: Positions, num_columns: int, wanted: int) -> Positions:
    """Positions in the order of a walk through square cells, row by row, turning at the ends (no long jumps)."""
    rows, columns = np.divmod(np.asarray(tile_indices), num_columns)
    side = max(1, int(np.sqrt(len(tile_indices) / wanted)))
    cell_rows, cell_columns = rows // side, columns // side
    walk_columns = np.where(cell_rows % 2 == 0, cell_columns, -cell_columns)
    return np.lexsort((columns, rows, walk_columns, cell_rows))


def _one_per_run(walk: Positions, wanted: int, generator: np.random.Generator) -> Positions:
    bounds = np.linspace(0, len(walk), wanted + 1).astype(np.int64)
    return np.sort(walk[generator.integers(bounds[:-1], bounds[1:])])


def _even_over_clusters(clusters_T: NDArray[np.uint8], wanted: int, generator: np.random.Generator) -> Positions:
    """Clusters give equal numbers of random tiles; what a small cluster cannot give, the larger ones give."""
    members = [generator.permutation(np.flatnonzero(clusters_T == cluster)) for cluster in np.unique(clusters_T)]
    turn = np.concatenate([np.arange(len(cluster)) for cluster in members])  # 0 for the first pick of each cluster, ...
    order = np.lexsort((generator.random(len(turn)), turn))
    return np.sort(np.concatenate(members)[order][:wanted]).astype(np.int64)
