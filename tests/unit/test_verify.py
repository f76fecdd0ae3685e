"""Verify: a sound manifest is clean; each planted fault is found; a patient on two sides ends with exit code 4."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.errors import GateError, InputError
from ingest.leakage import canonical_id, find_leaks, near_duplicates
from ingest.split import SplitConfig, split_patients
from ingest.split_table import read_split_table, verify_split_table
from ingest.verify import require_sound, verify
from tests.invented_cohort import invented_patients, invented_slides, write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_manifest(
        tmp_path / "cohort", invented_slides(60), split=SplitConfig(schemes=("holdout", "mccv"), num_repeats=3)
    )
    return tmp_path / "cohort"


def checks(folder: Path) -> set[str]:
    return {finding.check for finding in verify(folder) if finding.severity == "error"}


def test_a_sound_manifest_has_no_findings(manifest: Path) -> None:
    assert verify(manifest) == []
    require_sound(verify(manifest))


def test_every_scheme_at_once_is_sound(tmp_path: Path) -> None:
    write_manifest(
        tmp_path, invented_slides(60), split=SplitConfig(schemes=("holdout", "kfold", "mccv", "site"), num_repeats=2)
    )
    assert [finding for finding in verify(tmp_path) if finding.severity == "error"] == []


def test_one_patient_on_two_sides_is_red_with_exit_code_4(tmp_path: Path) -> None:
    slides = invented_slides(40)
    splits = split_patients(invented_patients(40), SplitConfig()).astype({"split": "object", "scheme": "object"})
    row = splits[splits["split"] == "train"].iloc[[0]].assign(split="test")
    write_manifest(tmp_path, slides, splits=pd.concat([splits, row]))
    findings = verify(tmp_path)
    assert any(finding.check == "patient on two sides" and "1 patients" in finding.message for finding in findings)
    with pytest.raises(GateError, match="patient on two sides") as raised:
        require_sound(findings)
    assert raised.value.exit_code == 4


def edit_table(folder: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change rows and keep schema and footer, as a careful forger would."""
    table = pq.read_table(folder / f"{name}.parquet")
    words = {field.name: "object" for field in table.schema if pa.types.is_dictionary(field.type)}
    changed = change(table.to_pandas().astype(words))
    pq.write_table(pa.Table.from_pandas(changed, schema=table.schema, preserve_index=False), folder / f"{name}.parquet")


def test_a_forged_label_is_told_by_the_digest(manifest: Path) -> None:
    edit_table(manifest, "slides", lambda rows: rows.assign(label=["in_situ", *rows["label"][1:]]))
    assert checks(manifest) == {"digest"}


def test_a_table_of_another_run_is_told(manifest: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "other", invented_slides(60, seed=1))
    (manifest / "quarantine.parquet").write_bytes((tmp_path / "other" / "tiles.parquet").read_bytes())
    assert "schema" in checks(manifest)
    (manifest / "splits.parquet").write_bytes((tmp_path / "other" / "splits.parquet").read_bytes())
    assert "digest" in checks(manifest)


@pytest.mark.parametrize("name", ["slides", "specimens", "splits", "quarantine"])
def test_a_missing_or_broken_table_is_told_and_the_rest_is_still_checked(manifest: Path, name: str) -> None:
    (manifest / f"{name}.parquet").write_bytes(b"broken")
    edit_table(manifest, "tiles", lambda rows: rows.assign(num_tiles=rows["num_tiles"] + 1))
    assert {"table", "digest"} <= checks(manifest)
    (manifest / f"{name}.parquet").unlink()
    assert {"table", "digest"} <= checks(manifest)


def test_a_missing_column_is_named(manifest: Path) -> None:
    table = pq.read_table(manifest / "slides.parquet")
    pq.write_table(table.drop_columns(["weight"]), manifest / "slides.parquet")
    messages = [finding.message for finding in verify(manifest)]
    assert any("lacks the column weight" in message for message in messages)


def set_value(column: str, value: object, row: int = 0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        values = rows[column].tolist()
        values[row] = value
        return rows.assign(**{column: pd.Series(values, index=rows.index, dtype="object")})

    return change


@pytest.mark.parametrize(
    ("table", "column", "value", "check"),
    [
        ("slides", "label", "malignant", "value"),
        ("slides", "weight", -1.0, "value"),
        ("slides", "split", "valid", "value"),
        ("slides", "case_key", "another", "key"),
        ("slides", "patient_key", "another", "key"),
        ("slides", "specimen_key", "another", "key"),
        ("slides", "num_tiles", 23, "tiles"),
        ("tiles", "num_tiles", 23, "tiles"),
        ("tiles", "mask", b"\xff", "tiles"),
        ("tiles", "num_rows", 5, "tiles"),
        ("tiles", "slide_key", "another", "tiles"),
        ("quarantine", "reason", "not_he", "ledger"),
        ("quarantine", "count", 2, "ledger"),
        ("splits", "split", "other", "value"),
    ],
)
def test_each_planted_fault_is_found_besides_the_digest(
    manifest: Path, table: str, column: str, value: object, check: str
) -> None:
    edit_table(manifest, table, set_value(column, value))
    assert {check, "digest"} <= checks(manifest)


def test_a_repeated_slide_is_found(manifest: Path) -> None:
    edit_table(manifest, "slides", lambda rows: pd.concat([rows, rows[:1]]))
    assert "key" in checks(manifest)


def test_a_lost_row_breaks_the_ledger(manifest: Path) -> None:
    edit_table(manifest, "slides", lambda rows: rows[1:])
    assert "ledger" in checks(manifest)


def edit_facts(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads((folder / "dataset.json").read_text())
    change(facts)
    (folder / "dataset.json").write_text(json.dumps(facts))


def test_a_ledger_that_does_not_add_up_is_red(manifest: Path) -> None:
    edit_facts(manifest, lambda facts: facts["ledger"]["slide"].update({"in": 10_000}))
    assert checks(manifest) == {"ledger"}


def test_a_gate_that_did_not_hold_is_red(manifest: Path) -> None:
    edit_facts(manifest, lambda facts: facts["gates"]["slides_failed"].update({"passed": False}))
    assert checks(manifest) == {"gate"}


def test_a_patient_without_a_place_is_red(manifest: Path) -> None:
    edit_table(manifest, "splits", lambda rows: rows[1:])
    assert "split" in checks(manifest)


def test_a_slide_whose_split_is_not_its_patients_is_red(manifest: Path) -> None:
    edit_table(manifest, "slides", lambda rows: rows.assign(split="train"))
    assert "split" in checks(manifest)


def test_an_excluded_slide_needs_no_place(tmp_path: Path) -> None:
    slides = invented_slides(40)
    write_manifest(tmp_path, slides)
    assert verify(tmp_path) == []
    edit_table(tmp_path, "slides", set_value("exclude_reason", "label_indeterminate"))
    edit_table(tmp_path, "slides", set_value("split", None))
    assert "split" not in checks(tmp_path)


def test_no_random_damage_of_a_table_escapes_as_another_error_or_unseen(manifest: Path) -> None:
    generator = np.random.default_rng(0)
    path = manifest / "slides.parquet"
    original = path.read_bytes()
    rows = pq.read_table(path)
    for _ in range(60):
        content = bytearray(original)
        content[generator.integers(len(content))] ^= int(generator.integers(1, 256))
        path.write_bytes(content)
        if "slides.parquet" not in " ".join(finding.message for finding in verify(manifest)):
            assert pq.read_table(path).equals(rows)  # the byte was in a statistic that no reader of ours uses


def test_a_vault_table_in_the_manifest_is_red(manifest: Path) -> None:
    (manifest / "crosswalk.parquet").write_bytes(b"x")
    assert checks(manifest) == {"privacy"}


def test_a_part_without_a_class_is_a_warning_not_an_error(tmp_path: Path) -> None:
    slides = invented_slides(20)
    slides["label"] = ["cancer" if key == "p00000" else "benign" for key in slides["patient_key"]]
    slides["y_cancer"] = (slides["label"] == "cancer").astype("int64")
    write_manifest(tmp_path, slides)
    findings = verify(tmp_path)
    assert {finding.severity for finding in findings} == {"warning"}
    assert any("lacks 1 of 2 classes of y_cancer" in finding.message for finding in findings)


# Leaks, on tables small enough to check by hand.


def splits(**split_of: str) -> pd.DataFrame:
    return pd.DataFrame({"patient_key": list(split_of), "scheme": "s", "fold": 0, "split": list(split_of.values())})


def slides(*rows: tuple[str, str, str, str | None]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["slide_key", "patient_key", "case_key", "content_hash"])
    return frame.assign(duplicate_of=None)


def test_a_case_shared_by_patients_of_two_parts_leaks() -> None:
    table = slides(("1", "a", "case", None), ("2", "b", "case", None), ("3", "c", "other", None))
    assert [leak.check for leak in find_leaks(splits(a="train", b="test", c="test"), table)] == ["case on two sides"]
    assert find_leaks(splits(a="test", b="test", c="train"), table) == []


def test_a_scan_twice_under_two_patients_leaks_by_its_content() -> None:
    table = slides(("1", "a", "x", "h1"), ("2", "b", "y", "h1"), ("3", "c", "z", None), ("4", "d", "w", None))
    assert [leak.check for leak in find_leaks(splits(a="train", b="tune", c="train", d="test"), table)] == [
        "duplicate scan"
    ]


def test_a_marked_duplicate_leaks_too() -> None:
    table = slides(("1", "a", "x", None), ("2", "b", "y", None))
    table["duplicate_of"] = [None, "1"]
    assert [leak.check for leak in find_leaks(splits(a="train", b="test"), table)] == ["duplicate scan"]


def test_near_duplicate_patient_ids_on_two_sides_leak() -> None:
    table = pd.DataFrame({"patient_key": ["MRN-0012", "mrn 12", "MRN-13"], "scheme": "s", "fold": 0,
                          "split": ["train", "test", "test"]})  # fmt: skip
    assert [leak.check for leak in find_leaks(table)] == ["near-duplicate id"]
    assert find_leaks(table.assign(split="train")) == []


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [("P-0012", "p12", True), ("TCGA-A1-01.svs", "tcga_a1_1", True), ("27670", "00027670", True), ("S1.tiff", "S1", True),
     ("P-1-12", "P-11-2", False), ("A1", "A11", False), ("0", "00", True), ("p1a", "p1b", False), ("10", "1", False)],
)  # fmt: skip
def test_canonical_ids(one: str, other: str, equal: bool) -> None:
    assert (canonical_id(one) == canonical_id(other)) == equal


def test_pseudonyms_of_equal_length_are_never_near_duplicates() -> None:
    assert near_duplicates(["a0b07", "a00b7", "aaaaa"]) == {}


def test_findings_never_quote_an_id() -> None:
    table = pd.DataFrame({"patient_key": ["MRN-0012", "mrn 12", "MRN-0012"], "scheme": "s", "fold": 0,
                          "split": ["train", "test", "test"]})  # fmt: skip
    text = " ".join(leak.message for leak in find_leaks(table))
    assert text
    assert "12" not in text


# Split tables of others.


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


LEAKING = {
    "long.csv": "patient_id,slide_id,split\np1,a,train\np1,b,test\np2,c,train\n",
    "clam.csv": ",train,val,test\n0,TCGA-A1-0001-01Z,TCGA-A1-0002-01Z,TCGA-A1-0001-02Z\n",
    "bool.csv": ",train,val,test\nTCGA-A1-0001-01Z,True,False,False\nTCGA-A1-0001-02Z,False,False,True\n",
    "opal.csv": "slide,patient,target,mccv1,mccv2\na,p1,0,train,train\nb,p1,0,train,val\nc,p2,1,val,train\n",
    "folds.tsv": "case_id\tslide_id\tfold_0\np1\ta\ttrain\np1\tb\ttest\n",
    "near.csv": "patient_id,split\n0012,train\n12,test\n",
    "slides_twice.csv": "slide_id,split\na,train\na,test\nb,train\n",
    "cases.csv": "patient_id,accession,split\np1,S1,train\np2,S1,test\n",
}


@pytest.mark.parametrize("name", sorted(LEAKING))
def test_a_leak_is_red_in_every_shape_of_foreign_table(tmp_path: Path, name: str) -> None:
    findings = verify_split_table(write(tmp_path / name, LEAKING[name]))
    with pytest.raises(GateError):
        require_sound(findings)


def test_the_leaking_fold_of_a_wide_table_is_named_and_the_other_is_clean(tmp_path: Path) -> None:
    errors = verify_split_table(write(tmp_path / "t.csv", LEAKING["opal.csv"]))
    assert [error.message.split(":")[0] for error in errors] == ["split mccv2 fold 1"]


def test_a_clean_foreign_table_has_no_findings(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "patient_id,slide_id,split\np1,a,train\np1,b,train\np2,c,val\np3,d,test\n")
    assert verify_split_table(path) == []


def test_a_table_of_slides_without_patients_says_what_could_not_be_checked(tmp_path: Path) -> None:
    findings = verify_split_table(write(tmp_path / "t.csv", "slide_id,split\na,train\nb,test\n"))
    assert [(finding.severity, finding.check) for finding in findings] == [("warning", "no patient ids")]


def test_with_the_manifest_a_foreign_slide_table_is_checked_by_patient(manifest: Path, tmp_path: Path) -> None:
    slides = pq.read_table(manifest / "slides.parquet").to_pandas()
    patient = slides["patient_key"].value_counts().index[0]
    first, second = slides["slide_key"][slides["patient_key"] == patient][:2]
    path = write(tmp_path / "t.csv", f"slide_id,split\n{first},train\n{second},test\nstranger,test\n")
    findings = verify(manifest, path)
    assert {finding.check for finding in findings} == {"patient on two sides", "unknown id"}


def test_an_external_split_is_taken_over_by_patient(tmp_path: Path) -> None:
    slides = invented_slides(6)
    parts = slides["patient_key"].map(lambda key: "test" if key < "p00003" else "training")
    rows = "".join(f"{key},{part}\n" for key, part in zip(slides["slide_key"], parts, strict=True))
    table = read_split_table(write(tmp_path / "t.csv", "slide_id,split\n" + rows), slides)
    assert dict(zip(table["patient_key"], table["split"], strict=True)) == {
        **{f"p0000{n}": "test" for n in range(3)}, **{f"p0000{n}": "train" for n in range(3, 6)}}  # fmt: skip


def test_an_external_split_that_leaks_is_refused(tmp_path: Path) -> None:
    slides = invented_slides(6).assign(patient_key="one")
    rows = "".join(f"{key},{'train' if position else 'test'}\n" for position, key in enumerate(slides["slide_key"]))
    with pytest.raises(GateError, match="1 patients are in more than one part"):
        read_split_table(write(tmp_path / "t.csv", "slide_id,split\n" + rows), slides)


def test_val_can_mean_test_in_a_table_of_two_parts(tmp_path: Path) -> None:
    slides = invented_slides(2)
    path = write(tmp_path / "t.csv", "patient_id,split\np00000,train\np00001,val\n")
    assert set(read_split_table(path, slides)["split"]) == {"train", "tune"}
    assert set(read_split_table(path, slides, val_is="test")["split"]) == {"train", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n", "cannot tell who trains"), ("patient_id,split\np00000,maybe\n", "another word than train"),
     ("patient_id,split\nstranger,train\n", "none of its 1 ids")],
)  # fmt: skip
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_split_table(write(tmp_path / "t.csv", text), invented_slides(2))


def test_ids_are_read_as_text(tmp_path: Path) -> None:
    slides = invented_slides(1).assign(patient_key="00012")
    path = write(tmp_path / "t.csv", "patient_id,split\n00012,train\n")
    assert read_split_table(path, slides)["patient_key"].tolist() == ["00012"]
