"""What a check says, and what it is asked to look for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["ok", "warning", "problem"]
REINSTALL = "pip install -e '.[lis,dask]' -c requirements.lock"
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where it is not well."""

    name: str
    verdict: Verdict
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What this machine should have.

    Attributes:
        slides: files to open and read. folder: where slides lie, to measure reading; None measures nothing.
        min_shm_gib: NCCL moves tensors between GPUs of a node through /dev/shm; our own slide buffers do not lie there.
        min_ram_gib: free memory. min_open_files: sockets between ranks and open slides.
        min_mb_per_second: one reader thread takes 45 MB/s from 20x and 85 MB/s from 40x files (18 kB per file tile of 256 px).
    """

    slides: Sequence[Path] = ()
    folder: Path | None = None
    min_shm_gib: float = 1.0
    min_ram_gib: float = 8.0
    min_open_files: int = 4096
    min_mb_per_second: float = 100.0


def describe(finding: Finding) -> str:
    """The finding as one or two lines."""
    line = f"{finding.verdict:<8} {finding.name}: {finding.what}"
    return f"{line}\n{'':<8}   fix: {finding.fix}" if finding.fix else line


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for `--json`, with their counts."""
    counts = {
        verdict: sum(finding.verdict == verdict for finding in findings) for verdict in ("ok", "warning", "problem")
    }
    return {**counts, "findings": [asdict(finding) for finding in findings]}
