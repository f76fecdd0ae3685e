"""The planted truth of the demo hospital, for tests to compare a manifest with."""

from typing import Any

from ingest.demo.hospital import Case, Damage, GlassSlide, Hospital, Label, Part, Scan

_REASON_OF_DAMAGE: dict[Damage, str] = {
    "missing_file": "missing_file",
    "truncated": "unreadable_slide",
    "no_mpp": "no_mpp",
    "blank": "blank_slide",
}


def planted_truth(hospital: Hospital) -> dict[str, dict[str, Any]]:
    """{"specimens": {accession/part: label}, "slides": {file name: {specimen, label, use}}}.

    `use` is "usable" or the first reason why the slide must not be used; a specimen of a case that is not signed out
    is `not_assessable`.
    """
    specimens: dict[str, Label] = {}
    slides: dict[str, dict[str, str | None]] = {}
    for case in hospital.cases:
        for part in case.parts:
            name = f"{case.accession}/{part.designator}"
            specimens[name] = standing_label(case, part)
            for slide in part.slides:
                for scan in slide.scans:
                    use = _use(specimens[name], slide, scan)
                    slides[scan.file_name] = {"specimen": name, "label": specimens[name], "use": use}
    for scan in hospital.stray_scans:
        slides[scan.file_name] = {"specimen": None, "label": None, "use": "orphan_slide"}
    return {"specimens": dict(specimens), "slides": dict(slides)}


def standing_label(case: Case, part: Part) -> Label:
    """What a reader of the signed-out reports may conclude."""
    return "not_assessable" if case.signed_at is None else part.label


def _use(label: Label, slide: GlassSlide, scan: Scan) -> str:
    if slide.stain_code == "FS":
        return "frozen"
    if slide.stain_code != "HE":
        return "not_he"
    if scan is not slide.scans[-1]:
        return "duplicate_scan"  # the latest scan of a glass slide stands for it
    if scan.damage != "none":
        return _REASON_OF_DAMAGE[scan.damage]
    return "usable" if label in ("cancer", "in_situ", "benign") else label
