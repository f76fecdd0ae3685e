"""Command line of ingest. The commands stand in `ingest.commands`; what costs time is imported when one runs."""

from ingest.command import new_app, run_app
from ingest.commands import build, cohort, labels

app = new_app("""From LIS records and slide files to a manifest of labelled, split, de-identified slides.

\b
Try it:          python -m ingest demo build/demo/hospital
Start a cohort:  python -m ingest init --preset copath cohorts/breast
Build it:        python -m ingest run --config cohorts/breast/cohort.toml
Look at it:      python -m ingest show manifests/breast
Check it:        python -m ingest verify manifests/breast
""")
for command in (
    build.demo, build.init, build.key, build.run, build.tiles, build.preview,
    cohort.show, cohort.verify, cohort.split, cohort.relabel, cohort.export, labels.label, labels.explain,
):  # fmt: skip
    app.command()(command)
app.command("import")(cohort.import_)
app.add_typer(labels.rules, name="rules")
app.add_typer(labels.review, name="review")


def main() -> None:
    run_app(app, hide_values=True)


if __name__ == "__main__":
    main()
