"""Reading tiles: against OpenSlide and libjpeg as independent truths, on sound and on damaged slides."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from ingest.errors import ResolutionError, SlideError
from ingest.geometry import TileGrid
from ingest.read_plan import ReadReport
from ingest.slide import ReaderName, Slide, open_slide
from ingest.svs import Subsampling
from ingest.tiff_index import JPEG2000, read_index
from tests.slides import (
    REAL_SLIDES,
    Damage,
    damage_tile,
    stained_texture,
    write_jpeg2000_svs,
    write_plain_tiff,
    write_textured_svs,
)

CODINGS: list[tuple[Subsampling, int, int]] = [("420", 80, 256), ("422", 70, 240), ("444", 91, 256)]
needs_real_slides = pytest.mark.skipif(
    not REAL_SLIDES.exists(), reason="needs the real slides in ../shared/data/slides"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module", params=CODINGS, ids=lambda coding: coding[0])
def scan_40x(request: pytest.FixtureRequest, folder: Path) -> Path:
    subsampling, quality, tile_size_px = request.param
    path = folder / f"scan_40x_{subsampling}.svs"
    write_textured_svs(
        path,
        (2_531, 2_007),
        0.25,
        quality=quality,
        subsampling=subsampling,
        tile_size_px=tile_size_px,
        texture_px=1024,
    )
    return path


@pytest.fixture(scope="module")
def scan_20x(folder: Path) -> Path:
    path = folder / "scan_20x.svs"
    write_textured_svs(path, (2_000, 1_500), 0.5, texture_px=1024)
    return path


def read(slide: Slide, mpp: float = 0.5, num_threads: int = 1) -> tuple[TileGrid, NDArray[np.uint8], ReadReport]:
    """All tiles of 224 px."""
    grid = slide.grid(224, mpp)
    out = np.full((grid.num_cells, 224, 224, 3), 77, np.uint8)
    return grid, out, slide.read_tiles(grid, np.arange(grid.num_cells), out, num_threads)


def regions(path: Path, grid: TileGrid) -> list[NDArray[np.uint8]]:
    """The tiles' boxes at level 0 as OpenSlide reads them."""
    boxes = grid.boxes(np.arange(grid.num_cells)).tolist()
    with openslide.OpenSlide(path) as handle:
        return [np.asarray(handle.read_region((x, y), 0, (w, h)).convert("RGB")) for x, y, w, h in boxes]


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    squares = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float(10 * np.log10(255**2 / max(1e-10, squares)))


# Pixels


def test_unscaled_tiles_are_identical_to_openslide(scan_40x: Path) -> None:
    with open_slide(scan_40x) as slide:
        assert slide.reader == "tiff"
        grid, tiles, report = read(slide, 0.25)
    assert report.bad == ()
    assert (tiles == np.stack(regions(scan_40x, grid))).all()


def test_half_scale_is_within_45_db_of_full_decode_and_area_average(scan_40x: Path) -> None:
    with open_slide(scan_40x) as slide:
        grid, tiles, _ = read(slide, 0.5)
    truth = [cv2.resize(region, (224, 224), interpolation=cv2.INTER_AREA) for region in regions(scan_40x, grid)]
    assert psnr(tiles, np.stack(truth)) >= 45
    assert abs(tiles.mean() - np.stack(truth).mean()) < 0.5


def test_coarser_scales_come_from_the_pyramid_and_show_the_same_place(scan_40x: Path) -> None:
    with open_slide(scan_40x) as slide:
        grid, tiles, _ = read(slide, 2.0)
    truth = [cv2.resize(region, (224, 224), interpolation=cv2.INTER_AREA) for region in regions(scan_40x, grid)]
    assert len(tiles) == 1
    assert psnr(tiles, np.stack(truth)) > 32  # the level was compressed a second time


@pytest.mark.parametrize("mpp", [0.2528, 0.246, 0.35, 0.26])
def test_a_scale_that_is_not_whole_is_resized_once_and_shows_the_same_place(folder: Path, mpp: float) -> None:
    path = folder / "smooth.svs"
    if not path.exists():
        write_textured_svs(path, (1_800, 1_500), 0.25, subsampling="444", quality=95, texture_px=512)
    with open_slide(path, mpp_override=mpp) as slide:
        grid, tiles, report = read(slide)
    truth = [cv2.resize(region, (224, 224), interpolation=cv2.INTER_AREA) for region in regions(path, grid)]
    assert report.bad == ()
    assert psnr(tiles, np.stack(truth)) > 32  # box edges are rounded to a pixel of the scale that is read
    # Shifted by two pixels it would be far worse: the place is right.
    assert psnr(np.roll(tiles, 2, axis=2), np.stack(truth)) < psnr(tiles, np.stack(truth)) - 4


@pytest.mark.parametrize("mpp", [0.25, 0.2528, 0.35])
def test_two_threads_read_the_same_as_one(scan_40x: Path, mpp: float) -> None:
    with open_slide(scan_40x, mpp_override=mpp) as slide:
        _, one, report_one = read(slide)
        _, two, report_two = read(slide, num_threads=2)
    assert (one == two).all()
    assert report_one == report_two


def test_a_wide_read_that_is_resized_in_parts_gives_the_same(scan_20x: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(scan_20x) as slide:
        _, at_once, whole = read(slide, 0.6)
        monkeypatch.setattr("ingest.tiff_slide.STAGING_BYTES", 1_500_000)  # two columns of 269 px, two rows in flight
        _, in_parts, parts = read(slide, 0.6)
    assert (in_parts == at_once).all()
    assert parts.num_file_tiles_decoded > whole.num_file_tiles_decoded  # those on a border between parts, twice


def test_every_file_tile_is_decoded_once(scan_20x: Path) -> None:
    with open_slide(scan_20x) as slide:
        grid, _, report = read(slide)
    assert (grid.num_columns, grid.num_rows) == (8, 6)
    assert report.num_file_tiles_decoded == 7 * 6  # 8 * 224 = 1792 px across are 7 tiles of 256 px, 1344 down are 6


def test_some_tiles_read_alone_or_twice_are_those_of_the_whole(scan_20x: Path) -> None:
    with open_slide(scan_20x) as slide:
        grid, everything, _ = read(slide)
        some = np.array([0, 5, 5, 17, 46])
        out = np.empty((5, 224, 224, 3), np.uint8)
        slide.read_tiles(grid, some, out)
        nothing = slide.read_tiles(grid, np.array([], np.int64), out[:0])
    assert (out == everything[some]).all()
    assert nothing == ReadReport((), 0)


@pytest.mark.parametrize("reader", ["openslide", "cucim"])
@pytest.mark.parametrize("mpp", [0.5, 0.6])
def test_every_reader_shows_the_same_tiles(scan_20x: Path, reader: ReaderName, mpp: float) -> None:
    if reader == "cucim":
        pytest.importorskip("cucim", reason="cuCIM is an extra")
    with open_slide(scan_20x) as ours, open_slide(scan_20x, reader) as other:
        assert other.reader == reader
        assert ours.info.levels == other.info.levels
        _, expected, _ = read(ours, mpp)
        _, tiles, report = read(other, mpp)
    assert report.bad == ()
    assert (tiles == expected).all()


@pytest.mark.parametrize("reader", ["tiff", "openslide", "cucim"])
def test_a_thumbnail_is_the_area_average_of_the_slide(scan_40x: Path, reader: ReaderName) -> None:
    if reader == "cucim":
        pytest.importorskip("cucim", reason="cuCIM is an extra")
    with openslide.OpenSlide(scan_40x) as handle:
        full = np.asarray(handle.read_region((0, 0), 0, handle.dimensions).convert("RGB"))
    with open_slide(scan_40x, reader) as slide:
        for mpp in (1.0, 3.7, 8.0):
            thumbnail = slide.thumbnail(mpp, num_threads=2)
            assert thumbnail.shape == (round(2_007 * 0.25 / mpp), round(2_531 * 0.25 / mpp), 3)
            truth = cv2.resize(full, thumbnail.shape[1::-1], interpolation=cv2.INTER_AREA).astype(float)
            # Levels were compressed a second time and are cut off to whole pixels; places agree to half a pixel.
            difference = np.abs(thumbnail - truth).mean()
            assert difference < 7
            assert difference < 0.7 * np.abs(np.roll(thumbnail, 1, axis=(0, 1)) - truth).mean()


def test_a_thumbnail_of_a_slide_without_a_pyramid_is_exact(folder: Path) -> None:
    path = folder / "one_level.svs"
    write_textured_svs(path, (2_048, 1_536), 0.25, downsamples=(1,), texture_px=512)
    with openslide.OpenSlide(path) as handle:
        full = np.asarray(handle.read_region((0, 0), 0, handle.dimensions).convert("RGB"))
    with open_slide(path) as slide:
        thumbnail = slide.thumbnail(8.0)  # 1/8 by libjpeg, then 1/4
    truth = cv2.resize(full, (64, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(thumbnail.astype(float) - truth).max() <= 2


# Damage


@pytest.mark.parametrize("how", ["random", "inside", "half"])
@pytest.mark.parametrize("reader", ["tiff", "openslide", "cucim"])
def test_a_damaged_tile_is_reported_and_leaves_the_others_alone(
    scan_20x: Path, tmp_path: Path, reader: ReaderName, how: Damage
) -> None:
    if reader == "cucim":
        pytest.importorskip("cucim", reason="cuCIM is an extra")
    path = tmp_path / "damaged.svs"
    shutil.copy(scan_20x, path)
    damage_tile(path, 8 + 1, how)  # second row, second column: pixels 256..511 both ways; 8 file tiles across
    with open_slide(scan_20x) as sound, open_slide(path, reader) as slide:
        _, expected, _ = read(sound)
        grid, tiles, report = read(slide)
    touched = [row * grid.num_columns + column for row in (1, 2) for column in (1, 2)]
    assert report.bad == tuple((position, "damaged") for position in touched)
    others = np.setdiff1d(np.arange(len(tiles)), touched)
    assert (tiles[others] == expected[others]).all()
    assert (tiles[grid.num_columns + 1][32:, 32:] == 255).all()  # white, never black or half a picture


@pytest.mark.parametrize("how", ["random", "half"])
def test_a_damaged_tile_is_reported_when_tiles_are_resized(scan_20x: Path, tmp_path: Path, how: Damage) -> None:
    path = tmp_path / "damaged.svs"
    shutil.copy(scan_20x, path)
    damage_tile(path, 0, how)
    with open_slide(path) as slide:
        grid, tiles, report = read(slide, 0.6, num_threads=2)
    assert report.bad == ((0, "damaged"),)
    assert (tiles[0][:200, :200] == 255).all()
    assert tiles[1].mean() < 200
    assert grid.num_cells == 35


@pytest.mark.parametrize("reader", ["tiff", "openslide", "cucim"])
def test_a_tile_that_was_never_scanned_is_white_and_no_damage(
    scan_20x: Path, tmp_path: Path, reader: ReaderName
) -> None:
    if reader == "cucim":
        pytest.importorskip("cucim", reason="cuCIM is an extra")
    path = tmp_path / "sparse.svs"
    shutil.copy(scan_20x, path)
    damage_tile(path, 0, "empty")
    with open_slide(path, reader) as slide:
        _, tiles, report = read(slide)
        thumbnail = slide.thumbnail(0.5)
    assert report.bad == ()
    assert (tiles[0] == 255).all()
    assert tiles[1][:, 40:].mean() < 200
    assert (thumbnail[:256, :256] == 255).all()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_among_its_neighbours_a_tile_that_was_never_scanned_and_a_damaged_one_are_white_and_only_they(
    scan_20x: Path, tmp_path: Path, num_threads: int
) -> None:
    path = tmp_path / "mixed.svs"
    shutil.copy(scan_20x, path)
    damage_tile(path, 8 + 2, "empty")  # second row, third and fifth of eight: pixels 512..767 and 1024..1279
    damage_tile(path, 8 + 4, "half")
    with open_slide(scan_20x) as sound, open_slide(path) as slide:
        grid, expected, _ = read(sound)
        _, tiles, report = read(slide, num_threads=num_threads)
    columns = np.arange(grid.num_columns * 224)
    is_lost = ((columns >= 512) & (columns < 768)) | ((columns >= 1024) & (columns < 1280))
    rows = np.arange(grid.num_rows * 224)
    lost = is_lost[None, :] & ((rows >= 256) & (rows < 512))[:, None]
    shape = grid.num_rows, grid.num_columns, 224, 224
    whole, before = (
        pixels.reshape(*shape, 3).transpose(0, 2, 1, 3, 4).reshape(len(rows), len(columns), 3)
        for pixels in (tiles, expected)
    )
    assert (whole[lost] == 255).all()
    assert (whole[~lost] == before[~lost]).all()
    assert report.bad == tuple((row * grid.num_columns + column, "damaged") for row in (1, 2) for column in (4, 5))


def test_jpeg2000_is_read_by_openslide_and_loses_only_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "jpeg2000.svs"
    pixels = stained_texture(768, 0.5)[:600, :700]  # three file tiles across, three down; 3 x 2 tiles of 224 px
    write_jpeg2000_svs(path, pixels, 0.5)
    with open_slide(path) as slide:
        assert slide.describe().startswith("reader openslide (TIFF compression 33005 is not JPEG), format aperio")
        grid, tiles, report = read(slide)
    assert report.bad == ()
    for tile, (x, y, width, height) in zip(tiles, grid.boxes(np.arange(6)).tolist(), strict=True):
        assert (tile == pixels[y : y + height, x : x + width]).all()
    damage_tile(path, 5, "half", compressions=JPEG2000)  # OpenSlide gives a picture that has lost half of its detail
    with open_slide(path) as slide:
        _, damaged, report = read(slide)
    assert report.bad == ((5, "damaged"),)
    assert (damaged[5] == 255).all()
    assert (damaged[:5] == tiles[:5]).all()
    damage_tile(path, 0, "random", compressions=JPEG2000)  # here it raises; four output tiles need this one
    with open_slide(path) as slide:
        _, damaged, report = read(slide)
    assert report.bad == tuple((position, "damaged") for position in (0, 1, 3, 4, 5))
    assert (damaged[[0, 1, 3, 4, 5]] == 255).all()
    assert (damaged[2] == tiles[2]).all()
    with pytest.raises(SlideError, match="reader cucim: TIFF compression 33005 is not JPEG"):
        open_slide(path, "cucim")


def test_a_large_jpeg2000_file_cut_short_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "jpeg2000.svs"
    noise = np.random.default_rng(0).integers(0, 255, (1_400, 1_400, 3)).astype(np.uint8)
    write_jpeg2000_svs(path, noise, 0.5)
    assert path.stat().st_size > 5 << 20  # of a smaller one OpenSlide hashes every tile and refuses it itself
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(SlideError, match="before its last tile; copy it again") as caught:
        open_slide(path)
    assert caught.value.reason == "truncated"


def test_a_file_that_becomes_shorter_while_it_is_open_loses_only_the_tiles_behind_its_end(
    scan_20x: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shrinking.svs"
    shutil.copy(scan_20x, path)
    level = read_index(path)[0][0]
    with open_slide(scan_20x) as sound, open_slide(path) as slide:
        _, expected, _ = read(sound)
        os.truncate(path, int(level.offsets[20] + level.lengths[20]) - 2)  # eight across: the third row, fifth of eight
        grid, tiles, report = read(slide)
    touched = {position for position, _ in report.bad}
    boxes = grid.boxes(np.arange(grid.num_cells))
    rows, columns = boxes[:, 1], boxes[:, 0]
    needs = (rows + 224 > 768) | ((rows + 224 > 512) & (columns + 224 > 4 * 256))
    assert touched == set(np.flatnonzero(needs).tolist())
    assert (tiles[~needs] == expected[~needs]).all()


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_thumbnail_survives_one_damaged_tile_and_not_many(scan_20x: Path, tmp_path: Path, reader: ReaderName) -> None:
    path = tmp_path / "damaged.svs"
    shutil.copy(scan_20x, path)
    damage_tile(path, 9, "random")
    with open_slide(path, reader) as slide:
        thumbnail = slide.thumbnail(0.5)
        assert (thumbnail[256:512, 256:512] == 255).all()
        assert thumbnail[:250].mean() < 200
    damage_tile(path, 20, "random")
    with open_slide(path, reader) as slide, pytest.raises(SlideError, match="2 of 48 tiles are damaged") as caught:
        slide.thumbnail(0.5)
    assert caught.value.reason == "damaged_tiles"
    with open_slide(path, reader) as slide:
        slide.thumbnail(0.5, max_damaged=0.1)


def test_a_file_cut_short_is_truncated(scan_20x: Path, tmp_path: Path) -> None:
    data = scan_20x.read_bytes()
    with tifffile.TiffFile(scan_20x) as tiff:
        tiles_end = tiff.pages[0].dataoffsets[-1]
    for length in (len(data) // 2, tiles_end - 10, 1000):
        path = tmp_path / f"cut_{length}.svs"
        path.write_bytes(data[:length])
        with pytest.raises(SlideError, match="copy it again") as caught:
            open_slide(path)
        assert caught.value.reason == "truncated"
        assert str(tmp_path) not in str(caught.value)


def test_a_file_whose_tiles_were_cut_off_behind_the_index_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "index_first.tif"
    pixels = stained_texture(600, 0.5)[:500]
    write_plain_tiff(path, pixels, dots_per_cm=20_000)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        grid, tiles, _ = read(slide)
    assert (tiles == np.stack(regions(path, grid))).all()
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SlideError, match="before its last tile") as caught:
        open_slide(path)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("is_rgb", [False, True])
def test_colours_follow_the_tiff_tag_whatever_the_stream_claims(tmp_path: Path, is_rgb: bool) -> None:
    path = tmp_path / "jfif.tif"
    pixels = stained_texture(500, 0.5)
    write_plain_tiff(path, pixels, 20_000, is_rgb=is_rgb)
    with open_slide(path) as slide:
        assert slide.reader == "tiff"
        grid, tiles, _ = read(slide)
    assert (tiles == np.stack(regions(path, grid))).all()
    assert psnr(tiles[0], pixels[:224, :224]) > 30


@pytest.mark.parametrize("content", [b"", b"not a slide", b"II*\0" + bytes(100), bytes(4096)])
def test_what_is_no_slide_cannot_be_opened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "accession-number-in-name.svs"
    path.write_bytes(content)
    for reader in ("auto", "tiff", "openslide"):
        with pytest.raises(SlideError) as caught:
            open_slide(path, reader)
        assert caught.value.reason in ("cannot_open", "truncated")
        assert "accession" not in str(caught.value)


def test_a_missing_file_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file; mount the slide storage") as caught:
        open_slide(tmp_path / "nothing.svs")
    assert caught.value.reason == "cannot_open"


# Resolution


def test_a_missing_mpp_is_refused_unless_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "no_mpp.svs"
    from ingest.svs import write_svs

    write_svs(path, np.full((300, 300, 3), 200, np.uint8), mpp=None, downsamples=(1,))
    with pytest.raises(ResolutionError, match="give the slide an mpp above 0 in the manifest, or --mpp") as caught:
        open_slide(path)
    assert caught.value.reason == "no_mpp"
    with open_slide(path, mpp_override=0.25) as slide:
        assert slide.mpp == 0.25
    with pytest.raises(ResolutionError):
        open_slide(path, mpp_override=float("nan"))


@pytest.mark.parametrize("dots_per_cm", [72 / 2.54, 96 / 2.54])
@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_the_dpi_of_a_screen_is_no_mpp(tmp_path: Path, dots_per_cm: float, reader: ReaderName) -> None:
    path = tmp_path / "drawing.tif"
    write_plain_tiff(path, np.full((256, 256, 3), 200, np.uint8), dots_per_cm)
    with pytest.raises(ResolutionError) as caught:
        open_slide(path, reader)
    assert caught.value.reason == "no_mpp"


def test_a_coarse_scan_is_refused_with_what_to_set(scan_20x: Path) -> None:
    with open_slide(scan_20x) as slide, pytest.raises(ResolutionError, match=r"set tiles\.mpp = 0\.5 or coarser"):
        slide.grid(224, 0.25)


# Arguments, and what is said to people


def test_arguments_that_do_not_fit_are_refused(scan_20x: Path) -> None:
    with open_slide(scan_20x) as slide:
        grid = slide.grid(224, 0.5)
        out = np.empty((2, 224, 224, 3), np.uint8)
        with pytest.raises(ValueError, match="it must be C-contiguous uint8"):
            slide.read_tiles(grid, np.array([0, 1, 2]), out)
        with pytest.raises(ValueError, match="it must be C-contiguous uint8"):
            slide.read_tiles(grid, np.array([0, 1]), out.transpose(0, 2, 1, 3))
        for indices in ([1, 0], [-1, 0], [0, grid.num_cells]):
            with pytest.raises(ValueError, match="must rise and lie in"):
                slide.read_tiles(grid, np.array(indices), out)
    with open_slide(scan_20x, mpp_override=0.4) as slide, pytest.raises(ValueError, match="count its tiles again"):
        slide.read_tiles(grid, np.array([0, 1]), out)


def test_the_choice_of_reader_is_said_and_can_be_forced(scan_20x: Path) -> None:
    with open_slide(scan_20x) as slide:
        assert slide.describe() == (
            "reader tiff (tiled JPEG TIFF), format aperio, 2,000 x 1,500 px at 0.5 mpp, levels 1/[1, 4, 16]"
        )
    with open_slide(scan_20x, "openslide") as slide:
        assert slide.describe().startswith("reader openslide (as asked)")


def test_a_layout_that_ours_does_not_know_goes_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "deflate.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (600, 700, 3)).astype(np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), compression="zlib", resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert "TIFF compression 8 is not JPEG" in slide.describe()
        grid, tiles, _ = read(slide)
    x, y, width, height = grid.boxes(np.array([4]))[0]
    assert (tiles[4] == pixels[y : y + height, x : x + width]).all()
    with pytest.raises(SlideError, match="set reader = auto"):
        open_slide(path, "tiff")


# Real files


@needs_real_slides
@pytest.mark.parametrize("reader", ["openslide", "cucim"])
def test_a_real_scan_with_rgb_jpeg_is_read_identically_by_all(reader: ReaderName) -> None:
    path = REAL_SLIDES / "CMU-1-Small-Region.svs"
    if reader == "cucim":
        pytest.importorskip("cucim", reason="cuCIM is an extra")
    with open_slide(path) as ours, open_slide(path, reader) as other:
        grid, expected, _ = read(ours)
        _, tiles, _ = read(other)
    assert (grid.num_columns, grid.num_rows) == (9, 13)
    assert (tiles == expected).all()
    assert expected.std() > 20


@needs_real_slides
def test_a_real_scan_at_half_scale_is_within_45_db_of_the_area_average() -> None:
    path = REAL_SLIDES / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide:
        grid, tiles, _ = read(slide, 0.998)
    truth = [cv2.resize(region, (224, 224), interpolation=cv2.INTER_AREA) for region in regions(path, grid)]
    assert psnr(tiles, np.stack(truth)) >= 45


@needs_real_slides
@pytest.mark.parametrize(
    ("name", "reason"),
    [("unopenable.tiff", "cannot_open"), ("boxes.tiff", "no_mpp"), ("dicom_camelyon", "coarse_scan"),
     ("unreadable.svs", "cannot_read")],
)  # fmt: skip
def test_real_files_that_cannot_be_used_say_why(name: str, reason: str) -> None:
    path = REAL_SLIDES / name
    if path.is_dir():
        path = next(path.iterdir())

    def use() -> None:
        with open_slide(path) as slide:
            slide.grid(224, 0.5)
            slide.thumbnail(8.0)

    with pytest.raises(SlideError) as caught:
        use()
    assert caught.value.reason == reason
