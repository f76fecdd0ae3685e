"""Tables that the field already has, to and from a manifest: CLAM / TRIDENT (case_id, slide_id, label) and OPAL
(slide_data.csv with slide, target, mccv1..mccv20; tile_data.csv with slide, x, y, level, mult).

Such a table names no parts, so every slide is its own specimen and labels hold for the slide. In CLAM `case_id` is the
patient. Identifiers become pseudonyms unless the caller says that they are public.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ingest.errors import ConfigError, InputError
from ingest.geometry import TileGrid, pack_mask, unpack_mask
from ingest.ledger import Loss
from ingest.manifest import TARGET_PREFIX, read_table
from ingest.split_table import ID_COLUMNS, read_places, read_text_table

if TYPE_CHECKING:
    import pandas as pd

LABEL_COLUMNS = ("label", "target", "class")
PATH_COLUMNS = ("slide_path", "path", "wsi")
CLASS_OF_WORD = {
    "1": 1, "1.0": 1, "true": 1, "positive": 1, "pos": 1, "cancer": 1, "tumor": 1, "tumour": 1, "tumor_tissue": 1, "malignant": 1,
    "0": 0, "0.0": 0, "false": 0, "negative": 0, "neg": 0, "benign": 0, "normal": 0, "normal_tissue": 0,
}  # fmt: skip
UNKNOWN_WORDS = frozenset({"", "na", "nan", "none", "unknown", "-1"})

KeyFor = Callable[[Literal["patient", "case", "specimen", "slide"], str], str]


@dataclass(frozen=True, slots=True)
class Imported:
    """What a foreign table says, in the columns of the manifest; balance it with `ledger.balance("row", num_rows, ...)`.

    Attributes:
        slides: rows of slides.parquet, split empty; weight 1, or 0 without a label.
        specimens: rows of specimens.parquet.
        splits: rows of splits.parquet, empty when the table has no split columns.
        locations: (slide_key, path) for the vault.
        losses: rows of the table that are not used.
    """

    num_rows: int
    slides: tuple[Mapping[str, Any], ...]
    specimens: tuple[Mapping[str, Any], ...]
    splits: "pd.DataFrame"
    locations: tuple[tuple[str, str], ...]
    losses: tuple[Loss, ...]


def public_key(domain: str, identifier: str) -> str:
    """Keeps identifiers as they are: only for public data sets, whose identifiers name no one."""
    return identifier


def import_table(
    path: Path,
    key_for: KeyFor,
    *,
    task: str = "cancer",
    classes: Mapping[str, int] | None = None,
    patient_column: str | None = None,
    val_is: Literal["tune", "test"] = "tune",
) -> Imported:
    """Slides, specimens and splits from a CLAM, TRIDENT or OPAL slide table.

    Args:
        key_for: (domain, identifier) -> key, `Pseudonymiser.key` or `public_key`.
        task: the target column is `y_<task>`; only for "cancer" is `label` set too.
        classes: label word -> class; by default 0 / 1 and the usual words for negative and positive.
        patient_column: where patients are named; "slide_id" declares that every slide is of another patient.
        val_is: what "val" means in its split columns.
    Raises:
        InputError: a column is missing, or words are in neither `classes` nor the known words.
    """
    table = read_text_table(path)
    slide_column = _column(table, ID_COLUMNS["slide"], path, "slide ids", "slide_id")
    known_patients = (patient_column,) if patient_column is not None else ID_COLUMNS["patient"]
    patient_of = table[
        _column(table, known_patients, path, "patient ids", "case_id, or name one with --patient-column")
    ]
    words = table[_column(table, LABEL_COLUMNS, path, "labels", "label")].str.strip()
    values = _values(words, classes, path)
    paths = next((table[name] for name in PATH_COLUMNS if name in table.columns), None)
    lost = _lost(table[slide_column], patient_of, words)
    losses, slides, specimens, locations = [], [], [], []
    for position, (slide, patient) in enumerate(zip(table[slide_column], patient_of, strict=True)):
        slide_key = key_for("slide", slide)
        if reason := lost.get(position):
            status: Literal["excluded", "failed"] = "excluded" if reason == "duplicate_row" else "failed"
            losses.append(Loss("row", f"{slide_key}#{position}", "source", status, reason))
            continue
        value = values[position]
        keys = {
            "patient_key": key_for("patient", patient),
            "case_key": key_for("case", patient),
            "specimen_key": key_for("specimen", slide),
        }
        facts = {
            "label": ("benign", "cancer")[value] if task == "cancer" and value in (0, 1) else "not_assessable",
            "evidence_source": "external",
            "exclude_reason": None if value is not None else "no_label",
        }
        target = {TARGET_PREFIX + task: value}
        slides.append({**keys, "slide_key": slide_key, **facts, **target, "label_scope": "slide", "num_slides_in_part": 1,
                       "weight": float(value is not None)})  # fmt: skip
        specimens.append({**keys, **facts, **target, "atypia": False, "num_slides": 1})
        if paths is not None:
            locations.append((slide_key, paths[position]))
    splits = _splits(path, table, key_for, slide_column, patient_of, val_is)
    return Imported(len(table), tuple(slides), tuple(specimens), splits, tuple(locations), tuple(losses))


def read_tile_table(path: Path) -> dict[str, NDArray[np.int64]]:
    """slide -> [T, 2] left upper corners x, y in level-0 pixels, from OPAL's tile_data.csv.

    Raises:
        InputError: a column is missing or a coordinate is no number.
    """
    import pandas as pd

    table = read_text_table(path)
    missing = [name for name in ("slide", "x", "y") if name not in table.columns]
    if missing:
        raise InputError(
            f"table {path.name}: missing columns {', '.join(missing)}; tile_data has slide, x, y, level, mult"
        )
    try:
        corners = table[["x", "y"]].apply(pd.to_numeric).to_numpy(dtype=np.float64)
    except (ValueError, TypeError):
        raise InputError(f"table {path.name}: x or y is not a number in some row; mend the table") from None
    groups = table.groupby("slide", sort=True).indices
    return {str(slide): np.floor(corners[rows]).astype(np.int64) for slide, rows in groups.items()}


def mask_from_corners(corners: NDArray[np.int64], grid: TileGrid) -> tuple[NDArray[np.bool_], int]:
    """Foreign tiles as cells of our grid, each tile by its centre.

    OPAL spreads the remainder of the slide's size between its tiles, so its tiles drift by up to one tile from a grid
    that starts at (0, 0); two may then fall into one cell, and those in the incomplete last column or row fall out.

    Returns:
        [rows, columns] mask and the number of tiles that found no cell of their own.
    """
    centres = corners + grid.stride_px / 2
    columns = np.floor(centres[:, 0] / grid.stride_px).astype(np.int64)
    rows = np.floor(centres[:, 1] / grid.stride_px).astype(np.int64)
    inside = (columns >= 0) & (columns < grid.num_columns) & (rows >= 0) & (rows < grid.num_rows)
    mask = np.zeros((grid.num_rows, grid.num_columns), dtype=np.bool_)
    mask[rows[inside], columns[inside]] = True
    return mask, len(corners) - int(mask.sum())


def tile_row(slide_key: str, grid: TileGrid, mask: NDArray[np.bool_], reader: str = "imported") -> dict[str, Any]:
    """A row of tiles.parquet."""
    num_tiles = int(mask.sum())
    return {
        "slide_key": slide_key,
        "width_px": grid.width_px,
        "height_px": grid.height_px,
        "slide_mpp": grid.slide_mpp,
        "tile_size_px": grid.tile_size_px,
        "tile_mpp": grid.tile_mpp,
        "num_columns": grid.num_columns,
        "num_rows": grid.num_rows,
        "mask": pack_mask(mask),
        "num_tiles": num_tiles,
        "tissue_mm2": num_tiles * (grid.tile_size_px * grid.tile_mpp / 1000) ** 2,
        "reader": reader,
    }


def export_csv(folder: Path, out: Path, layout: Literal["clam", "opal"], task: str = "cancer") -> list[Path]:
    """The manifest as tables that others' training code reads; pseudonyms only, no paths.

    clam: dataset.csv (case_id, slide_id, label) and for each scheme and fold SCHEME/splits_FOLD.csv (train, val, test).
    opal: slide_data.csv (slide, patient, target, tensor_name, mccv1.. with train / val / test) and tile_data.csv
    (slide, x, y, level 0, mult). Slides without a value for the task are left out.

    Returns:
        the files written.
    Raises:
        ConfigError: the manifest has no such task, or for opal no mccv scheme.
    """
    target = TARGET_PREFIX + task
    table = read_table(folder, "slides")
    if target not in table.column_names:
        known = ", ".join(name for name in table.column_names if name.startswith(TARGET_PREFIX))
        raise ConfigError(
            f"--task {task}: manifest {folder.name} has the targets {known or 'none'}; choose one of them"
        )
    slides = table.select(["patient_key", "slide_key", target]).to_pandas().dropna(subset=[target])
    splits = read_table(folder, "splits").to_pandas().astype({"scheme": "object", "split": "object"})
    splits["split"] = splits["split"].replace({"tune": "val"})
    out.mkdir(parents=True, exist_ok=True)
    return (
        _export_clam(slides, splits, target, out)
        if layout == "clam"
        else _export_opal(folder, slides, splits, target, out)
    )


def _export_clam(slides: "pd.DataFrame", splits: "pd.DataFrame", target: str, out: Path) -> list[Path]:
    import pandas as pd

    named = slides.rename(columns={"patient_key": "case_id", "slide_key": "slide_id", target: "label"})
    written = [_to_csv(named[["case_id", "slide_id", "label"]], out / "dataset.csv")]
    for (scheme, fold), rows in splits.groupby(["scheme", "fold"]):
        part_of = slides["patient_key"].map(dict(zip(rows["patient_key"], rows["split"], strict=True)))
        lists = {part: slides["slide_key"][part_of == part].reset_index(drop=True) for part in ("train", "val", "test")}
        (out / str(scheme)).mkdir(exist_ok=True)
        written.append(_to_csv(pd.DataFrame(lists), out / str(scheme) / f"splits_{fold}.csv", index=True))
    return written


def _export_opal(folder: Path, slides: "pd.DataFrame", splits: "pd.DataFrame", target: str, out: Path) -> list[Path]:
    import pandas as pd

    names = sorted(name for name in splits["scheme"].unique() if name.startswith("mccv"))
    if not names:
        raise ConfigError(f"--layout opal: manifest {folder.name} has no mccv scheme; make one with "
                          "`python -m ingest split --set split.schemes=[\"mccv\"]`")  # fmt: skip
    rows = splits[splits["scheme"] == names[0]]
    table = slides.rename(columns={"patient_key": "patient", "slide_key": "slide", target: "target"})
    table["tensor_name"] = table["slide"] + ".pth"
    for fold, places in rows.groupby("fold"):
        column = f"mccv{int(str(fold)) + 1}"  # OPAL counts from 1
        table[column] = table["patient"].map(dict(zip(places["patient_key"], places["split"], strict=True)))
    written = [_to_csv(table, out / "slide_data.csv")]
    if (folder / "tiles.parquet").exists():
        frames = [
            _tile_frame(row)
            for row in read_table(folder, "tiles").to_pylist()
            if row["slide_key"] in set(table["slide"])
        ]
        if frames:
            written.append(_to_csv(pd.concat(frames, ignore_index=True), out / "tile_data.csv"))
    return written


def _tile_frame(row: Mapping[str, Any]) -> "pd.DataFrame":
    import pandas as pd

    grid = TileGrid(**{name: row[name] for name in ("width_px", "height_px", "slide_mpp", "tile_size_px", "tile_mpp")})
    mask = unpack_mask(row["mask"], grid.num_rows, grid.num_columns)
    boxes = grid.boxes(np.flatnonzero(mask.ravel()).astype(np.int64))
    return pd.DataFrame({"slide": row["slide_key"], "x": boxes[:, 0], "y": boxes[:, 1], "level": 0,
                         "mult": grid.stride_px / grid.tile_size_px})  # fmt: skip


def _to_csv(table: "pd.DataFrame", path: Path, index: bool = False) -> Path:
    from ingest.atomic import atomic_file

    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=index, lineterminator="\n")
    return path


def _values(words: "pd.Series[str]", classes: Mapping[str, int] | None, path: Path) -> list[int | None]:
    known: Mapping[str, int] = {word.casefold(): value for word, value in (classes or CLASS_OF_WORD).items()}
    folded = words.str.casefold()
    strange = ~folded.isin([*known, *UNKNOWN_WORDS])
    if strange.any():
        raise InputError(f"table {path.name}: {int(strange.sum())} rows with {folded[strange].nunique()} label words that are "
                         "not known; say which class each word is with --class WORD=0")  # fmt: skip
    return [known.get(word) for word in folded]


def _lost(slide_ids: "pd.Series[str]", patients: "pd.Series[str]", words: "pd.Series[str]") -> dict[int, str]:
    """Row -> why it is not used. A slide listed twice is taken once if its rows agree, and not at all if they differ."""
    import pandas as pd

    rows = pd.DataFrame({"slide": slide_ids.str.strip(), "patient": patients.str.strip(), "word": words})
    reasons = {
        int(position): "no_identifier" for position in np.flatnonzero((rows["slide"] == "") | (rows["patient"] == ""))
    }
    for position in np.flatnonzero(rows.duplicated()):
        reasons.setdefault(int(position), "duplicate_row")
    distinct = rows.drop_duplicates()
    torn = distinct["slide"][distinct["slide"].duplicated()]
    for position in np.flatnonzero(rows["slide"].isin(torn)):
        if reasons.get(int(position)) != "no_identifier":
            reasons[int(position)] = "duplicate_conflict"
    return reasons


def _splits(
    path: Path,
    table: "pd.DataFrame",
    key_for: KeyFor,
    slide_column: str,
    patient_of: "pd.Series[str]",
    val_is: Literal["tune", "test"],
) -> "pd.DataFrame":
    """Rows of splits.parquet; a patient in two parts stays in both, for `verify` to find."""
    import pandas as pd

    from ingest.split_table import has_split_columns

    if not has_split_columns(table):
        return pd.DataFrame({name: pd.Series(dtype="object") for name in ("patient_key", "scheme", "fold", "split")})
    places = read_places(path, val_is)
    patient_of_slide = dict(zip(table[slide_column], patient_of, strict=True))
    keys = {patient: key_for("patient", patient) for patient in dict.fromkeys(patient_of)}
    patients = places["slide"].map(patient_of_slide).map(keys)
    return places.assign(patient_key=patients)[["patient_key", "scheme", "fold", "split"]].drop_duplicates(
        ignore_index=True
    )


def _column(table: "pd.DataFrame", names: tuple[str, ...], path: Path, what: str, wanted: str) -> str:
    by_name = {column.casefold(): column for column in table.columns}
    for name in names:
        if name.casefold() in by_name:
            return by_name[name.casefold()]
    raise InputError(f"table {path.name}: no column with {what}; it has {', '.join(table.columns[:12])}: add {wanted}")
