"""Commands about labels: label, explain, rules test, diff and score, review export and import."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ingest.commands.options import ConfigOption, SetOption

rules = typer.Typer(help="Test a rule file, score it, or compare two.", no_args_is_help=True, rich_markup_mode=None)
review = typer.Typer(
    help="A sample for a pathologist, and what came back.", no_args_is_help=True, rich_markup_mode=None
)
RulesOption = Annotated[str, typer.Option(help="A rule file of the package by name (breast), or a path.")]


def label(
    reports: Annotated[Path, typer.Argument(help="JSON lines {id, report_text, format: text|rtf|hl7_ft|hl7_oru}.")],
    rules: RulesOption = "breast",
    workers: Annotated[int, typer.Option(min=1)] = 1,
    targets: Annotated[
        bool, typer.Option("--targets", help="Add the tasks that the rules read, such as er and her2.")
    ] = False,
) -> None:
    """Label reports without a LIS: one JSON line per part {id, part, label, finding, rule_id}.

    \b
    Example: python -m ingest label reports.jsonl --rules breast > labels.jsonl
    """
    from ingest.label_file import label_file

    label_file(reports, rules, sys.stdout, workers, targets)


def explain(
    source: Annotated[Path, typer.Argument(help="Folder of a manifest, or a file of reports as for `label`.")],
    case: Annotated[str, typer.Option(help="case_key or specimen_key of the manifest, or id of the report.")],
    rules: RulesOption = "breast",
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Report files only: print the words, to this screen.")
    ] = False,
) -> None:
    """Which words, which rule, which context made the label of a case.

    \b
    Example: python -m ingest explain manifests/breast --case 4jz2...
    """
    from ingest.explain import explain_manifest, explain_report
    from ingest.rulefile import load_rules

    print(explain_manifest(source, case) if source.is_dir()
          else explain_report(source, case, load_rules(rules), show_text))  # fmt: skip


@rules.command("test")
def rules_test(name: Annotated[str, typer.Argument(help="breast, lung_egfr, or a path.")]) -> None:
    """Run the tests inside a rule file.

    \b
    Example: python -m ingest rules test breast
    """
    from ingest.rulecheck import check_rules

    print(f"rules {Path(name).name}: {check_rules(name)} tests hold")


@rules.command("diff")
def rules_diff(
    one: Annotated[str, typer.Argument()],
    other: Annotated[str, typer.Argument()],
    reports: Annotated[Path, typer.Argument(help="Reports as for `label`.")],
) -> None:
    """Which parts change their label between two rule files.

    \b
    Example: python -m ingest rules diff breast my_breast.toml reports.jsonl
    """
    from ingest.rulecheck import diff_rules

    with reports.open(encoding="utf-8") as lines:
        changes, counts = diff_rules(one, other, lines)
    for change in changes:
        print(f"{change.id} part {change.part}: {change.label_a or 'absent'} ({change.finding_a}) -> "
              f"{change.label_b or 'absent'} ({change.finding_b})")  # fmt: skip
    for (before, after), count in sorted(counts.items()):
        print(f"{before or 'absent'} -> {after or 'absent'}: {count:,}")


@rules.command("score")
def rules_score(
    reports: Annotated[Path, typer.Argument(help="Reports as for `label`, each with parts: [{part, label}].")],
    rules: RulesOption = "breast",
    misses: Annotated[bool, typer.Option("--misses", help="Name every part that differs.")] = False,
) -> None:
    """How well a rule file reads reports that a person has labelled.

    \b
    Example: python -m ingest rules score labelled.jsonl --rules breast --misses
    """
    from ingest.rulescore import score_reports

    score = score_reports(reports, rules)
    for miss in score.misses if misses else ():
        print(f"{miss.id} part {miss.part}: {miss.label} ({miss.finding or 'no finding'}), not {miss.gold}")
    print("\n".join(score.lines()))


@review.command("export")
def review_export(config: ConfigOption, set_: SetOption = None) -> None:
    """Draw a stratified sample and write a blind sheet into the vault.

    \b
    Example: python -m ingest review export -c manifests/breast.toml --set review.num_specimens=200
    """
    from ingest.cohort import CohortConfig
    from ingest.config import load_config
    from ingest.review_sheet import export_review

    resolved = load_config(CohortConfig, "ingest", config, set_ or [])
    path = export_review(resolved.source, resolved.source_folder, resolved.output.manifest, resolved.output.vault,
                         resolved.review)  # fmt: skip
    print(f"{path}: fill in gold_label, then: python -m ingest review import -c {config} {path}")


@review.command("import")
def review_import(sheet: Annotated[Path, typer.Argument()], config: ConfigOption, set_: SetOption = None) -> None:
    """Read the filled sheet: PPV, NPV and kappa with intervals; exit code 4 below the limits.

    \b
    Example: python -m ingest review import -c manifests/breast.toml vault/breast/review.csv
    """
    from ingest.cohort import CohortConfig
    from ingest.config import load_config
    from ingest.review import require_accuracy
    from ingest.review_sheet import import_review

    resolved = load_config(CohortConfig, "ingest", config, set_ or [])
    result = import_review(sheet, resolved.output.vault, resolved.review)
    print(result.to_json())
    require_accuracy(result, resolved.review)
