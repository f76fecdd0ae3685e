"""Site, side and procedure of a part, from its title in the report, the specimen list or the LIS description."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ingest.part_names import TITLED_ROLES
from ingest.report.normalise import view
from ingest.report.versions import CaseText, Passage
from ingest.rulefile import Compiled

_UNTITLED_CHARACTERS = 160  # of a diagnosis without a title, where a site is looked for


@dataclass(frozen=True, slots=True)
class Title:
    site: str
    laterality: str
    procedure: str


def title_of(own: Sequence[Passage], case: CaseText, engine: Compiled, description: str) -> Title:
    """Site, side and procedure: of the diagnosis title, else the specimen list, else the LIS description."""
    site = procedure = laterality = ""
    for zone in _title_zones(own, case, description):
        site = site or _site(zone, engine)
        procedure = procedure or _procedure(zone, engine)
        laterality = laterality or _laterality(zone)
        if site and procedure and laterality:
            break
    return Title(site or "unknown", laterality, procedure or "unknown")


def site_and_procedure(zone: str, engine: Compiled) -> tuple[str, str]:
    """Site and procedure that the view of one title names."""
    return _site(zone, engine) or "unknown", _procedure(zone, engine) or "unknown"


def _title_zones(own: Sequence[Passage], case: CaseText, description: str) -> Iterable[str]:
    for role in TITLED_ROLES:
        for passage in own:
            if passage.role == role:
                end = (
                    passage.body
                    if passage.body > passage.start
                    else min(passage.end, passage.start + _UNTITLED_CHARACTERS)
                )
                yield case.views[passage.version][passage.start : end]
    yield view(description)


def _site(zone: str, engine: Compiled) -> str:
    found = [(m.start(), engine.site_names[engine.sites.value(m.group())]) for m in engine.sites.pattern.finditer(zone)]
    names = [name for _, name in sorted(found)]
    specific = [name for name in names if name != "other"]
    if not specific:
        return names[0] if names else ""
    if specific[0] == "skin" and "nipple" in specific:
        return "nipple"
    if (
        specific[0] == "skin"
        and "breast" in specific
        and re.search(r"skin (?:and|&) (?:the )?(?:left |right )?breast", zone)
    ):
        return "breast"
    if (
        specific[0] == "breast"
        and "lymph_node" in specific
        and re.search(r"\b(?:intramammary|sentinel)\b", zone)
        and "mastectomy" not in zone
    ):
        return "lymph_node"
    return specific[0]


def _procedure(zone: str, engine: Compiled) -> str:
    found = [engine.procedures.value(m.group()) for m in engine.procedures.pattern.finditer(zone)]
    return engine.procedure_names[min(found)] if found else ""


def _laterality(zone: str) -> str:
    sides = set(re.findall(r"\b(left|right|bilateral|lt|rt|l|r)\b(?! ?[/.])", zone))
    left, right = bool(sides & {"left", "lt", "l"}), bool(sides & {"right", "rt", "r"})
    if "bilateral" in sides or (left and right):
        return "bilateral"
    return "left" if left else "right" if right else ""
