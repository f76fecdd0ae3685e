"""The demo hospital: its plan, its database and its pictures hold what later stages are tested against."""

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.demo import write_demo
from ingest.demo.hospital import Case, Hospital, Part, plan_hospital
from ingest.demo.lis import write_lis
from ingest.demo.reports import case_texts
from ingest.demo.slides import write_scan
from ingest.demo.tissue_image import CANCER_PATTERNS, Picture, paint, paint_glass
from ingest.demo.truth import planted_truth
from ingest.errors import ConfigError

openslide = pytest.importorskip("openslide")


@pytest.fixture(scope="module")
def hospital() -> Hospital:
    return plan_hospital(7)


@pytest.fixture(scope="module")
def database(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lis") / "lis.sqlite"
    write_lis(hospital, path)
    return path


def ask(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def texts_of(hospital: Hospital, case: Case) -> dict[str, str]:
    patient = next(patient for patient in hospital.patients if patient.patient_id == case.patient_id)
    return {text.text_type: text.text for text in case_texts(case, patient)}


def small_picture(**changes: object) -> Picture:
    picture = Picture(pattern="ductal_cancer", focus_share=0.5, width_um=260, height_um=260, mpp=0.5, seed=3)
    return replace(picture, **changes)  # type: ignore[arg-type]


# --- the plan


def test_the_same_seed_plans_the_same_hospital_and_another_seed_does_not() -> None:
    assert plan_hospital(7) == plan_hospital(7)
    assert plan_hospital(7) != plan_hospital(8)


@pytest.mark.parametrize("seed", [1, 7, 23])
def test_forty_patients_have_about_sixty_usable_slides_and_two_in_five_have_cancer(seed: int) -> None:
    hospital = plan_hospital(seed)
    truth = planted_truth(hospital)["slides"].values()
    usable = [slide["label"] for slide in truth if slide["use"] == "usable"]
    assert 55 <= len(usable) <= 66
    assert 0.33 <= np.mean([label in ("cancer", "in_situ") for label in usable]) <= 0.45
    with_cancer = {c.patient_id for c in hospital.cases for p in c.parts if p.label in ("cancer", "in_situ")}
    assert len(with_cancer) == 16


@pytest.mark.parametrize("num_patients", [20, 57])
def test_every_way_to_be_unusable_is_planted_in_small_and_large_hospitals(num_patients: int) -> None:
    uses = [slide["use"] for slide in planted_truth(plan_hospital(5, num_patients))["slides"].values()]
    once = ["missing_file", "unreadable_slide", "no_mpp", "blank_slide", "orphan_slide", "duplicate_scan", "frozen"]
    assert {reason: uses.count(reason) for reason in once} == dict.fromkeys(once, 1)
    assert uses.count("not_he") == 2


def test_labels_of_every_kind_and_both_magnifications_occur(hospital: Hospital) -> None:
    truth = planted_truth(hospital)
    assert set(truth["specimens"].values()) == {"cancer", "in_situ", "benign", "indeterminate", "not_assessable"}
    assert {scan.magnification for scan in hospital.scans()} == {"20x", "40x"}
    assert {case.turn for case in hospital.cases} == {"none", "adds", "overturns", "amended", "preliminary"}


def test_a_cancer_slide_is_planned_where_the_truth_is_cancer_and_nowhere_else(hospital: Hospital) -> None:
    for case in hospital.cases:
        for part in case.parts:
            for slide in part.slides:
                painted = slide.scans[0].picture.pattern in CANCER_PATTERNS
                assert painted == (part.label in ("cancer", "in_situ"))


def test_scanner_and_colour_seed_do_not_follow_the_label(hospital: Hospital) -> None:
    large = plan_hospital(7, 800)
    is_cancer, mpp = [], []
    for case in large.cases:
        for part in case.parts:
            for slide in part.slides:
                is_cancer.append(part.label in ("cancer", "in_situ"))
                mpp.append(slide.scans[0].picture.mpp)
    assert abs(np.corrcoef(is_cancer, mpp)[0, 1]) < 0.08  # 2.8 standard errors of 1,200 slides


def test_image_ids_record_numbers_and_accessions_do_not_repeat(hospital: Hospital) -> None:
    images = [scan.image_id for scan in hospital.scans()]
    records = [pair for patient in hospital.patients for pair in patient.record_numbers]
    accessions = [case.accession for case in hospital.cases]
    for values in (images, records, accessions):
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("num_patients", [19, 901])
def test_a_hospital_of_another_size_is_refused(num_patients: int) -> None:
    with pytest.raises(ConfigError, match="give 20 to 900"):
        plan_hospital(1, num_patients)


# --- the reports


def only_part(hospital: Hospital, turn: str) -> tuple[Case, Part]:
    case = next(case for case in hospital.cases if case.turn == turn)
    return case, case.parts[0]


def test_an_overturned_diagnosis_stands_only_in_the_addendum(hospital: Hospital) -> None:
    case, part = only_part(hospital, "overturns")
    texts = texts_of(hospital, case)
    assert part.label == "cancer"
    assert "cannot be excluded" in texts["$final"].lower()
    assert re.search(r"(invasive|infiltrating).*carcinoma", texts["$procres"].lower())
    assert "cannot be excluded" not in texts["$procres"].lower()


def test_an_amended_report_takes_the_cancer_back(hospital: Hospital) -> None:
    case, part = only_part(hospital, "amended")
    texts = texts_of(hospital, case)
    assert part.label == "benign"
    assert "carcinoma" in texts["$final"].lower()
    assert texts["$procres"].startswith("AMENDED DIAGNOSIS:")
    assert re.search("adenosis|hyperplasia", texts["$procres"].lower())


def test_a_part_without_diagnosis_is_not_mentioned_in_the_final_text(hospital: Hospital) -> None:
    missing = [(c, p) for c in hospital.cases for p in c.parts if p.finding == "missing"]
    assert missing
    for case, part in missing:
        final = texts_of(hospital, case)["$final"]
        assert not re.search(
            rf"^\s*(PART {part.number}:|SPECIMEN {part.designator}:|{part.designator}[.)])", final, re.M
        )


def test_texts_hold_every_header_style_negations_and_cancer_words_in_benign_cases(hospital: Hospital) -> None:
    finals = [texts_of(hospital, case)["$final"] for case in hospital.cases]
    everything = "\n".join(finals)
    for style in (r"^A\. ", r"^A\) ", r"^PART 1: ", r"^SPECIMEN A: ", r"^INTRAOPERATIVE CONSULTATION:"):
        assert re.search(style, everything, re.M), style
    of_cancer = [t for c, t in zip(hospital.cases, finals, strict=True) if c.parts[0].label == "cancer"]
    assert any(re.search("no evidence of|negative for", text, re.I) for text in of_cancer)
    benign = [c for c in hospital.cases if all(p.label == "benign" for p in c.parts)]
    assert any("carcinoma" in texts_of(hospital, case)["$clin"].lower() for case in benign)


def test_wrapped_texts_stay_within_80_columns_and_carry_a_page_header(hospital: Hospital) -> None:
    wrapped = [texts_of(hospital, case)["$final"] for case in hospital.cases if case.wrapped]
    assert wrapped
    for text in wrapped:
        assert "SURGICAL PATHOLOGY REPORT" in text
        body = [line for line in text.split("\n") if "REPORT  " not in line and "PATIENT:" not in line]
        assert max(map(len, body)) <= 80


def test_no_text_has_the_length_of_a_truncated_field() -> None:
    for seed in range(12):
        hospital = plan_hospital(seed)
        lengths = {len(text) for case in hospital.cases for text in texts_of(hospital, case).values()}
        assert not lengths & {255, 256}


# --- the database


def test_every_good_slide_joins_its_part_and_block_through_the_barcode(database: Path, hospital: Hospital) -> None:
    joined = ask(
        database,
        """SELECT i.file_name, s.specnum_formatted || '/' || p.part_designator FROM scanned_slides i
           JOIN p_stainprocess st ON st.slide_barcode = i.slide_barcode
           JOIN c_specimen s ON s.specimen_id = st.specimen_id
           JOIN p_part p ON p.specimen_id = st.specimen_id AND p.part_inst = st.part_inst""",
    )
    truth = planted_truth(hospital)["slides"]
    expected = {(name, slide["specimen"]) for name, slide in truth.items() if slide["use"] != "orphan_slide"}
    assert len(joined) == len(expected)
    assert set(joined) == expected
    assert len(ask(database, "SELECT * FROM scanned_slides")) == len(expected) + 1


def test_the_traps_are_in_the_tables(database: Path) -> None:
    several = ask(database, "SELECT patdemog_id FROM r_medrec GROUP BY 1 HAVING count(*) > 1")
    assert len(several) >= 10
    assert len(ask(database, "SELECT * FROM merged_patients")) == 1
    assert ask(
        database,
        "SELECT count(*) FROM c_specimen JOIN merged_patients ON patdemog_id = old_patdemog_id",
    ) == [(1,)]
    assert len(ask(database, "SELECT * FROM c_specimen WHERE signout_date IS NULL")) == 1
    assert {row[0] for row in ask(database, "SELECT sprotype_id FROM p_special_proc")} == {"ADD", "AMD"}
    stale = ask(
        database,
        """SELECT count(*) FROM p_stainprocess st LEFT JOIN p_block b USING (specimen_id, part_inst, block_inst)
           WHERE b.block_inst IS NULL""",
    )
    assert stale[0][0] not in (None, 0)


# --- the pictures


def test_a_picture_repeats_from_its_seed_and_has_the_size_of_its_resolution() -> None:
    first, again = paint(small_picture()), paint(small_picture())
    assert np.array_equal(first, again)
    assert first.shape == (520, 520, 3)
    assert paint(small_picture(mpp=0.25)).shape == (1040, 1040, 3)
    assert not np.array_equal(first, paint(small_picture(seed=4)))


@pytest.mark.parametrize("pattern", ["normal", "adenosis", "benign_node", "lobular_cancer", "in_situ"])
def test_tissue_is_coloured_and_glass_is_near_white(pattern: str) -> None:
    rgb = paint(small_picture(pattern=pattern, width_um=400, height_um=400)).astype(int)
    corner = rgb[:20, :20]
    assert corner.min() > 220
    assert np.ptp(corner.mean((0, 1))) < 20
    saturation = rgb.max(-1) - rgb.min(-1)
    assert 0.12 < (saturation > 30).mean() < 0.75


def test_stain_and_light_are_drawn_without_regard_to_the_diagnosis() -> None:
    """Same seed, another pattern: other tissue under exactly the same light and stain."""
    cancer, benign = (paint(small_picture(pattern=pattern)) for pattern in ("ductal_cancer", "fibroadenoma"))
    assert not np.array_equal(cancer, benign)
    assert np.array_equal(cancer[:20, :20], benign[:20, :20])  # glass, with the noise of the camera


def test_glass_has_noise_and_no_colour() -> None:
    rgb = paint_glass(300, 300, 0.5, seed=1).astype(int)
    assert rgb.std() > 0.5
    assert np.mean(rgb.max(-1) - rgb.min(-1)) < 15


# --- the files


@pytest.mark.parametrize("damage", ["no_mpp", "truncated", "none"])
def test_a_scan_is_broken_as_planned(tmp_path: Path, hospital: Hospital, damage: str) -> None:
    scan = replace(next(hospital.scans()), damage=damage, picture=small_picture())  # type: ignore[arg-type]
    write_scan(scan, tmp_path)
    path = tmp_path / scan.file_name
    if damage == "truncated":
        with pytest.raises(openslide.OpenSlideError):
            openslide.OpenSlide(path)
        return
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (520, 520)
        assert ("openslide.mpp-x" in slide.properties) == (damage == "none")


def test_write_demo_writes_the_same_bytes_with_one_worker_and_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest.demo import hospital as plan

    def small(*arguments: object, **options: object) -> Picture:
        seed = int(arguments[0].integers(0, 1000))  # type: ignore[attr-defined]
        return small_picture(seed=seed, width_um=120, height_um=120)

    monkeypatch.setattr(plan, "_picture", small)
    one = write_demo(tmp_path / "one", 3, num_patients=20, num_workers=1)
    two = write_demo(tmp_path / "two", 3, num_patients=20, num_workers=2)
    assert one == two
    files = sorted(path.name for path in (tmp_path / "one" / "slides").iterdir())
    truth = json.loads((tmp_path / "one" / "truth.json").read_text())
    missing = [name for name, slide in truth["slides"].items() if slide["use"] == "missing_file"]
    assert set(files) == set(truth["slides"]) - set(missing)
    assert one.num_slide_files == len(files) == one.num_scans - 1
    for name in files:
        assert (tmp_path / "one" / "slides" / name).read_bytes() == (tmp_path / "two" / "slides" / name).read_bytes()
