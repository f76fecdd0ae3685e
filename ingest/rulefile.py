"""Rule files: TOML data that says which words mean which diagnosis, validated, compiled once, with their own tests inside.

A rule file names a language pack (how reports are written: `rules/english.toml`) and may extend other rule files. A file
without tests is refused; `ingest rules test` runs them.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ingest.case import Label, TargetValue
from ingest.config import Section
from ingest.errors import ConfigError
from ingest.trie import PhraseTable

RULES_FOLDER = Path(__file__).parent / "rules"
LANGUAGE_FILES = {"en": "english.toml"}
FindingLabel = Literal["cancer", "in_situ", "benign", "indeterminate", "not_assessable", "weak", "flag"]

# One letter wrong, missing, extra or swapped; two for long words.
LONG_WORD = 10


class Titles(Section):
    sites: dict[str, tuple[str, ...]]
    procedures: dict[str, tuple[str, ...]]


class ContextLexicon(Section):
    window_words: int = 20  # how far a trigger reaches, in words
    negation_forward: tuple[str, ...] = ()
    negated_history_forward: tuple[str, ...] = ()
    negation_backward: tuple[str, ...] = ()
    uncertain_forward: tuple[str, ...] = ()
    uncertain_backward: tuple[str, ...] = ()
    historical_forward: tuple[str, ...] = ()
    prior_forward: tuple[str, ...] = ()
    historical_backward: tuple[str, ...] = ()
    family_forward: tuple[str, ...] = ()
    family_backward: tuple[str, ...] = ()
    hypothetical_forward: tuple[str, ...] = ()
    hypothetical_backward: tuple[str, ...] = ()
    presence_backward: tuple[str, ...] = ()  # what makes a lesion of the past one of today: "is again seen"
    terminators: tuple[str, ...] = ()
    pseudo: tuple[str, ...] = ()
    foreign: dict[str, tuple[str, ...]] = Field(default={})


class ForeignWords(Section):
    foreign_words: tuple[str, ...] = ()


class Typos(Section):
    words: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


class Abbreviations(Section):
    describing: dict[str, str] = Field(default={})
    naming: dict[str, str] = Field(default={})


class Counts(Section):
    things: tuple[str, ...] = ()


class LanguagePack(Section):
    headings: dict[str, tuple[str, ...]]
    diagnosis_headings: dict[str, tuple[str, ...]]
    titles: Titles
    context: ContextLexicon
    language: ForeignWords
    typos: Typos
    abbreviations: Abbreviations = Abbreviations()
    counts: Counts


class Ruleset(Section):
    id: str
    version: str
    language: Literal["en"] = "en"
    task: str  # the column y_<task> the label feeds
    extends: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()  # parts of other sites are labelled too; the cohort leaves them out


class Finding(Section):
    id: str
    label: FindingLabel
    terms: tuple[str, ...] = Field(min_length=1)
    finding: str = ""  # name in the output when it differs from the id
    rank: int = 50  # among affirmed findings of one class the lowest names the part
    atypia: bool = False
    excludes: bool = False  # "no <this>" speaks for benign
    generic: bool = False  # an in-situ word nearby changes the class
    in_situ_finding: str = ""
    supports_alone: bool = True  # false: benign only beside other benign words
    icdo: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.finding or self.id


class SpecialCode(Section):
    system: str
    code: str
    label: Label
    finding: str = ""
    atypia: bool = False
    wins: bool = False
    compatible: tuple[Label, ...] = ()  # labels from text that the code does not contradict


class Codes(Section):
    icdo_behaviour: dict[str, Label] = Field(default={})
    special: tuple[SpecialCode, ...] = ()


class SynopticQuestion(Section):
    question: str  # regex, the whole question, any case
    use: Literal["text", "stage", "presence"]


class Synoptic(Section):
    answers: tuple[SynopticQuestion, ...] = ()


class Percent(Section):
    negative_below: float  # percent of nuclei
    low_positive_to: float | None = None


class Target(Section):
    task: str
    names: tuple[str, ...] = Field(min_length=1)
    other_names: tuple[str, ...] = ()  # other assays: what is said about them is not about this one
    values: dict[str, tuple[str, ...]]
    y: dict[str, float]
    percent: Percent | None = None


class RuleTest(Section):
    text: str
    format: Literal["text", "rtf", "hl7_ft", "hl7_oru"] = "text"
    expect: dict[str, Label]
    findings: dict[str, str] = Field(default={})
    targets: dict[str, dict[str, str]] = Field(default={})


class RuleFile(Section):
    ruleset: Ruleset
    findings: tuple[Finding, ...] = ()
    codes: Codes = Codes()
    synoptic: Synoptic = Synoptic()
    targets: tuple[Target, ...] = ()
    tests: tuple[RuleTest, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """A validated rule file with everything it extends; plain data that pickles. `compiled(rules)` is the engine."""

    file: RuleFile
    findings: tuple[Finding, ...]  # own first, then extended files; ids are unique
    codes: Codes
    synoptic: Synoptic
    language: LanguagePack
    digest: str  # SHA-256 of all the data; the `rules` mark of a manifest

    @property
    def id(self) -> str:
        return self.file.ruleset.id

    @property
    def task(self) -> str:
        return self.file.ruleset.task

    @property
    def target_tasks(self) -> tuple[str, ...]:
        return tuple(target.task for target in self.file.targets)


def load_rules(path_or_name: Path | str) -> Rules:
    """A rule file by path, or a packaged one by name ("breast", "lung_egfr").

    Raises:
        ConfigError: no such file, not TOML, a refused key or value, a pattern that does not compile, no tests.
    """
    path = _find(path_or_name)
    file = _read(RuleFile, path)
    if not file.tests:
        raise ConfigError(
            f"rules {path.name}: has no [[tests]]; a rule file without tests is refused, add at least one"
        )
    files = [file]
    for name in file.ruleset.extends:
        files.append(_read(RuleFile, _find(name)))
        if files[-1].ruleset.extends:
            raise ConfigError(f"rules {path.name}: extends {name}, which extends another; list both in `extends`")
    language = _read(LanguagePack, RULES_FOLDER / LANGUAGE_FILES[file.ruleset.language])
    findings: dict[str, Finding] = {}
    for each in files:
        for finding in each.findings:
            findings.setdefault(finding.id, finding)  # the extending file outranks what it extends
    codes = Codes(
        icdo_behaviour={key: label for each in reversed(files) for key, label in each.codes.icdo_behaviour.items()},
        special=tuple(code for each in files for code in each.codes.special),
    )
    synoptic = Synoptic(answers=tuple(answer for each in files for answer in each.synoptic.answers))
    data = [each.model_dump(mode="json") for each in (*files, language)]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    rules = Rules(file, tuple(findings.values()), codes, synoptic, language, digest)
    try:
        compiled(rules)
    except (ConfigError, re.error) as error:
        raise ConfigError(f"rules {path.name}: {error}") from None
    return rules


# Token kinds. Targets (what a context is about) are findings, foreign targets and the modifiers; the rest are triggers.
FINDING, FOREIGN, IN_SITU, INVASIVE = "finding", "foreign", "in_situ", "invasive"
TRIGGER_KINDS = (
    "negation_forward", "negated_history_forward", "negation_backward", "uncertain_forward", "uncertain_backward",
    "historical_forward", "prior_forward", "historical_backward", "family_forward", "family_backward",
    "hypothetical_forward", "hypothetical_backward", "presence_backward", "terminators", "pseudo",
)  # fmt: skip
IN_SITU_WORDS = (
    "in ?situ",
    "non ?invasive",
    "non ?infiltrating",
    "not invasive",
    "pre ?invasive",
    "intra ?ductal",
    "intra ?epithelial",
)
INVASIVE_WORDS = ("invasive", "infiltrating", "infiltrative", "infiltrated by", "invading", "infiltrates")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a phrase of the lexicon is: a token kind, and for findings and foreign targets which one."""

    kind: str
    index: int = -1  # into Compiled.findings
    name: str = ""
    benign: bool = False  # of a finding


@dataclass(frozen=True, slots=True)
class CompiledTarget:
    """One task: where its assay is named, and what is said about it."""

    target: Target
    names: PhraseTable  # 0 = this assay, 1 = another
    values: PhraseTable
    value_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """The regexes and tables of one `Rules`; equal only to itself, so that caches may hold it as a key."""

    lexicon: PhraseTable
    triggers: PhraseTable  # triggers and foreign targets alone, for any target (the NegEx kit)
    kinds: tuple[Kind, ...]
    findings: tuple[Finding, ...]
    finding_by_name: Mapping[str, Finding]
    finding_by_icdo: Mapping[str, Finding]
    sites: PhraseTable
    site_names: tuple[str, ...]
    procedures: PhraseTable
    procedure_names: tuple[str, ...]
    headings: PhraseTable
    heading_roles: tuple[str, ...]
    modifiers: Mapping[str, frozenset[str]]
    foreign_words: re.Pattern[str]
    typo_words: frozenset[str]
    typo_never: frozenset[str]
    known_words: frozenset[str]
    written_out: Mapping[str, str]
    abbreviation: re.Pattern[str] | None
    nodes: re.Pattern[str]
    questions: tuple[tuple[re.Pattern[str], str], ...]
    special_codes: Mapping[tuple[str, str], SpecialCode]
    icdo_behaviour: Mapping[str, Label]
    targets: tuple[CompiledTarget, ...]
    targets_not_reported: tuple[TargetValue, ...]  # what a part gets in whose text no assay is named
    assays: re.Pattern[str]  # the names of all targets
    window_words: int

    def codes_label(self, behaviour: str) -> Label | None:
        """The label of an ICD-O behaviour digit, None for one that no rule names."""
        return self.icdo_behaviour.get(behaviour)


def compiled(rules: Rules) -> Compiled:
    """The engine of these rules; built once per process (about a second) and kept by digest."""
    if rules.digest not in _CACHE:
        _CACHE[rules.digest] = _compile(rules)
    return _CACHE[rules.digest]


_CACHE: dict[str, Compiled] = {}


def _compile(rules: Rules) -> Compiled:
    language = rules.language
    kinds: list[Kind] = []
    patterns: list[tuple[str, int]] = []
    for index, finding in enumerate(rules.findings):
        kinds.append(Kind(FINDING, index, finding.id, finding.label == "benign"))
        patterns += [(term, len(kinds) - 1) for term in finding.terms]
    triggers: list[tuple[str, int]] = []
    for kind in TRIGGER_KINDS:
        kinds.append(Kind(kind))
        triggers += [(term, len(kinds) - 1) for term in getattr(language.context, kind)]
    for name, terms in language.context.foreign.items():
        kinds.append(Kind(FOREIGN, name=name))
        triggers += [(term, len(kinds) - 1) for term in terms]
    modifiers: list[tuple[str, int]] = []
    for kind, words in ((IN_SITU, IN_SITU_WORDS), (INVASIVE, INVASIVE_WORDS)):
        kinds.append(Kind(kind))
        modifiers += [(word, len(kinds) - 1) for word in words]
    lexicon = PhraseTable([*patterns, *triggers, *modifiers])
    sites = _named(language.titles.sites)
    procedures = _named(language.titles.procedures)
    headings = _named(language.headings)
    typo_words = frozenset(language.typos.words)
    known = lexicon.words() | sites[0].words() | procedures[0].words() | headings[0].words()
    known |= typo_words | set(language.typos.never)
    return Compiled(
        lexicon=lexicon,
        triggers=PhraseTable(triggers),
        kinds=tuple(kinds),
        findings=rules.findings,
        finding_by_name={finding.id: finding for finding in rules.findings},
        finding_by_icdo={code: finding for finding in reversed(rules.findings) for code in finding.icdo},
        sites=sites[0],
        site_names=sites[1],
        procedures=procedures[0],
        procedure_names=procedures[1],
        headings=headings[0],
        heading_roles=headings[1],
        modifiers={role: frozenset(words) for role, words in language.diagnosis_headings.items()},
        foreign_words=PhraseTable((word, 0) for word in language.language.foreign_words).pattern,
        typo_words=typo_words,
        typo_never=frozenset(language.typos.never),
        known_words=frozenset(known),
        written_out={**language.abbreviations.describing, **language.abbreviations.naming},
        abbreviation=_abbreviation(language.abbreviations),
        nodes=PhraseTable((term, 0) for term in language.counts.things).pattern,
        questions=tuple((re.compile(q.question, re.IGNORECASE), q.use) for q in rules.synoptic.answers),
        special_codes={(code.system, code.code): code for code in rules.codes.special},
        icdo_behaviour=rules.codes.icdo_behaviour,
        targets=tuple(_compile_target(target) for target in rules.file.targets),
        targets_not_reported=tuple(
            TargetValue(task=target.task, value="", status="not_reported", y=None) for target in rules.file.targets
        ),
        assays=PhraseTable((name, 0) for target in rules.file.targets for name in target.names).pattern,
        window_words=language.context.window_words,
    )


def _abbreviation(words: Abbreviations) -> re.Pattern[str] | None:
    branches = []
    if words.describing:
        # A full stop that a capitalised word follows ends a sentence: "GMS neg. Imaging had ..."
        behind = r"(?:\.(?= +(?-i:[a-z(]|[A-Z]{2}))|(?= +[a-z(]))"
        branches.append(rf"\b({'|'.join(sorted(words.describing, key=len, reverse=True))})\b{behind}")
    if words.naming:
        branches.append(rf"\b({'|'.join(sorted(words.naming, key=len, reverse=True))})\b(?!-)")
    return re.compile("|".join(branches), re.IGNORECASE) if branches else None


def _compile_target(target: Target) -> CompiledTarget:
    names = [(name, 0) for name in target.names] + [(name, 1) for name in target.other_names]
    values = _named(target.values)
    return CompiledTarget(target, PhraseTable(names), values[0], values[1])


def _named(groups: Mapping[str, Sequence[str]]) -> tuple[PhraseTable, tuple[str, ...]]:
    def rows() -> Iterator[tuple[str, int]]:
        for index, terms in enumerate(groups.values()):
            for term in terms:
                yield term, index

    return PhraseTable(rows()), tuple(groups)


def _find(path_or_name: Path | str) -> Path:
    name = str(path_or_name)
    if re.fullmatch(r"[a-z0-9_]+", name):
        path = RULES_FOLDER / f"{name}.toml"
        if not path.exists():
            packaged = ", ".join(
                sorted(p.stem for p in RULES_FOLDER.glob("*.toml") if p.name not in LANGUAGE_FILES.values())
            )
            raise ConfigError(f"rules {name}: not a packaged rule file; give a path or one of: {packaged}")
        return path
    return Path(path_or_name)


@lru_cache(maxsize=64)
def _parse(path: Path, modified_ns: int) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"rules {path.name}: not valid TOML: {error}") from None


def _read(model: type[Any], path: Path) -> Any:
    try:
        data = _parse(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise ConfigError(
            f"rules {path.name}: no such file; give an existing TOML file or the name of a packaged one"
        ) from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
        raise ConfigError(f"rules {path.name}: {faults}") from None
