"""The SVS writer, read back by readers that are not ours: OpenSlide, tifffile and cuCIM."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ingest.errors import ConfigError
from ingest.svs import Subsampling, write_svs

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")


def smooth_picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    knots = np.random.default_rng(seed).integers(40, 220, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def read_level(path: Path, level: int) -> NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        region = slide.read_region((0, 0), level, slide.level_dimensions[level])
    return np.asarray(region)[..., :3]


def mean_error(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_openslide_reads_the_pixels_that_were_written(tmp_path: Path, subsampling: Subsampling) -> None:
    pixels = smooth_picture(700, 530)
    write_svs(tmp_path / "s.svs", pixels, mpp=0.25, quality=95, subsampling=subsampling)
    assert mean_error(read_level(tmp_path / "s.svs", 0), pixels) < 1.5


def test_lower_levels_are_area_averages_of_the_top(tmp_path: Path) -> None:
    pixels = smooth_picture(1100, 1300)
    write_svs(tmp_path / "s.svs", pixels, mpp=0.5, quality=95, subsampling="444")
    for level, downsample in ((1, 4), (2, 16)):
        height, width = pixels.shape[0] // downsample, pixels.shape[1] // downsample
        whole = pixels[: height * downsample, : width * downsample].astype(np.float64)
        average = whole.reshape(height, downsample, width, downsample, 3).mean((1, 3))
        read = read_level(tmp_path / "s.svs", level)
        assert read.shape == (height, width, 3)
        assert np.abs(read - average).mean() < 2.5


def test_openslide_finds_vendor_resolution_and_objective(tmp_path: Path) -> None:
    write_svs(tmp_path / "s.svs", smooth_picture(300, 300), mpp=0.2528, scanner="AT2")
    with openslide.OpenSlide(tmp_path / "s.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.2528)
        assert slide.properties["aperio.ScanScope ID"] == "AT2"
        assert slide.level_downsamples == pytest.approx((1.0, 4.0, 16.67), abs=0.1)


def test_a_slide_without_mpp_has_none(tmp_path: Path) -> None:
    write_svs(tmp_path / "s.svs", smooth_picture(300, 300), mpp=None)
    with openslide.OpenSlide(tmp_path / "s.svs") as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert "aperio.AppMag" not in slide.properties


def test_tifffile_sees_tiled_jpeg_levels_with_shared_tables(tmp_path: Path) -> None:
    write_svs(tmp_path / "s.svs", smooth_picture(700, 530), mpp=0.5, tile_size_px=240, downsamples=(1, 2, 4))
    with tifffile.TiffFile(tmp_path / "s.svs") as tiff:
        assert tiff.is_svs
        assert [page.shape for page in tiff.pages] == [(530, 700, 3), (265, 350, 3), (132, 175, 3)]
        for page in tiff.pages:
            assert page.is_tiled
            assert page.tilewidth == page.tilelength == 240
            assert page.compression == tifffile.COMPRESSION.JPEG
            assert page.jpegtables is not None
            assert page.jpegtables.startswith(b"\xff\xd8\xff\xdb")
        assert len(tiff.pages[0].dataoffsets) == 3 * 3


def test_cucim_reads_the_same_pixels_as_openslide(tmp_path: Path) -> None:
    cucim = pytest.importorskip("cucim")
    write_svs(tmp_path / "s.svs", smooth_picture(700, 530), mpp=0.5)
    image = cucim.CuImage(str(tmp_path / "s.svs"))
    read = np.asarray(image.read_region((0, 0), (700, 530), 0)).copy()
    assert mean_error(read, read_level(tmp_path / "s.svs", 0)) < 0.5


def test_a_tile_function_writes_the_same_file_as_the_array_and_is_asked_once_per_tile(tmp_path: Path) -> None:
    pixels = smooth_picture(600, 520)
    asked: list[tuple[int, int, int, int]] = []

    def tile(x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        asked.append((x, y, width, height))
        return pixels[y : y + height, x : x + width]

    write_svs(tmp_path / "array.svs", pixels, mpp=0.5)
    write_svs(tmp_path / "function.svs", tile, mpp=0.5, size_px=(600, 520))
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("array.svs", "function.svs")}
    assert len(digests) == 1
    assert asked[0] == (0, 0, 256, 256)
    assert asked[-1] == (512, 512, 88, 8)
    assert len(asked) == 9


def test_a_slide_smaller_than_a_level_leaves_that_level_out(tmp_path: Path) -> None:
    write_svs(tmp_path / "s.svs", smooth_picture(12, 12), mpp=0.5)
    with openslide.OpenSlide(tmp_path / "s.svs") as slide:
        assert slide.level_dimensions == ((12, 12), (3, 3))


def test_a_failing_tile_function_leaves_no_file(tmp_path: Path) -> None:
    def tile(x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        raise RuntimeError("the painter fell asleep")

    with pytest.raises(RuntimeError, match="asleep"):
        write_svs(tmp_path / "s.svs", tile, mpp=0.5, size_px=(300, 300))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 0}, "quality 0"),
        ({"mpp": 0.0}, "mpp 0.0"),
        ({"downsamples": (2, 4)}, "first downsample must be 1"),
        ({"downsamples": (1, 4, 6)}, "whole multiple"),
        ({"tile_size_px": 250, "downsamples": (1, 2)}, "multiple of 16"),
        ({"tile_size_px": 240, "downsamples": (1, 32)}, "divides the tile"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"mpp": 0.5, **options}
    with pytest.raises(ConfigError, match=message):
        write_svs(tmp_path / "s.svs", smooth_picture(64, 64), **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_pixels_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float64"):
        write_svs(tmp_path / "s.svs", np.zeros((8, 8, 3)), mpp=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="size_px"):
        write_svs(tmp_path / "s.svs", lambda x, y, width, height: np.zeros((height, width, 3), np.uint8), mpp=0.5)
