"""Errors that a person can cause and mend, each with the exit code of the command that meets it.

A message names the thing, the value, the limit and the next action, and never carries patient text.
"""

from typing import ClassVar


class UserError(ValueError):
    """Something outside the program is wrong; the command prints the message and ends with `exit_code`."""

    exit_code: ClassVar[int] = 1


class ConfigError(UserError):
    """A configuration, an option or a rule file is wrong."""

    exit_code = 2


class InputError(UserError):
    """Input as a whole breaks its contract: a missing column, undecodable text, no rows."""

    exit_code = 3


class ManifestError(InputError):
    """A manifest or one of its tables is missing, damaged or of another version."""


class GateError(UserError):
    """The result was made but must not be published: a gate, a leak, an unacknowledged merge."""

    exit_code = 4


class PrivacyError(UserError):
    """An output would carry something that identifies a patient."""

    exit_code = 5


class SlideError(UserError):
    """A slide cannot be used; `reason` is the code that goes to the ledger."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["SlideError"], tuple[str, str]]:
        return type(self), (self.reason, str(self))  # crosses process pools


class ResolutionError(SlideError):
    """The slide has no trustworthy micrometres per pixel, or was scanned coarser than asked for."""
