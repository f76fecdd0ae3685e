"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="Cohort definition; its tables [ingest.*] are read.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, over the file; may be repeated.")
]
ManifestArgument = Annotated[Path, typer.Argument(help="Folder of a manifest.")]
