"""The plan of the demo hospital: who was ill, what was cut, scanned and reported. Pure: a seed in, a plan out.

The plan keeps the traps of real systems: several record numbers per patient, a merged patient, cases of several
parts with different truths, addenda that overturn, parts without a diagnosis, blocks whose number was reassigned,
stains and frozen sections that are no routine H&E, and scans that are broken, double or known to nobody.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, get_args

import numpy as np

from ingest.demo.tissue_image import Pattern, Picture, Stain
from ingest.errors import ConfigError

Label = Literal["cancer", "in_situ", "benign", "indeterminate", "not_assessable"]
Finding = Literal[
    "idc", "ilc", "dcis", "node_metastasis", "normal", "fibrocystic", "fibroadenoma", "adenosis", "hyperplasia",
    "node_negative", "indeterminate", "missing",
]  # fmt: skip
Turn = Literal["none", "adds", "overturns", "amended", "preliminary"]
Damage = Literal["none", "missing_file", "truncated", "no_mpp", "blank"]
HeaderStyle = Literal["letter_dot", "letter_paren", "part_word", "specimen_word"]

LABEL_OF: dict[Finding, Label] = {
    "idc": "cancer",
    "ilc": "cancer",
    "dcis": "in_situ",
    "node_metastasis": "cancer",
    "normal": "benign",
    "fibrocystic": "benign",
    "fibroadenoma": "benign",
    "adenosis": "benign",
    "hyperplasia": "benign",
    "node_negative": "benign",
    "indeterminate": "indeterminate",
    "missing": "not_assessable",
}
# Adenosis and hyperplasia are reported but drawn as plainer tissue: telling such crowded mimics from cancer takes more
# slides than a demo has (36 training slides reached an AUC of 0.84 with them drawn, 0.99 without).
PATTERN_OF: dict[Finding, Pattern] = {
    "idc": "ductal_cancer",
    "ilc": "lobular_cancer",
    "dcis": "in_situ",
    "node_metastasis": "node_metastasis",
    "normal": "normal",
    "fibrocystic": "fibrocystic",
    "fibroadenoma": "fibroadenoma",
    "adenosis": "normal",
    "hyperplasia": "fibrocystic",
    "node_negative": "benign_node",
    "indeterminate": "atypical",
    "missing": "normal",
}
NODE_FINDINGS: frozenset[Finding] = frozenset({"node_metastasis", "node_negative"})
_STAIN_OF_CODE: dict[str, Stain] = {"HE": "routine", "FS": "frozen", "IHC": "immuno"}
CLIENTS = ("NORTH", "SOUTH", "HARBOUR")  # facilities; each gives its own record numbers
SCANNERS: tuple[tuple[str, str, float], ...] = (  # model, magnification, micrometres per pixel
    ("GT450", "40x", 0.25),
    ("GT450", "40x", 0.25),
    ("AT2", "20x", 0.5),
    ("AT2", "20x", 0.5),
    ("AT2", "40x", 0.2528),
    ("CS2", "20x", 0.499),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One image file. `slide_barcode` is what the scanner read from the label."""

    image_id: str
    slide_barcode: str
    file_name: str
    scanner: str
    magnification: str
    scanned_at: datetime
    picture: Picture
    damage: Damage = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class GlassSlide:
    """A stained section. `block` is an index into the blocks of its part; None is a slide without a block."""

    block: int | None
    stain_number: int
    stain_code: str
    stain_name: str
    barcode: str
    scans: tuple[Scan, ...]
    block_is_stale: bool = False  # the block was numbered anew after this slide was cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    number: int  # block_inst; has gaps where a cassette was deleted
    designator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A specimen in the sense of the method: what one container held. `label` is the standing truth."""

    number: int
    designator: str
    finding: Finding
    part_type: str
    description: str
    laterality: str
    procedure: str
    blocks: tuple[Block, ...]
    slides: tuple[GlassSlide, ...]
    first_finding: Finding | None = None  # what the report said before it was overturned

    @property
    def label(self) -> Label:
        return LABEL_OF[self.finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    specimen_id: str
    accession: str
    class_code: str
    patient_id: str
    client: str
    accessioned_at: datetime
    signed_at: datetime | None  # None: the report is preliminary
    addendum_at: datetime | None
    parts: tuple[Part, ...]
    turn: Turn
    header_style: HeaderStyle
    capitals: bool
    prose: bool
    wrapped: bool  # 80 columns, with a page header in the middle
    frozen_text: bool
    history: Literal["none", "cancer_before", "family"]
    text_seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    patient_id: str
    enterprise_number: str | None
    record_numbers: tuple[tuple[str, str], ...]  # client, number
    name: str
    birth_date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """The whole plan. `stray_scans` are images whose barcode no case knows; `merged` is old id -> new id."""

    patients: tuple[Patient, ...]
    cases: tuple[Case, ...]
    stray_scans: tuple[Scan, ...]
    merged: tuple[tuple[str, str], ...]

    def scans(self) -> Iterator[Scan]:
        """Every image that the database names, strays last."""
        for case in self.cases:
            for part in case.parts:
                for slide in part.slides:
                    yield from slide.scans
        yield from self.stray_scans


# What a patient had: parts of one case as (finding, number of routine slides). Two patients in five carry cancer.
_CANCER_CASES: tuple[tuple[tuple[Finding, int], ...], ...] = (
    (("idc", 1),),
    (("idc", 2), ("normal", 1)),
    (("ilc", 1),),
    (("node_metastasis", 2),),
    (("dcis", 1), ("adenosis", 1)),
    (("idc", 1), ("node_metastasis", 1)),
    (("idc", 2),),
    (("ilc", 1), ("node_negative", 1)),
    (("dcis", 2),),
    (("hyperplasia", 1), ("idc", 1), ("node_negative", 1)),
    (("node_metastasis", 1),),
    (("idc", 1), ("fibrocystic", 1)),
    (("ilc", 2),),
    (("idc", 1),),
    (("dcis", 1),),
    (("ilc", 1),),
)
_BENIGN_CASES: tuple[tuple[tuple[Finding, int], ...], ...] = (
    (("fibroadenoma", 1),),
    (("adenosis", 2),),
    (("hyperplasia", 1),),
    (("node_negative", 1),),
    (("fibrocystic", 1), ("fibroadenoma", 1)),
    (("adenosis", 1),),
    (("normal", 1),),
    (("hyperplasia", 2),),
    (("node_negative", 1), ("fibrocystic", 1)),
    (("indeterminate", 1),),
    (("fibroadenoma", 2),),
    (("adenosis", 1), ("hyperplasia", 1)),
    (("fibrocystic", 1), ("missing", 1)),
    (("node_negative", 2),),
    (("adenosis", 1),),
    (("hyperplasia", 1),),
    (("normal", 1), ("adenosis", 1)),
    (("fibrocystic", 1),),
    (("fibroadenoma", 1),),
    (("hyperplasia", 1), ("node_negative", 1)),
    (("node_negative", 1),),
    (("adenosis", 1),),
    (("normal", 1), ("fibroadenoma", 1)),
    (("fibrocystic", 1),),
)
_FAMILY_NAMES = (
    "Quillfeather",
    "Ambrevale",
    "Tamsworth",
    "Oddleigh",
    "Brackenholt",
    "Fennimarsh",
    "Lorrimoor",
    "Pellowby",
)
_GIVEN_NAMES = ("Ada", "Bettina", "Coralie", "Dorothea", "Elspeth", "Fenella", "Griselda", "Henrietta", "Isolde")


def plan_hospital(seed: int, num_patients: int = 40) -> Hospital:
    """The hospital of a seed; the mixture of diagnoses is fixed, everything else is drawn.

    Raises:
        ConfigError: fewer than 20 patients cannot hold the planted damage, more than 900 run out of record numbers.
    """
    if not 20 <= num_patients <= 900:
        raise ConfigError(f"demo hospital: {num_patients} patients; give 20 to 900")
    generator = np.random.default_rng(seed)
    num_cancer = round(0.4 * num_patients)
    contents = [_CANCER_CASES[i % len(_CANCER_CASES)] for i in range(num_cancer)]
    contents += [_BENIGN_CASES[i % len(_BENIGN_CASES)] for i in range(num_patients - num_cancer)]
    turns = _choose_turns(contents)
    order = generator.permutation(num_patients)
    patients = tuple(_patient(generator, number) for number in range(num_patients))
    numbers = generator.choice(np.arange(1000, 60000), size=2 * num_patients, replace=False)
    cases = [
        _case(generator, patients[number], contents[index], turns[index], int(numbers[number]), number)
        for number, index in enumerate(order)
    ]
    cases = _plant_damage(generator, cases)
    stray = replace(
        cases[0].parts[0].slides[0].scans[0],
        image_id="900001",
        slide_barcode="S19-00042;A1;HE;1",
        file_name="900001.svs",
        scanner="AT2",
        magnification="20x",
        picture=_picture(generator, "normal", 0.5),
        damage="none",
    )
    patients, merged, cases = _merge_a_patient(generator, patients, cases)
    return Hospital(patients=patients, cases=_number_scans(generator, cases), stray_scans=(stray,), merged=merged)


def _choose_turns(contents: list[tuple[tuple[Finding, int], ...]]) -> list[Turn]:
    """Which reports change after sign-out: one benign to cancer, one cancer to benign, some with more to say."""
    turns: list[Turn] = ["none"] * len(contents)
    cancers = [i for i, parts in enumerate(contents) if len(parts) == 1 and parts[0][0] in ("idc", "ilc")]
    benign = [i for i, parts in enumerate(contents) if len(parts) == 1 and parts[0][0] in ("adenosis", "hyperplasia")]
    turns[cancers[0]] = "overturns"
    turns[benign[0]] = "amended"
    for index in cancers[1:3]:
        turns[index] = "adds"
    if len(benign) > 1:
        turns[benign[-1]] = "preliminary"
    return turns


def _patient(generator: np.random.Generator, number: int) -> Patient:
    num_records = 1 + int(number % 3 == 0) + int(number % 9 == 0)
    clients = generator.permutation(len(CLIENTS))[:num_records]
    birth = datetime(1938, 1, 1) + timedelta(days=int(generator.integers(0, 20000)))
    family, given = generator.choice(_FAMILY_NAMES), generator.choice(_GIVEN_NAMES)
    return Patient(
        patient_id=f"P{1001 + number}",
        enterprise_number=None if number % 8 == 5 else f"{int(generator.integers(7000, 9999)) * 1000 + number}",
        record_numbers=tuple((CLIENTS[c], f"{int(generator.integers(10, 9999)) * 1000 + number:08d}") for c in clients),
        name=f"{family}, {given} {chr(65 + number % 26)}.",
        birth_date=f"{birth:%Y-%m-%d}",
    )


def _case(generator: np.random.Generator, patient: Patient, contents: tuple[tuple[Finding, int], ...], turn: Turn,
          accession_number: int, number: int) -> Case:  # fmt: skip
    accessioned = datetime(2019, 1, 7, 8, 0) + timedelta(minutes=int(generator.integers(0, 5 * 365 * 24 * 60)))
    accession = f"S{accessioned:%y}-{accession_number:05d}"
    laterality = str(generator.choice(["LEFT", "RIGHT"]))
    parts = tuple(
        _part(generator, accession, index, finding, num_slides, laterality, accessioned)
        for index, (finding, num_slides) in enumerate(contents)
    )
    if turn in ("overturns", "amended"):
        before: Finding = "indeterminate" if turn == "overturns" else "idc"
        parts = (replace(parts[0], first_finding=before), *parts[1:])
    signed = accessioned + timedelta(days=int(generator.integers(1, 6)), hours=3)
    single = len(parts) == 1
    styles: tuple[HeaderStyle, ...] = get_args(HeaderStyle)
    history: tuple[Literal["none", "cancer_before", "family"], ...] = ("none", "cancer_before", "family")
    return Case(
        specimen_id=f"{500001 + number}",
        accession=accession,
        class_code="S",
        patient_id=patient.patient_id,
        client=patient.record_numbers[0][0],
        accessioned_at=accessioned,
        signed_at=None if turn == "preliminary" else signed,
        addendum_at=signed + timedelta(days=4) if turn in ("adds", "overturns", "amended") else None,
        parts=parts,
        turn=turn,
        header_style=styles[number % len(styles)],
        capitals=bool(generator.uniform() < 0.5),
        prose=single and turn == "none" and number % 5 == 2,
        wrapped=number % 4 == 1,
        frozen_text=number % 6 == 3,
        history=history[int(generator.integers(0, 3))],
        text_seed=int(generator.integers(0, 2**31)),
    )


def _part(generator: np.random.Generator, accession: str, index: int, finding: Finding, num_slides: int,
          laterality: str, accessioned: datetime) -> Part:  # fmt: skip
    designator = "ABCDEFGH"[index]
    if finding in NODE_FINDINGS:
        procedure, part_type = "SENTINEL LYMPH NODE, BIOPSY", "LYMPH NODE; BIOPSY"
        description = f"SENTINEL LYMPH NODE, {laterality} AXILLA"
    else:
        procedure = str(generator.choice(["CORE BIOPSY", "EXCISION", "LUMPECTOMY"]))
        part_type = f"BREAST; {procedure}"
        description = f"{laterality} BREAST, {int(generator.integers(1, 13))}:00, {procedure}"
    num_blocks = int(generator.integers(max(1, num_slides - 1), num_slides + 1))
    gap = int(generator.uniform() < 0.2)  # a deleted cassette: the numbers no longer agree with the labels
    blocks = tuple(Block(number=1 + block + gap, designator=f"{designator}{block + 1}") for block in range(num_blocks))
    slides = tuple(
        _glass_slide(generator, accession, finding, blocks, slide, accessioned) for slide in range(num_slides)
    )
    return Part(
        number=index + 1,
        designator=designator,
        finding=finding,
        part_type=part_type,
        description=description,
        laterality=laterality,
        procedure=procedure,
        blocks=blocks,
        slides=slides,
    )


def _glass_slide(generator: np.random.Generator, accession: str, finding: Finding, blocks: tuple[Block, ...],
                 slide: int, accessioned: datetime) -> GlassSlide:  # fmt: skip
    block = slide % len(blocks)
    number = slide // len(blocks) + 1
    barcode = f"{accession};{blocks[block].designator};HE;{number}"
    scan = _scan(generator, barcode, finding, accessioned)
    return GlassSlide(
        block=block,
        stain_number=number,
        stain_code="HE",
        stain_name="H&E",
        barcode=barcode,
        scans=(scan,),
        block_is_stale=blocks[block].number > block + 1 and bool(generator.uniform() < 0.5),
    )


def _scan(generator: np.random.Generator, barcode: str, finding: Finding, accessioned: datetime) -> Scan:
    scanner, magnification, mpp = SCANNERS[int(generator.integers(0, len(SCANNERS)))]
    return Scan(
        image_id="",  # numbered in one pass at the end, without repeats
        slide_barcode=barcode,
        file_name="",
        scanner=scanner,
        magnification=magnification,
        scanned_at=accessioned + timedelta(days=int(generator.integers(7, 400))),
        picture=_picture(generator, PATTERN_OF[finding], mpp),
    )


def _picture(generator: np.random.Generator, pattern: Pattern, mpp: float) -> Picture:
    return Picture(
        pattern=pattern,
        focus_share=float(generator.uniform(0.5, 0.8)),
        width_um=float(generator.uniform(520, 680)),
        height_um=float(generator.uniform(520, 680)),
        mpp=mpp,
        seed=int(generator.integers(0, 2**31)),
    )


def _plant_damage(generator: np.random.Generator, cases: list[Case]) -> list[Case]:
    """Extra slides that must not be used, each on another case, beside the good ones."""
    hosts = [i for i, case in enumerate(cases) if case.turn == "none" and case.parts[0].finding != "missing"]
    chosen = [int(index) for index in generator.permutation(hosts)]
    damages: tuple[Damage, ...] = ("missing_file", "truncated", "no_mpp", "blank")
    for index, damage in zip(chosen, damages, strict=False):
        cases[index] = _with_extra_slide(generator, cases[index], "HE", "H&E", damage=damage)
    for index, (code, name) in zip(
        chosen[len(damages) :], (("IHC", "ER"), ("FS", "H&E FROZEN"), ("IHC", "CK5/6")), strict=False
    ):
        cases[index] = _with_extra_slide(generator, cases[index], code, name)
    twice = chosen[(len(damages) + 3) % len(chosen)]
    cases[twice] = _scanned_twice(generator, cases[twice])
    return cases


def _with_extra_slide(
    generator: np.random.Generator, case: Case, code: str, name: str, damage: Damage = "none"
) -> Case:
    part = case.parts[0]
    number = 1 + max(slide.stain_number for slide in part.slides)
    barcode = f"{case.accession};{part.blocks[0].designator};{code};{number}"
    scan = _scan(generator, barcode, part.finding, case.accessioned_at)
    stain: Literal["routine", "frozen", "immuno"] = (
        "immuno" if code == "IHC" else "frozen" if code == "FS" else "routine"
    )
    scan = replace(scan, damage=damage, picture=replace(scan.picture, stain=stain))
    slide = GlassSlide(block=0, stain_number=number, stain_code=code, stain_name=name, barcode=barcode, scans=(scan,))
    return replace(case, parts=(replace(part, slides=(*part.slides, slide)), *case.parts[1:]))


def _scanned_twice(generator: np.random.Generator, case: Case) -> Case:
    """The same glass again: same tissue and stain, new image id, a later date."""
    part = case.parts[0]
    first = part.slides[0].scans[0]
    image_id = f"{int(generator.integers(100000, 900000))}"
    again = replace(
        first, image_id=image_id, file_name=f"{image_id}.svs", scanned_at=first.scanned_at + timedelta(days=30)
    )
    slides = (replace(part.slides[0], scans=(first, again)), *part.slides[1:])
    return replace(case, parts=(replace(part, slides=slides), *case.parts[1:]))


def _number_scans(generator: np.random.Generator, cases: list[Case]) -> tuple[Case, ...]:
    """Image ids and file names without repeats; like a scanner's, they say nothing about the case."""
    num_scans = sum(len(slide.scans) for case in cases for part in case.parts for slide in part.slides)
    numbers = iter(generator.choice(np.arange(100000, 900000), size=num_scans, replace=False))

    def numbered(scan: Scan) -> Scan:
        number = int(next(numbers))
        return replace(scan, image_id=f"{number}", file_name=f"{number}.svs")

    def with_numbers(part: Part) -> Part:
        slides = (replace(slide, scans=tuple(numbered(scan) for scan in slide.scans)) for slide in part.slides)
        return replace(part, slides=tuple(slides))

    return tuple(replace(case, parts=tuple(with_numbers(part) for part in case.parts)) for case in cases)


def _merge_a_patient(
    generator: np.random.Generator, patients: tuple[Patient, ...], cases: list[Case]
) -> tuple[tuple[Patient, ...], tuple[tuple[str, str], ...], list[Case]]:
    """One patient has a second, old record whose case was never moved."""
    benign = next(p for p in patients if all(part.label == "benign" for part in cases[_index(p)].parts))
    old = replace(
        benign,
        patient_id="P0007",
        enterprise_number=None,
        record_numbers=(("HARBOUR", f"{int(generator.integers(10, 9999)) * 1000 + 999:08d}"),),
        name=benign.name.upper(),
    )
    extra = _case(generator, old, (("fibrocystic", 1),), "none", int(generator.integers(60000, 90000)), len(patients))
    return (*patients, old), ((old.patient_id, benign.patient_id),), [*cases, extra]


def _index(patient: Patient) -> int:
    return int(patient.patient_id[1:]) - 1001
