"""What one LIS case brings to labelling, and what labelling gives back.

Everything here is frozen, holds plain values and pickles, so a process pool returns the same bytes for any worker count.
Evidence is offsets into the normalised text (`ingest.report.normalise.normalise`) of one report version, never text.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Label = Literal["cancer", "in_situ", "benign", "indeterminate", "not_assessable"]
LABELS: tuple[Label, ...] = ("cancer", "in_situ", "benign", "indeterminate", "not_assessable")

TextFormat = Literal["text", "rtf", "hl7_ft"]
VersionKind = Literal["final", "addendum", "amended", "corrected", "preliminary"]
EvidenceSource = Literal["discrete", "code", "amended", "addendum", "final", "comment", "synoptic", "reference", "none"]
ContextName = Literal["affirmed", "negated", "uncertain", "historical", "family", "hypothetical", "foreign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportVersion:
    """One row of report text.

    `section` and `part` are given when the LIS stores them apart (CoPath `$final`, HL7 LOINC and OBX-4); None means the
    text carries its own headings. `status` is the HL7 result status (P, F, C, A, D, X) or empty. Higher `version` is later.
    """

    text: str
    format: TextFormat = "text"
    kind: VersionKind = "final"
    version: int = 0
    status: str = ""
    section: str | None = None
    part: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LisPart:
    """A row of the LIS part table; `part` is the designator as text ("A", "1", "AA")."""

    part: str
    description: str = ""
    part_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeValue:
    """A code the LIS holds; `part` None means it was given for the case. Systems: icdo, snomed, bcode, icd10."""

    system: str
    code: str
    part: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SynopticAnswer:
    """A discrete answer of a signed-out template (CAP eCC)."""

    question: str
    answer: str
    part: str | None = None
    template: str = ""


class Evidence(NamedTuple):  # a report has twenty; a frozen dataclass takes three times as long to make
    """Why: the rule, the lexicon term it met, where (characters of the normalised text of `version`), in what context."""

    rule_id: str
    term: str
    version: int  # position in the sequence of reports given to `label_case`; -1 = a discrete value or a code
    start: int
    end: int
    section: str
    context: ContextName


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLabel:
    """A statement about named blocks of a part ("A5", "A6"); outranks the part's label for slides of that block."""

    block: str
    label: Label
    rule_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetValue:
    """One task of the multi-task table. `y` is None whenever `status` is not `stated`: unknown is never negative."""

    task: str
    value: str  # "" when not stated
    status: Literal["stated", "not_reported", "equivocal", "conflict"]
    y: float | None
    value_number: float | None = None  # percent of cells, where the report gives it
    rule_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLabel:
    """The label of one part with where it came from. `findings` holds every affirmed finding, sorted."""

    part: str
    label: Label
    finding: str
    findings: tuple[str, ...] = ()
    atypia: bool = False
    site: str = "unknown"
    laterality: str = ""  # left, right, bilateral or empty
    procedure: str = "unknown"
    rule_id: str = ""
    evidence_source: EvidenceSource = "none"
    version_kind: str = ""
    evidence: tuple[Evidence, ...] = ()
    flags: tuple[str, ...] = ()  # sorted reason codes, for example text_truncated, typo_repaired
    blocks: tuple[BlockLabel, ...] = ()
    targets: tuple[TargetValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two sources that disagree about one part; the part's label is then `indeterminate`."""

    part: str
    source_a: str
    label_a: Label
    source_b: str
    label_b: Label
    resolution: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseLabels:
    """All parts of a case in LIS or report order; `quarantine` are case-level reason codes."""

    parts: tuple[PartLabel, ...]
    conflicts: tuple[Conflict, ...] = ()
    quarantine: tuple[str, ...] = field(default=())
