"""Kinds of tissue for `sample.mode = cluster`: k-means over cached features of the training slides, once before training.

After Xie et al. 2020 (Beyond classification: whole slide tissue histopathology analysis by end-to-end part learning):
centres are common to all slides, so that a rare kind of tissue gets as many tiles of a step as a common one. The table
is made once and read by every rank, because ranks that ran k-means themselves could come to different tiles.

Shape suffixes: T tissue tiles of a slide, F feature width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.atomic import atomic_file
from ingest.errors import ConfigError, InputError, ManifestError
from pretrain.cohort import Cohort, CohortSlide
from pretrain.sample import derive_seed

MAX_FIT_TILES = 100_000  # 205 MB of 512 features; more did not move centres in practice and costs minutes
BATCH_TILES = 4096
SCHEMA = pa.schema(
    [pa.field("slide_key", pa.string(), nullable=False), pa.field("clusters", pa.binary(), nullable=False)]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustered:
    """What came of it: every training slide is in one of the two.

    Attributes:
        clusters: slide key -> uint8 [T], the cluster of each tissue tile in reading order.
        left_out: slide key -> why it has no clusters.
    """

    clusters: Mapping[str, NDArray[np.uint8]]
    left_out: Mapping[str, str]


def read_features(path: Path, slide: CohortSlide) -> NDArray[np.float32]:
    """[T, F] features of a slide from an h5 file as `python -m evaluate features` writes it (TRIDENT's layout).

    Raises:
        InputError: no such file, not readable, or features of other tiles than those of the manifest.
    """
    import h5py

    if not path.is_file():
        raise InputError("no feature file")
    try:
        with h5py.File(path, "r") as file:
            features_TF = np.asarray(file["features"], dtype=np.float32)
            corners_T2 = np.asarray(file["coords"], dtype=np.int64)
    except (OSError, KeyError) as error:
        raise InputError(f"not a readable feature file ({type(error).__name__})") from error
    if not np.array_equal(corners_T2, slide.grid.boxes(slide.tile_indices())[:, :2]):
        raise InputError("features of other tiles than the manifest's")
    if len(features_TF) != slide.num_tiles or not np.isfinite(features_TF).all():
        raise InputError("features are missing or not finite")
    return features_TF


def cluster_slides(
    slides: Sequence[CohortSlide],
    features_of: Callable[[CohortSlide], NDArray[np.float32]],
    num_clusters: int,
    seed: int,
    track: Callable[[Sequence[CohortSlide], str], Iterable[CohortSlide]] = lambda slides, title: slides,
) -> Clustered:
    """Centres from a sample of all slides' tiles, then the nearest centre for each tile of every slide.

    Args:
        slides: the training slides; validation uses every tile, and the test part is not looked at.
        features_of: raises InputError for a slide that has no usable features; that slide is left out and told.
        num_clusters: 2..256.
        track: wraps the slides of a pass to show progress.
    Raises:
        InputError: no slide has features, or they have fewer tiles than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    left_out: dict[str, str] = {}
    num_each = max(1, MAX_FIT_TILES // max(1, len(slides)))
    samples: list[NDArray[np.float32]] = []
    for slide in track(slides, "features for the centres"):
        try:
            features_TF = features_of(slide)
        except InputError as error:
            left_out[slide.slide_key] = str(error)
            continue
        generator = np.random.default_rng(derive_seed(seed, "clusters", slide.slide_key))
        samples.append(features_TF[generator.permutation(len(features_TF))[:num_each]])
    num_sampled = sum(map(len, samples))
    if num_sampled < num_clusters:
        raise InputError(
            f"clusters: {num_sampled} tiles with features in {len(slides)} training slides, {num_clusters} clusters asked "
            "for; write their features with `python -m evaluate features`, or ask for fewer clusters"
        )
    model = MiniBatchKMeans(
        num_clusters, random_state=derive_seed(seed, "centres") % 2**32, n_init=3, batch_size=BATCH_TILES
    )
    model.fit(np.concatenate(samples))
    clusters: dict[str, NDArray[np.uint8]] = {}
    for slide in track([slide for slide in slides if slide.slide_key not in left_out], "clusters of tiles"):
        try:
            clusters[slide.slide_key] = model.predict(features_of(slide)).astype(np.uint8)
        except InputError as error:
            left_out[slide.slide_key] = str(error)
    return Clustered(clusters=clusters, left_out=left_out)


def write_clusters(path: Path, clusters: Mapping[str, NDArray[np.uint8]], facts: Mapping[str, str]) -> None:
    """A Parquet file with one row per slide, sorted by key; `facts` go to its footer."""
    keys = sorted(clusters)
    table = pa.table([keys, [clusters[key].tobytes() for key in keys]], schema=SCHEMA)
    with atomic_file(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata({f"fullslide.{key}": value for key, value in facts.items()}),
            temporary, compression="zstd", use_dictionary=False,
        )  # fmt: skip


def with_clusters(cohort: Cohort, path: Path) -> Cohort:
    """The cohort, its slides with their clusters.

    Raises:
        ConfigError: no such table.
        ManifestError: a training slide is not in it, or it was made for other tiles.
    """
    if not path.is_file():
        raise ConfigError(f"sample.clusters {path.name}: no such file; make it with `python -m pretrain cluster`")
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"sample.clusters {path.name}: not a table of `python -m pretrain cluster` ({type(error).__name__})"
        ) from error
    of_slide = dict(zip(table.column("slide_key").to_pylist(), table.column("clusters").to_pylist(), strict=True))
    train = cohort.part("train")
    if missing := [slide.slide_key for slide in train if slide.slide_key not in of_slide]:
        raise ManifestError(
            f"sample.clusters {path.name}: {len(missing)} of {len(train)} training slides are not in it (first: {missing[0]}); "
            "write their features and make the table again, or exclude them from the cohort"
        )
    slides = tuple(replace(slide, clusters=of_slide.get(slide.slide_key, b"")) for slide in cohort.slides)
    for slide in slides:
        if slide.clusters and len(slide.clusters) != slide.num_tiles:
            raise ManifestError(
                f"slide {slide.slide_key}: {slide.num_tiles} tiles in the manifest, {len(slide.clusters)} in {path.name}; the "
                "tiles were counted again: make the table again"
            )
    return replace(cohort, slides=slides)
