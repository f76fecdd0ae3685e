"""What all three command lines share: one-line errors with an exit code, and never a traceback for a user's fault."""

import sys

import typer

from ingest.errors import UserError


def run_app(app: typer.Typer) -> None:
    """Run a command line; a `UserError` becomes one line on stderr and its exit code, Ctrl-C ends with 130."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


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
