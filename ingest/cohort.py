"""A cohort definition: everything that `python -m ingest run` can be told, and the gates its result must pass."""

from pathlib import Path

from pydantic import Field

from ingest.balance import BalanceConfig
from ingest.config import Section
from ingest.deidentify import DeidentifyConfig
from ingest.identity import IdentityConfig
from ingest.join import SlideJoinConfig
from ingest.policy import Policy
from ingest.privacy import PrivacyConfig
from ingest.review import ReviewConfig
from ingest.source.config import SourceConfig
from ingest.split import SplitConfig
from ingest.tiles import TilesConfig


class LabelsConfig(Section):
    """How report text becomes labels, and labels become targets."""

    rules: str = "breast"  # a rule file of the package by name, or a path to one
    policy: Policy = Policy()


class GatesConfig(Section):
    """Shares that a believable cohort keeps; a run that breaks one publishes nothing and ends with exit code 4."""

    min_slides_joined: float = Field(default=0.80, ge=0, le=1)  # of scans, with a part; MSK reports 0.858
    max_parts_not_assessable: float = Field(default=0.25, ge=0, le=1)  # of parts
    min_positive: float = Field(default=0.02, ge=0, le=1)  # share of slides with y = 1 among those with y
    max_positive: float = Field(default=0.80, ge=0, le=1)
    max_slides_failed: float = Field(default=0.10, ge=0, le=1)  # of joined scans, broken or unreadable


class OutputConfig(Section):
    """Two folders that never lie in each other."""

    manifest: Path = Path("manifests/cohort")  # can be shared with those who may see pseudonymised data
    vault: Path = Path("vault/cohort")  # mode 0700: places of slides, crosswalk, work in progress


class CohortConfig(Section):
    source: SourceConfig = SourceConfig()
    source_folder: Path = Path(".")  # what file names in [ingest.source] are relative to
    slide_folder: Path = Path("slides")  # what slide paths of the LIS are relative to
    join: SlideJoinConfig = SlideJoinConfig()
    identity: IdentityConfig = IdentityConfig()
    deidentify: DeidentifyConfig = DeidentifyConfig()
    labels: LabelsConfig = LabelsConfig()
    tiles: TilesConfig = TilesConfig()
    split: SplitConfig = SplitConfig()
    balance: BalanceConfig = BalanceConfig()
    gates: GatesConfig = GatesConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    review: ReviewConfig = ReviewConfig()
    output: OutputConfig = OutputConfig()
    num_workers: int = Field(
        default=2, ge=1
    )  # processes for reports and for tile counts; the result is the same for any number
