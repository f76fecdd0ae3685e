"""`ingest explain`: which words, under which rule, in which context, gave a part its label.

From a manifest it prints what `evidence.parquet` holds (offsets and lexicon terms, never text). From a report file it can also
show the words in their line; that goes to the terminal of the one who holds the reports, and nowhere else.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ingest.case import CaseLabels
from ingest.errors import InputError
from ingest.label_file import label_text
from ingest.report.normalise import Spelling, normalise
from ingest.report.oru import report_versions
from ingest.rulefile import Rules, compiled

LINE_CHARACTERS = 70  # of text shown on either side of a term


def explain_manifest(manifest: Path, key: str) -> str:
    """What decided the parts of a case (case_key) or one part (specimen_key).

    Raises:
        InputError: the manifest has no such key, or no evidence table.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        specimens = pq.read_table(manifest / "specimens.parquet")
        evidence = pq.read_table(manifest / "evidence.parquet")
        conflicts = pq.read_table(manifest / "conflicts.parquet")
    except FileNotFoundError as error:
        raise InputError(
            f"manifest {manifest.name}: has no {Path(str(error.filename)).name}; build it with ingest run"
        ) from None
    mine = specimens.filter(pc.or_(pc.equal(specimens["case_key"], key), pc.equal(specimens["specimen_key"], key)))
    if not mine.num_rows:
        raise InputError(f"manifest {manifest.name}: no case or specimen {key}; take a key from specimens.parquet")
    lines = []
    for part in mine.to_pylist():
        lines.append(
            f"{part['specimen_key']}: {part['label']} ({part['finding'] or 'no finding'}) by {part['rule_id']}, "
            f"source {part['evidence_source']}"
        )
        for row in evidence.filter(pc.equal(evidence["specimen_key"], part["specimen_key"])).to_pylist():
            lines.append(
                f"    {row['context']:12} {row['term']!r} [{row['rule_id']}] {row['section']} {row['start']}:{row['end']}"
            )
        for row in conflicts.filter(pc.equal(conflicts["specimen_key"], part["specimen_key"])).to_pylist():
            lines.append(
                f"    conflict: {row['source_a']} says {row['label_a']}, "
                f"{row['source_b']} says {row['label_b']}: {row['resolution']}"
            )
    return "\n".join(lines)


def explain_report(path: Path, identifier: str, rules: Rules, show_text: bool = False) -> str:
    """The same for one line of a report file as `ingest label` reads it.

    Raises:
        InputError: no line of the file has this id.
    """
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        row = json.loads(line) if line.strip() else {}
        if str(row.get("id")) == identifier:
            text, text_format = row["report_text"], row.get("format", "text")
            labels = label_text(text, text_format, rules)
            return "\n".join(_lines(labels, _normalised(text, text_format, rules) if show_text else []))
    raise InputError(f"reports {path.name}: no line has the id {identifier}; ids are compared as text")


def _normalised(text: str, text_format: str, rules: Rules) -> list[str]:
    engine = compiled(rules)
    spelling = Spelling(engine.known_words, engine.typo_words, engine.typo_never)
    if text_format == "hl7_oru":
        return [normalise(version.text, version.format, spelling).text for version in report_versions(text)]
    return [normalise(text, text_format, spelling).text]  # type: ignore[arg-type]


def _lines(labels: CaseLabels, texts: list[str]) -> Iterator[str]:
    for part in labels.parts:
        yield f"part {part.part}: {part.label} ({part.finding}) by {part.rule_id}, source {part.evidence_source}"
        yield f"    {part.site}, {part.laterality or 'side unknown'}, {part.procedure}; flags: {', '.join(part.flags) or 'none'}"
        for item in part.evidence:
            yield f"    {item.context:12} {item.term!r} [{item.rule_id}] {item.section} {item.start}:{item.end}"
            if texts and 0 <= item.version < len(texts):
                text = texts[item.version]
                before = text[max(0, item.start - LINE_CHARACTERS) : item.start].split("\n")[-1]
                after = text[item.end : item.end + LINE_CHARACTERS].split("\n")[0]
                yield f"                 {before}>>{text[item.start : item.end]}<<{after}"
        for target in part.targets:
            yield f"    {target.task}: {target.value or '-'} ({target.status})"
    for conflict in labels.conflicts:
        yield (
            f"conflict in part {conflict.part}: {conflict.source_a} says {conflict.label_a}, "
            f"{conflict.source_b} says {conflict.label_b}"
        )
    if labels.quarantine:
        yield f"case: {', '.join(labels.quarantine)}"
