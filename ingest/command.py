"""What all three command lines share: one-line errors with an exit code, and never a traceback for a user's fault."""

import os
import sys
import traceback
from pathlib import Path

import typer

from ingest.errors import UserError

SHOW_VALUES = "FULLSLIDE_TRACEBACK"  # environment variable: any value shows unexpected errors whole
UNEXPECTED_ERROR = 70  # exit code, EX_SOFTWARE of sysexits.h


def run_app(app: typer.Typer, hide_values: bool = False) -> None:
    """Run a command line; a `UserError` becomes one line on stderr and its exit code, Ctrl-C ends with 130.

    Args:
        hide_values: of an error that we did not foresee show type and places only: pandas, SQLAlchemy and our own readers
            handle patient data, and the text of their errors may hold it.
    """
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not hide_values or os.environ.get(SHOW_VALUES):
            raise
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        print(
            f"error: unexpected {type(error).__name__} at {' > '.join(places)}; please report this line as a defect; its "
            f"text may name patients and is only shown with {SHOW_VALUES}=1",
            file=sys.stderr,
        )
        sys.exit(UNEXPECTED_ERROR)


def new_app(help_text: str) -> typer.Typer:
    """A typer app without shell-completion options and without its own traceback printer."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
