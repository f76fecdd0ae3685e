"""How good is an encoder, and what does end-to-end training add: `python -m evaluate probe`.

Tiles: linear probe and nearest neighbours on labelled tiles. Slides: gated attention on frozen features, beside the
end-to-end predictions of the run itself. Always beside random weights. No patient on whom an encoder was trained or
selected is scored: their tiles are left out and counted, and their slides are the train and tune part.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.feature_layout import FeatureStore, is_finished, read_features
from evaluate.features import FeaturesConfig, extract
from evaluate.frozen import FrozenEncoder, open_encoder
from evaluate.labelled_tiles import read_labelled_tiles
from evaluate.predictions import read_predictions, write_predictions
from evaluate.probe_config import ProbeConfig
from evaluate.probe_page import write_probe
from evaluate.probe_result import ProbeResult, ProbeRow, compare_rows, probe_row, probe_text
from evaluate.slide_probe import probe_slides
from evaluate.tile_blocks import read_scans
from evaluate.tile_probe import probe_tiles, tiles_sentence
from ingest.errors import ConfigError, GateError, InputError
from ingest.manifest import read_footer, read_table
from pretrain.cohort import Cohort, CohortSlide, load_cohort
from pretrain.start import open_cohort

Encoders = Mapping[str, FrozenEncoder]


def open_encoders(arguments: Sequence[str], checkpoint: str, config: ProbeConfig) -> dict[str, FrozenEncoder]:
    """Encoders by name from `NAME=SOURCE` or SOURCE, and random weights of the first one's model.

    Raises:
        ConfigError: a name twice, or a source that is none.
    """
    found: dict[str, FrozenEncoder] = {}
    for argument in arguments:
        name, separator, source = argument.partition("=")
        if not separator:
            name, source = argument.removesuffix(":random").rsplit("/", 1)[-1], argument
        if not re.fullmatch(r"[\w.-]+", name) or name in found:
            raise ConfigError(f"encoder {argument}: give each a name of its own, as in ours=runs/breast")
        found[name] = open_encoder(source, checkpoint, config.seed)
    first = next(iter(found.values()))
    if config.random_baseline and "random" not in found:
        random = open_encoder(f"{first.name}:random", seed=config.seed)
        if random.digest not in {encoder.digest for encoder in found.values()}:
            found["random"] = random
    return found


def seen_patients(encoders: Encoders, manifest: Path | None, config: ProbeConfig) -> frozenset[str]:
    """Patients on whom an encoder was trained or selected: train and tune of its run, or, for an export, of the manifest."""
    seen: set[str] = set()
    for encoder in encoders.values():
        slides: Sequence[CohortSlide] = ()
        if encoder.trained is not None:
            slides = open_cohort(encoder.trained.config).slides
        elif manifest is not None and encoder.manifest_digest == read_footer(manifest, "slides")["content_digest"]:
            seen |= _patients_of_parts(manifest, config, ("train", "tune"))
        seen |= {slide.patient_key for slide in slides if slide.split != "test"}
    return frozenset(seen)


def probe_cohort(
    encoders: Encoders, manifest: Path, vault: Path, out: Path, checkpoint: str, config: ProbeConfig,
    features: FeaturesConfig,
) -> tuple[list[ProbeRow], list[str]]:  # fmt: skip
    """Gated attention on the frozen features of each encoder, after the end-to-end predictions of the runs; and notes.

    Raises:
        GateError: a patient of the test part was seen by an encoder.
    """
    cohort = load_cohort(manifest, vault, [config.task], config.scheme, config.fold)
    seen = seen_patients(encoders, manifest, config)
    if leaked := sorted({slide.patient_key for slide in cohort.part("test")} & seen):
        raise GateError(
            f"probe: {len(leaked)} patients of the test part of scheme {config.scheme} fold {config.fold} were seen in the "
            f"training of an encoder (first {leaked[0]}); compare encoders of the same split"
        )
    keys = {slide.slide_key for slide in cohort.slides}
    scans = [scan for scan in read_scans(manifest, vault) if scan.slide_key in keys]
    stores = {name: extract(encoder, scans, out / "features", features).store for name, encoder in encoders.items()}
    usable = {scan.slide_key for scan in scans if all(is_finished(store, scan) for store in stores.values())}
    parts = {
        part: [slide for slide in cohort.part(part) if slide.slide_key in usable] for part in ("train", "tune", "test")
    }
    notes = [f"Slides: {', '.join(f'{len(slides)} {part}' for part, slides in parts.items())} (scheme {config.scheme}, fold "
             f"{config.fold}); {len(keys) - len(usable)} could not be read and are left out for every encoder."]  # fmt: skip
    test_keys = [slide.slide_key for slide in parts["test"]]
    rows = [
        _end_to_end(name, encoder, cohort, test_keys, checkpoint, config.task)
        for name, encoder in encoders.items()
        if encoder.trained is not None and encoder.manifest_digest == cohort.manifest_digest
    ]
    for name, store in stores.items():
        probed = probe_slides(parts["train"], parts["tune"], parts["test"], config.task, _reader(store), config.slides,
                              config.seed, f"attention on {name}")  # fmt: skip
        details = {"selected_on": probed.selected_on, "epoch": probed.chosen_epoch, "tune_auroc": probed.tune_auroc}
        rows.append(probe_row("slide", "frozen", name, probed.predictions, details))
    return rows, notes


def probe_run(
    arguments: Sequence[str], tiles_path: Path | None, manifest: Path | None, vault: Path | None, out: Path,
    checkpoint: str, config: ProbeConfig, features: FeaturesConfig, dry_run: bool,
) -> None:  # fmt: skip
    """What the command does: opens the encoders, says what it will do, does it unless `dry_run`, says what to open."""
    encoders = open_encoders(arguments, checkpoint, config)
    run = next((encoder.trained for encoder in encoders.values() if encoder.trained is not None), None)
    if run is not None and manifest is None:
        manifest, vault = run.config.data.manifest, run.config.data.vault
        config = config.model_copy(update={"task": run.config.tasks[0].name, "scheme": run.config.data.scheme,
                                           "fold": run.config.data.fold})  # fmt: skip
    if (manifest is None) != (vault is None):
        raise ConfigError("probe: --manifest and --vault belong together; give both or neither")
    if tiles_path is None and manifest is None:
        raise ConfigError("probe: nothing to probe on; give --tiles, or --manifest and --vault, or a run folder")
    for name, encoder in encoders.items():
        print(f"{name}: {encoder.name}, {encoder.num_features} features, digest {encoder.digest[:16]}")
    rows: list[ProbeRow] = []
    notes: list[str] = []
    tiles = None
    if tiles_path is not None:
        scans = read_scans(manifest, vault) if manifest is not None and vault is not None else []
        tiles = read_labelled_tiles(tiles_path, scans, seen_patients(encoders, manifest, config))
        notes.append(tiles_sentence(tiles, config))
        print(notes[-1])
    if manifest is not None:
        print(f"slides of {manifest.name}: task {config.task}, scheme {config.scheme}, fold {config.fold}")
    if dry_run:
        print(f"would write {out / 'probe.html'}")
        return
    if tiles is not None:
        rows += probe_tiles(encoders, tiles, config, features)
    if manifest is not None and vault is not None:
        slide_rows, slide_notes = probe_cohort(encoders, manifest, vault, out, checkpoint, config, features)
        rows, notes = rows + slide_rows, notes + slide_notes
    for row in rows:
        write_predictions(row.predictions, out / "predictions" / f"{row.level}_{row.method}_{row.encoder}.parquet")
    facts = {name: {"model": encoder.name, "digest": encoder.digest, "num_features": encoder.num_features}
             for name, encoder in encoders.items()}  # fmt: skip
    result = ProbeResult(rows=rows, comparisons=compare_rows(rows, config), encoders=facts, notes=notes, config=config)
    write_probe(result, out)
    print(probe_text(result))
    print(f"open {out / 'probe.html'} (numbers: probe.json; scores: predictions/, for `python -m evaluate compare`)")


def _end_to_end(
    name: str, encoder: FrozenEncoder, cohort: Cohort, test_keys: Sequence[str], checkpoint: str, task: str
) -> ProbeRow:
    """The run's own predictions of the test part; made now if they are not there or were made with other weights."""
    from evaluate.whole import EvaluateConfig, predict_run

    assert encoder.trained is not None, "only a run has predictions"
    path = encoder.trained.folder / "predictions.parquet"
    frame = read_predictions(path) if path.exists() else None
    if (
        frame is None
        or set(frame["run_digest"]) != {encoder.trained.digest}
        or not set(test_keys) <= set(frame["slide_key"])
    ):
        frame = read_predictions(predict_run(encoder.trained.folder, checkpoint, EvaluateConfig()))
    frame = frame[(frame["task"] == task) & frame["slide_key"].isin(list(test_keys))].reset_index(drop=True)
    if missing := sorted(set(test_keys) - set(frame["slide_key"])):
        raise InputError(f"run {encoder.trained.folder.name}: {len(missing)} test slides have no prediction (first "
                         f"{missing[0]}); run `python -m evaluate predict` and look at what it says")  # fmt: skip
    selected = encoder.trained.config.run.select_by
    details = {"selected_on": "tune" if selected == "tune_auc" else "last epoch (nothing selected)"}
    return probe_row("slide", "end_to_end", name, frame.assign(fold=0), details)


def _patients_of_parts(manifest: Path, config: ProbeConfig, parts: Sequence[str]) -> set[str]:
    rows = read_table(manifest, "splits").to_pylist()
    return {row["patient_key"] for row in rows
            if (row["scheme"], row["fold"]) == (config.scheme, config.fold) and row["split"] in parts}  # fmt: skip


def _reader(store: FeatureStore) -> Callable[[str], NDArray[np.float32]]:
    return lambda slide_key: read_features(store, slide_key)
