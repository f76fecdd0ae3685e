"""`evaluate features` on a small cohort: right numbers, bad slides, resumption, ranks."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import torch

from evaluate.features import FeaturesConfig, extract, features_run, rank_scans
from evaluate.frozen import FrozenEncoder, open_encoder
from evaluate.tile_blocks import Scan, plan_blocks, read_blocks, read_scans
from ingest.errors import ConfigError, InputError, ManifestError, SlideError
from ingest.slide import open_slide
from pretrain.config import PretrainConfig
from pretrain.feeder import SlideFeeder, Slot
from tests.small_cohort import TILE_PX, write_small_cohort

ROOT = Path(__file__).parents[2]
FLOAT32 = FeaturesConfig(dtype="float32", block_tiles=5, device="cpu")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    return write_small_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def scans(cohort: PretrainConfig) -> list[Scan]:
    return read_scans(cohort.data.manifest, cohort.data.vault)


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return open_encoder("test_resnet:random", seed=1)


@pytest.fixture
def own_cohort(tmp_path: Path) -> PretrainConfig:
    """One whose files a test may break."""
    return write_small_cohort(tmp_path / "own")


def features_of(folder: Path, slide_key: str) -> np.ndarray:
    (path,) = folder.glob(f"*/features_*/{slide_key}.h5")
    with h5py.File(path, "r") as file:
        features: np.ndarray = file["features"][:]
    return features


def tiles_read_directly(scan: Scan) -> np.ndarray:
    tiles = np.empty((scan.num_tiles, TILE_PX, TILE_PX, 3), np.uint8)
    with open_slide(scan.path) as slide:
        slide.read_tiles(scan.grid, scan.tile_indices(), tiles)
    return tiles


def test_features_are_those_of_the_encoder_on_the_tiles_of_the_slide(
    encoder: FrozenEncoder, scans: list[Scan], tmp_path: Path
) -> None:
    extracted = extract(encoder, scans, tmp_path, FLOAT32)
    assert extracted.outcome.written == tuple(scan.slide_key for scan in scans)
    for scan in scans[:3]:  # 11 to 13 tiles: blocks of 5 leave a rest
        prepared = (tiles_read_directly(scan).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5  # the constants of this model
        with torch.inference_mode():
            expected = copy.deepcopy(encoder.module).double()(torch.from_numpy(prepared)).numpy()
        assert features_of(tmp_path, scan.slide_key) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_features_in_float16_are_the_rounded_ones(encoder: FrozenEncoder, scans: list[Scan], tmp_path: Path) -> None:
    extract(encoder, scans[:1], tmp_path / "32", FLOAT32)
    extract(encoder, scans[:1], tmp_path / "16", FLOAT32.model_copy(update={"dtype": "float16"}))
    assert np.array_equal(
        features_of(tmp_path / "16", "slide0"), features_of(tmp_path / "32", "slide0").astype(np.float16)
    )


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"channels_last": False}, {"chunk_tiles": 2}])
def test_settings_of_the_computation_change_little_and_precision_something(
    encoder: FrozenEncoder, scans: list[Scan], tmp_path: Path, change: dict[str, object]
) -> None:
    extract(encoder, scans[:1], tmp_path / "plain", FLOAT32)
    extract(encoder, scans[:1], tmp_path / "other", FLOAT32.model_copy(update=change))
    plain, other = features_of(tmp_path / "plain", "slide0"), features_of(tmp_path / "other", "slide0")
    distance = np.abs(plain - other).max() / np.abs(plain).max()
    assert distance < (0.05 if "precision" in change else 1e-5)
    assert distance > 1e-4 or "precision" not in change


def test_a_second_run_writes_nothing_and_makes_only_what_is_missing(
    encoder: FrozenEncoder, scans: list[Scan], tmp_path: Path
) -> None:
    store = extract(encoder, scans, tmp_path, FLOAT32).store
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.h5")}
    assert len(files) == 2 * len(scans)
    victim = store.features_path("slide3")
    victim.write_bytes(victim.read_bytes()[:1000])  # as after a full disk with another writer
    outcome = extract(encoder, scans, tmp_path, FLOAT32).outcome
    assert outcome.written == ("slide3",)
    assert len(outcome.skipped) == len(scans) - 1
    changed = {file.name for file, time in files.items() if file.stat().st_mtime_ns != time}
    assert changed == {"slide3.h5", "slide3_patches.h5"}


def test_other_forms_are_made_from_finished_features_and_follow_them(
    encoder: FrozenEncoder, scans: list[Scan], tmp_path: Path
) -> None:
    some = scans[:2]
    named = FLOAT32.model_copy(update={"name": "mine"})
    also = named.model_copy(update={"also": ("bags", "stamp")})
    extract(encoder, some, tmp_path, named)
    store = extract(encoder, some, tmp_path, also).store
    assert torch.equal(torch.load(store.bag_path("slide0")), torch.from_numpy(features_of(tmp_path, "slide0")))
    with h5py.File(store.stamp_path("slide0"), "r") as file:
        assert isinstance(file.get("feats", getlink=True), h5py.ExternalLink)
    extract(encoder, some, tmp_path, also.model_copy(update={"stamp_link": False}))
    with h5py.File(store.stamp_path("slide0"), "r") as file:
        assert isinstance(file.get("feats", getlink=True), h5py.HardLink)
    other = open_encoder("test_resnet:random", seed=2)  # under the same name: its features replace the old ones
    extract(other, some, tmp_path, named)
    extract(other, some, tmp_path, also)
    assert torch.equal(torch.load(store.bag_path("slide0")), torch.from_numpy(features_of(tmp_path, "slide0")))


def test_bad_slides_are_told_in_the_ledger_and_the_others_are_written(
    encoder: FrozenEncoder, own_cohort: PretrainConfig, tmp_path: Path
) -> None:
    scans = read_scans(own_cohort.data.manifest, own_cohort.data.vault)
    scans[0].path.unlink()
    scans[1].path.write_text("not a slide")
    whole = scans[2].path.read_bytes()
    scans[2].path.write_bytes(whole[: len(whole) // 2])
    shutil.copy(scans[4].path, scans[3].path)
    wrong_size = scans[5].path
    wrong_size.write_bytes((ROOT / "tests" / "small_cohort.py").read_bytes())
    extracted = extract(encoder, scans, tmp_path / "out", FLOAT32)
    ledger = json.loads((extracted.store.features_path("").parent / "ledger.json").read_text())
    assert ledger["in"] == 8 == ledger["written"] + ledger["skipped"] + ledger["failed"]
    assert set(extracted.outcome.failed) == {"slide0", "slide1", "slide2", "slide5"}
    assert all(reason.isidentifier() for reason in extracted.outcome.failed.values())
    assert ledger["slides"]["slide4"] == "written"
    assert ledger["slides"]["slide0"].startswith("failed: ")
    assert {file.stem for file in extracted.store.features_path("").parent.glob("*.h5")} == {
        "slide3",
        "slide4",
        "slide6",
        "slide7",
    }
    assert str(tmp_path) not in json.dumps(ledger)


def test_if_no_slide_can_be_used_the_command_fails_with_the_first_reason(
    encoder: FrozenEncoder, own_cohort: PretrainConfig, tmp_path: Path
) -> None:
    scans = read_scans(own_cohort.data.manifest, own_cohort.data.vault)
    for scan in scans:
        scan.path.unlink()
    with pytest.raises(InputError, match=r"none of 8 slides could be used; the first, slide\d: \w+"):
        extract(encoder, scans, tmp_path / "out", FLOAT32)
    assert list(tmp_path.glob("out/*/*/ledger.json"))


def kill_reader() -> None:
    (reader,) = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    reader.kill()


def test_a_reader_that_dies_costs_one_slide(scans: list[Scan]) -> None:
    blocks = read_blocks(plan_blocks(scans, 4), block_tiles=4, tile_size_px=TILE_PX)
    seen: dict[str, list[tuple[int, str]]] = {}
    for number, block in enumerate(blocks):
        if number == 1:
            kill_reader()
        seen.setdefault(block.scan.slide_key, []).append((len(block.tile_indices), block.problem))
    assert {key: sum(count for count, _ in told) for key, told in seen.items()} == {
        scan.slide_key: scan.num_tiles for scan in scans
    }  # every block asked for comes back
    with_problem = {key for key, told in seen.items() if any(problem for _, problem in told)}
    assert len(with_problem) == 1
    assert with_problem < {"slide0", "slide1"}  # what was read ahead when the reader died


def test_a_reader_that_dies_on_slide_after_slide_is_an_error(
    scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_get = SlideFeeder.get

    def get_after_a_kill(self: SlideFeeder) -> Slot:
        kill_reader()
        return plain_get(self)

    monkeypatch.setattr(SlideFeeder, "get", get_after_a_kill)
    with pytest.raises(SlideError, match="the reader process ended"):
        list(read_blocks(plan_blocks(scans, 30), block_tiles=30, tile_size_px=TILE_PX))


def test_blocks_of_any_size_hold_the_same_tiles(scans: list[Scan]) -> None:
    def joined(block_tiles: int) -> Iterator[tuple[str, np.ndarray]]:
        for block in read_blocks(plan_blocks(scans[:3], block_tiles), block_tiles=block_tiles, tile_size_px=TILE_PX):
            assert block.tiles_KHW3 is not None
            yield from ((block.scan.slide_key, tile.copy()) for tile in block.tiles_KHW3)

    few, many = list(joined(3)), list(joined(50))
    assert [key for key, _ in few] == [key for key, _ in many]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(few, many, strict=True))
    assert np.array_equal(np.stack([tile for key, tile in few if key == "slide1"]), tiles_read_directly(scans[1]))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 11])
def test_every_slide_belongs_to_one_rank_and_ranks_have_equal_work(scans: list[Scan], num_ranks: int) -> None:
    shares = [rank_scans(scans, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(scan.slide_key for share in shares for scan in share) == sorted(scan.slide_key for scan in scans)
    if num_ranks <= 3:
        work = [sum(scan.num_tiles for scan in share) for share in shares]
        assert max(work) - min(work) <= max(scan.num_tiles for scan in scans)


def test_two_ranks_write_together_what_one_writes_and_the_last_one_tells_the_whole(
    encoder: FrozenEncoder, scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(encoder, scans, tmp_path / "one", FLOAT32)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert len(extract(encoder, scans, tmp_path / "two", FLOAT32).outcome.written) == 4
    assert not list((tmp_path / "two").glob("*/*/ledger.json"))
    monkeypatch.setenv("RANK", "0")
    assert len(extract(encoder, scans, tmp_path / "two", FLOAT32).outcome.written) == 8
    for scan in scans:
        assert np.array_equal(
            features_of(tmp_path / "two", scan.slide_key), features_of(tmp_path / "one", scan.slide_key)
        )
    (ledger,) = (tmp_path / "two").glob("*/*/ledger.json")
    assert json.loads(ledger.read_text())["written"] == 8


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    cohort: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "test_resnet:random",
        "best",
        cohort.data.manifest,
        cohort.data.vault,
        tmp_path / "out",
        FeaturesConfig(),
    )
    features_run(*arguments, dry_run=True)
    printed = capsys.readouterr().out
    assert "8 slides, 116 tiles of 32 px at 0.5 mpp; 0 slides are finished" in printed
    assert "would write" in printed
    assert not (tmp_path / "out").exists()
    features_run(*arguments, dry_run=False)
    assert capsys.readouterr().out.splitlines()[-1].startswith("open ")
    features_run(*arguments, dry_run=True)
    assert "8 slides are finished" in capsys.readouterr().out


def test_an_encoder_folder_alone_does_not_say_of_which_slides(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --manifest and --vault"):
        features_run("test_resnet:random", "best", None, None, tmp_path, FeaturesConfig(), dry_run=True)


def test_an_encoder_of_fixed_size_is_refused_before_any_slide_is_read(scans: list[Scan], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not take tiles of 32 px"):
        extract(open_encoder("vit_tiny_patch16_224:random"), scans, tmp_path, FLOAT32)
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "neither a run folder"),
        ("resnet81:random", "did you mean"),
        ("test_resnet:nofile.pth", "no such file"),
    ],
)
def test_a_source_that_is_nothing_is_explained(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_encoder(source)


def test_manifest_and_vault_of_different_keys_are_refused(cohort: PretrainConfig, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    shutil.copytree(cohort.data.vault, tmp_path / "vault")
    path = tmp_path / "vault" / "locations.parquet"
    table = pq.read_table(path)
    changed = {key: (b"other" if b"key_fingerprint" in key else value) for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(changed), path)
    with pytest.raises(ManifestError):
        read_scans(cohort.data.manifest, tmp_path / "vault")
