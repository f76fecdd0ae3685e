"""Split tables of others: who trains and who tests, in the shapes that public repositories use.

long    patient, case or slide id, split, and perhaps scheme and fold (splits.parquet, TRIDENT)
wide    one row per slide, columns mccv1..mccv20 or fold_0..fold_4 with train / val / test (OPAL, Patho-Bench)
lists   columns train, val, test that list slide ids (CLAM splits_0.csv), or say True and False (splits_0_bool.csv)
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ingest.errors import GateError, InputError
from ingest.leakage import Finding, find_leaks

if TYPE_CHECKING:
    import pandas as pd

# In CLAM and TRIDENT tables `case_id` names the patient.
ID_COLUMNS = {
    "patient": ("patient_key", "patient_id", "patient", "case_id", "subject_id"),
    "case": ("case_key", "accession"),
    "slide": ("slide_key", "slide_id", "slide", "image_id"),
}
WORDS = {
    "train": "train", "training": "train",
    "tune": "tune", "tuning": "tune", "val": "tune", "valid": "tune", "validation": "tune", "dev": "tune",
    "test": "test", "testing": "test", "held_out": "test", "holdout": "test",
}  # fmt: skip
_FOLD_COLUMN = re.compile(r"(mccv|fold|split)_?(\d+)")
_TCGA_PATIENT = re.compile(r"(TCGA-\w{2}-\w{4})-", re.IGNORECASE)


def read_split_table(path: Path, slides: "pd.DataFrame", val_is: Literal["tune", "test"] = "tune") -> "pd.DataFrame":
    """The rows of splits.parquet that a foreign table means for this cohort; for `split --external`.

    Args:
        path: .csv, .tsv or .parquet in one of the shapes above.
        slides: slide_key, case_key and patient_key of the manifest; the ids of the table must be among them.
        val_is: what "val" means in a table without "test": OPAL reports on its "val".
    Raises:
        InputError: the shape is not known, or no id is in the cohort.
        GateError: a patient of the cohort would be in two parts, or another leak; see `find_leaks`.
    """
    places = read_places(path, val_is)
    splits = _of_cohort(places, slides)
    if splits.empty:
        raise InputError(
            f"split table {path.name}: none of its {len(places)} ids is a slide, case or patient of the "
            "manifest; give the table that belongs to this cohort, with the same ids"
        )
    errors = [finding for finding in find_leaks(splits, slides) if finding.severity == "error"]
    if errors:
        raise GateError(f"split table {path.name}: {errors[0].message} ({len(errors)} such findings)")
    return splits.sort_values(["scheme", "fold", "patient_key"]).reset_index(drop=True)


def verify_split_table(path: Path, slides: "pd.DataFrame | None" = None) -> list[Finding]:
    """Leaks of a foreign table: by its own patient ids, and by those of the manifest when `slides` is given.

    A table with slide ids only, and no manifest to look them up: TCGA barcodes name the patient; for others only
    slides that are listed twice can be found, and a warning says so.
    """
    places = read_places(path)
    findings = []
    if slides is not None:
        matches = _matches(places, slides)
        findings += find_leaks(_of_cohort(places, slides), slides)
        if matches.isna().any():
            findings.append(
                Finding(
                    "warning",
                    "unknown id",
                    f"split table {path.name}: {int(matches.isna().sum())} of "
                    f"{len(places)} rows name nothing in the manifest; only their own ids were checked",
                )
            )
    own_patients = _own_patients(places)
    if own_patients is None:
        own_patients = places["slide" if "slide" in places.columns else "case"]
        if slides is None:
            findings.append(
                Finding(
                    "warning",
                    "no patient ids",
                    f"split table {path.name}: it names no patients, so only "
                    "slides listed twice were looked for; add a patient_id column or give the manifest",
                )
            )
    own = places.assign(patient_key=own_patients).rename(columns={"case": "case_key"})
    return sorted({*findings, *find_leaks(own, own if "case_key" in own.columns else None)})


def read_places(path: Path, val_is: Literal["tune", "test"] = "tune") -> "pd.DataFrame":
    """Long rows: patient, case, slide (text, those that the table has), scheme, fold (0, 1, ...), split.

    Raises:
        InputError: the shape is not known, or a word is none of train, val, tune, test.
    """
    table = read_text_table(path)
    ids = {name: column for name, known in ID_COLUMNS.items() if (column := _first_of(table, known)) is not None}
    lists = [column for column in table.columns if column.casefold() in WORDS]
    fold_columns = sorted(
        (int(match[2]), match[1], column)
        for column in table.columns
        if (match := _FOLD_COLUMN.fullmatch(column.casefold()))
    )
    if ids and fold_columns:
        places = _from_wide(table, ids, fold_columns)
    elif ids and "split" in table.columns:
        places = _from_long(table, ids)
    elif lists:
        places = _from_lists(table, lists, path)
    else:
        raise InputError(
            f"split table {path.name}: cannot tell who trains; it needs an id column and split, mccv1.. or "
            f"fold_0.., or columns train, val, test; it has {', '.join(table.columns[:12])}"
        )
    places = places[places["split"] != ""]
    words = places["split"].str.casefold().map(WORDS)
    if words.isna().any():
        raise InputError(
            f"split table {path.name}: {int(words.isna().sum())} rows have another word than train, val, "
            "tune or test; mend them"
        )
    places = places.assign(split=words, fold=places["fold"].astype("int16")).reset_index(drop=True)
    if val_is == "test":
        if (places["split"] == "test").any():
            raise InputError(
                f"split table {path.name}: it has a test part already, so val cannot be the test part too; "
                "leave --val-is out"
            )
        places["split"] = places["split"].replace({"tune": "test"})
    return places


def read_text_table(path: Path) -> "pd.DataFrame":
    """A .csv, .tsv or .parquet file with every cell as text: 0012 stays 0012, NA stays NA, empty is "".

    Raises:
        InputError: the file is missing or not such a table.
    """
    import pandas as pd

    if not path.is_file():
        raise InputError(f"table {path.name}: no such file; give an existing .csv, .tsv or .parquet file")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            return table.astype("object").where(table.notna(), "").astype(str)
        separator = "\t" if path.suffix == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (
        ValueError,
        OSError,
    ) as error:  # pandas' and Arrow's parser errors are ValueErrors; their text may quote cells
        raise InputError(
            f"table {path.name}: not a readable table ({type(error).__name__}); save it as UTF-8 .csv, .tsv or .parquet"
        ) from None


def has_split_columns(table: "pd.DataFrame") -> bool:
    """Whether a table of slides also says who trains."""
    return "split" in table.columns or any(_FOLD_COLUMN.fullmatch(column.casefold()) for column in table.columns)


def _from_wide(table: "pd.DataFrame", ids: dict[str, str], columns: list[tuple[int, str, str]]) -> "pd.DataFrame":
    import pandas as pd

    stem = columns[0][1]
    scheme = {"mccv": f"mccv{len(columns)}", "fold": f"kfold{len(columns)}"}.get(stem, "external")
    identity = pd.DataFrame({name: table[column] for name, column in ids.items()})
    return pd.concat(
        [
            identity.assign(scheme=scheme, fold=fold, split=table[column].str.strip())
            for fold, (_, _, column) in enumerate(columns)
        ],
        ignore_index=True,
    )


def _from_long(table: "pd.DataFrame", ids: dict[str, str]) -> "pd.DataFrame":
    import pandas as pd

    identity = pd.DataFrame({name: table[column] for name, column in ids.items()})
    scheme = table["scheme"] if "scheme" in table.columns else "external"
    fold = pd.to_numeric(table["fold"]) if "fold" in table.columns else 0
    return identity.assign(scheme=scheme, fold=fold, split=table["split"].str.strip())


def _from_lists(table: "pd.DataFrame", lists: list[str], path: Path) -> "pd.DataFrame":
    import pandas as pd

    match = re.search(r"(\d+)(?:_bool)?$", path.stem)
    fold = int(match[1]) if match else 0
    cells = pd.concat([table[column] for column in lists])
    if cells.str.casefold().isin(["true", "false", ""]).all():
        slide_ids = table[next(column for column in table.columns if column not in lists)]
        chosen = [(slide_ids[table[column].str.casefold() == "true"], column) for column in lists]
    else:
        chosen = [(table[column][table[column].str.strip() != ""], column) for column in lists]
    return pd.concat(
        [
            pd.DataFrame({"slide": ids.str.strip(), "scheme": "external", "fold": fold, "split": column})
            for ids, column in chosen
        ],
        ignore_index=True,
    )


def _of_cohort(places: "pd.DataFrame", slides: "pd.DataFrame") -> "pd.DataFrame":
    patient_keys = _matches(places, slides)
    splits = places.assign(patient_key=patient_keys)[["patient_key", "scheme", "fold", "split"]]
    return splits[patient_keys.notna()].drop_duplicates().reset_index(drop=True)


def _matches(places: "pd.DataFrame", slides: "pd.DataFrame") -> "pd.Series[str]":
    """patient_key of the cohort for each row: by slide id, else by case id, else by patient id."""
    import pandas as pd

    patients = slides["patient_key"].astype(str)
    result = pd.Series(pd.NA, index=places.index, dtype="object")
    for name, key in (
        ("slide", "slide_key"),
        ("case", "case_key"),
        ("patient", "case_key"),
        ("patient", "patient_key"),
    ):
        if name in places.columns and key in slides.columns:
            patient_of = dict(zip(slides[key].astype(str), patients, strict=True))
            result = result.where(result.notna(), places[name].map(patient_of))
    return result


def _own_patients(places: "pd.DataFrame") -> "pd.Series[str] | None":
    if "patient" in places.columns:
        return places["patient"]
    if "slide" in places.columns:
        barcodes = places["slide"].str.extract(_TCGA_PATIENT, expand=False)
        if barcodes.notna().all():
            return barcodes.str.upper()
    return None


def _first_of(table: "pd.DataFrame", names: tuple[str, ...]) -> str | None:
    by_name = {column.casefold(): column for column in table.columns}
    return next((by_name[name] for name in names if name in by_name), None)
