"""Slide join: a slide goes to the part it shows, or to the ledger with the reason; never to a guess."""

import random
from typing import Any

import pyarrow as pa
import pytest

from ingest.join import SlideJoin, SlideJoinConfig, block_name, join_slides, part_name
from ingest.source.canonical import SCHEMAS

PARTS = [
    {"accession": "S1", "part": "A", "part_seq": "1"},
    {"accession": "S1", "part": "B", "part_seq": "2"},
    {"accession": "S2", "part": "1"},
    {"accession": "S3", "part": "A", "part_seq": "1"},
]
BLOCKS = [
    {"accession": "S1", "part": "A", "block": "A1"},
    {"accession": "S1", "part": "A", "block": "A2"},
    {"accession": "S1", "part": "B", "block": "1"},
]
CASES = [
    {"accession": "S1", "case_class": "S"},
    {"accession": "S2", "case_class": "S"},
    {"accession": "S3", "case_class": "C"},
    {"accession": "S4"},
]
SLIDE = {"slide_id": "i1", "accession": "S1", "part": "A", "stain": "H&E", "path": "a.svs"}


def table(name: Any, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMAS[name])


def join(*slides: dict[str, Any], labelled: list[tuple[str, str, str]] | None = None, **settings: Any) -> SlideJoin:
    rows = [{**SLIDE, "path": f"{slide.get('slide_id', 'i1')}.svs", **slide} for slide in slides]
    return join_slides(
        table("slides", rows), table("cases", CASES), table("parts", PARTS), table("blocks", BLOCKS),
        SlideJoinConfig(**settings), labelled or [],
    )  # fmt: skip


def outcome(**slide: Any) -> str:
    """The part, or the reason."""
    settings = slide.pop("settings", {})
    found = join(slide, **settings)
    if found.used.num_rows:
        return f"part {found.used['part'][0]}"
    return str(found.rejected["reason"][0])


@pytest.mark.parametrize(
    ("slide", "expected"),
    [
        ({}, "part A"),
        ({"part": "b."}, "part B"),
        ({"part": "2"}, "part B"),  # the slide list counts, the LIS names
        ({"part": "C"}, "part_mismatch"),
        ({"accession": "S2", "part": "01"}, "part 1"),
        ({"accession": "S2", "part": "2"}, "part_mismatch"),
        ({"part": None, "block": "A2"}, "part A"),
        ({"part": None, "block": "B-01"}, "part B"),  # listed as block 1 of part B
        ({"part": None, "block": "B7"}, "part B"),  # not listed, but its letter is a part
        ({"part": None, "block": "C1"}, "ambiguous_part"),
        ({"part": None, "block": "7"}, "ambiguous_part"),
        ({"part": None}, "ambiguous_part"),
        ({"accession": "S2", "part": None}, "part 1"),  # the only part
        ({"part": "B", "block": "A1"}, "part_block_conflict"),
        ({"part": "A", "block": "A9"}, "part A"),  # a recut that the block list does not know
        ({"part": "B", "block": "B1"}, "part B"),
        ({"accession": "S9"}, "orphan_slide"),
        ({"accession": None}, "no_accession"),
        ({"path": None}, "not_scanned"),
        ({"accession": "S3"}, "cytology"),
        ({"accession": "S4", "part": None}, "ambiguous_part"),  # no part list: nothing to go by
        ({"accession": "S4", "part": "A"}, "part A"),
    ],
)
def test_each_slide_gets_its_part_or_its_reason(slide: dict[str, Any], expected: str) -> None:
    assert outcome(**slide) == expected


@pytest.mark.parametrize(
    ("stain", "group", "expected"),
    [
        ("H&E", None, "part A"), ("HE", "HE", "part A"), ("H & E LEVEL 2", None, "part A"), ("h and e", None, "part A"),
        ("Haematoxylin and eosin", None, "part A"), (None, "H&E", "part A"), ("H&E RECUT", "ROUTINE", "part A"),
        ("H&E FROZEN", "HE", "frozen"), ("H&E", "FS", "frozen"), ("H&E intra-operative", None, "frozen"),
        ("ER", "IHC", "ihc"), ("CK5/6", None, "ihc"), ("HER2 FISH", None, "ihc"), ("H&E", "IHC", "ihc"),
        ("HE4", "SPECIAL", "not_he"), ("PAS", "SPECIAL", "not_he"), ("TRICHROME", None, "not_he"),
        ("Papanicolaou", None, "cytology"), ("Diff-Quik", None, "cytology"), ("H&E touch prep", None, "cytology"),
        (None, None, "stain_missing"),
    ],
)  # fmt: skip
def test_only_fixed_tissue_in_he_is_used(stain: str | None, group: str | None, expected: str) -> None:
    assert outcome(stain=stain, stain_group=group) == expected


def test_missing_stain_may_be_kept_by_configuration() -> None:
    assert outcome(stain=None, settings={"missing_stain": "keep"}) == "part A"
    assert outcome(settings={"exclude_classes": ("S",)}) == "case_class"
    assert outcome(stain="PAS", settings={"stain_pattern": "pas"}) == "part A"


def test_declared_name_pattern_fills_only_what_the_row_leaves_empty() -> None:
    pattern = r"(?P<accession>S\d+);(?P<part>[A-Z])(?P<block>\d+);"
    settings = {"part_from_name": pattern}
    assert outcome(accession=None, part=None, barcode="S1;B3;HE", settings=settings) == "part B"
    assert outcome(accession=None, part=None, path="S1;B3;HE.svs", settings=settings) == "part B"
    assert outcome(part="A", barcode="S9;B3;HE", settings=settings) == "part A"


def test_best_scan_of_a_glass_is_kept_and_the_others_point_to_it() -> None:
    found = join(
        {"slide_id": "i1", "barcode": "g1", "objective": "20x", "scanned_at": "2024-01-01"},
        {"slide_id": "i2", "barcode": "g1", "objective": "40x", "scanned_at": "2022-01-01"},
        {"slide_id": "i3", "barcode": "g1", "objective": "40x", "scanned_at": "2023-01-01"},
        {"slide_id": "i4", "barcode": "g2"},
    )
    assert found.used["slide_id"].to_pylist() == ["i3", "i4"]
    rejected = {row["slide_id"]: (row["reason"], row["duplicate_of"]) for row in found.rejected.to_pylist()}
    assert rejected == {"i1": ("duplicate_scan", "i3"), "i2": ("duplicate_scan", "i3")}


def test_one_file_under_two_ids_is_used_once() -> None:
    found = join({"slide_id": "i2", "path": "same.svs"}, {"slide_id": "i1", "path": "same.svs"})
    assert found.used["slide_id"].to_pylist() == ["i1"]
    assert found.rejected.to_pylist()[0]["reason"] == "duplicate_file"


def test_rejected_scan_never_displaces_a_usable_one() -> None:
    found = join(
        {"slide_id": "i1", "barcode": "g1", "objective": "40x", "part": "C"},
        {"slide_id": "i2", "barcode": "g1", "objective": "20x"},
    )
    assert found.used["slide_id"].to_pylist() == ["i2"]


def test_one_image_id_with_two_stains_is_refused_and_exact_copies_are_counted() -> None:
    found = join({"stain": "H&E"}, {"stain": "ER"}, {"slide_id": "i2"}, {"slide_id": "i2"})
    assert found.used["slide_id"].to_pylist() == ["i2"]
    assert sorted((row["slide_id"], row["reason"]) for row in found.rejected.to_pylist()) == [
        ("i1", "conflicting_rows"), ("i1", "conflicting_rows"), ("i2", "duplicate_row"),
    ]  # fmt: skip


def test_slides_and_blocks_of_a_part_are_counted_and_a_labelled_block_narrows_the_scope() -> None:
    found = join(
        {"slide_id": "i1", "block": "A1"}, {"slide_id": "i2", "block": "a-2"}, {"slide_id": "i3"},
        {"slide_id": "i4", "part": "B", "block": "1"}, {"slide_id": "i5", "stain": "ER", "block": "A1"},
        labelled=[("S1", "A", "A2")],
    )  # fmt: skip
    rows = {row["slide_id"]: row for row in found.used.to_pylist()}
    assert {key: row["num_slides_in_part"] for key, row in rows.items()} == {"i1": 3, "i2": 3, "i3": 3, "i4": 1}
    assert {key: row["num_blocks_in_part"] for key, row in rows.items()} == {"i1": 2, "i2": 2, "i3": 2, "i4": 1}
    assert {key: row["label_scope"] for key, row in rows.items()} == {
        "i1": "part", "i2": "block", "i3": "part", "i4": "part",
    }  # fmt: skip
    assert rows["i4"]["block"] == "B1"


def test_funnel_counts_what_is_left_and_gives_the_join_rate() -> None:
    found = join(
        {"slide_id": "i1"}, {"slide_id": "i2", "path": None}, {"slide_id": "i3", "stain": "ER"},
        {"slide_id": "i4", "accession": "S9"}, {"slide_id": "i5", "part": "Z"}, {"slide_id": "i6", "path": "i1.svs"},
    )  # fmt: skip
    assert found.funnel == {"listed": 6, "scanned": 5, "stain": 4, "case": 3, "part": 2, "unique": 1}
    assert found.join_rate == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_any_rows_in_any_order_add_up_and_give_the_same_join(seed: int) -> None:
    generator = random.Random(seed)
    rows = [
        {
            "slide_id": f"i{generator.randrange(60)}",
            "accession": generator.choice(["S1", "S2", "S3", "S9", None]),
            "part": generator.choice(["A", "B", "1", None, "Q"]),
            "block": generator.choice([None, "A1", "B1", "7"]),
            "stain": generator.choice(["H&E", "ER", None, "H&E FROZEN"]),
            "barcode": generator.choice([None, "g1", "g2"]),
            "path": generator.choice([None, "x.svs", "y.svs", "z.svs"]),
        }
        for _ in range(120)
    ]
    first = join(*rows)
    assert first.used.num_rows + first.rejected.num_rows == 120
    generator.shuffle(rows)
    second = join(*rows)
    assert second.used == first.used
    assert second.rejected == first.rejected


@pytest.mark.parametrize(
    ("part", "block", "name"),
    [("A", "A1", "A1"), ("A", "1", "A1"), ("a.", "a-01", "A1"), (None, "1", "1"), ("A", "A 10", "A10"),
     ("AA", "AA3", "AA3"), ("1", "A2", "A2"), ("1", "2", "12"), ("A", "FS1", "FS1")],
)  # fmt: skip
def test_spellings_of_one_block_are_one_name(part: str | None, block: str, name: str) -> None:
    assert block_name(part, block) == name


def test_spellings_of_one_part_are_one_name() -> None:
    assert {part_name(spelling) for spelling in ("A", "a.", "A)", " A: ", "(A)")} == {"A"}
    assert part_name("01") == part_name("1") == "1"
    assert part_name("0") == "0"
