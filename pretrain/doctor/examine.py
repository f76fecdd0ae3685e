"""All checks in turn."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pretrain.doctor.devices import communication, devices
from pretrain.doctor.finding import Finding, Wanted
from pretrain.doctor.machine import limits, memory, system
from pretrain.doctor.reading import folder, readers, slides
from pretrain.doctor.software import evaluate_clash, packages


def examine(wanted: Wanted) -> Iterator[Finding]:
    """All findings, in the order of a person who sets a machine up."""
    checks: tuple[Callable[[Wanted], Iterator[Finding]], ...] = (
        system, packages, evaluate_clash, devices, communication, readers, slides, folder, memory, limits,
    )  # fmt: skip
    for check in checks:
        try:
            yield from check(wanted)
        except (ImportError, OSError, RuntimeError) as error:
            yield Finding(check.__name__, "problem", f"{type(error).__name__}: {error}", "see the lines above")


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What C libraries print meanwhile (cuCIM without a driver does) goes to stderr: stdout is one JSON document."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
