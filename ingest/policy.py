"""Policy: from what the pathologist said (label, finding) to the number a model learns (y), without reading a report again.

The defaults are a proposal that a pathologist has to sign: in-situ disease counts as positive, classic LCIS is left out
(AJCC 8 no longer stages it, UK B3), atypia is benign with a flag, isolated tumour cells and borderline lesions are left out.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ingest.case import Label
from ingest.config import Section

Choice = Literal["positive", "negative", "exclude"]


class Policy(Section):
    cancer: Choice = "positive"
    in_situ: Choice = "positive"  # DCIS, pleomorphic LCIS, Paget, encapsulated papillary carcinoma
    benign: Choice = "negative"
    atypia: Choice = "negative"  # benign parts whose report states atypia (ADH, ALH, FEA)
    indeterminate: Choice = "exclude"  # suspicious, borderline phyllodes, conflicts
    not_assessable: Choice = "exclude"  # missing, deferred, insufficient, unread
    finding: Mapping[str, Choice] = Field(default={"lcis_classic": "exclude", "itc": "exclude"})  # outranks the label

    def y(self, label: Label, finding: str, atypia: bool = False) -> tuple[int | None, str]:
        """y (1, 0 or None) and, for None, the reason code of the exclusion (empty otherwise)."""
        if finding in self.finding:
            choice, reason = self.finding[finding], f"policy_{finding}"
        elif label == "benign" and atypia and self.atypia != self.benign:
            choice, reason = self.atypia, "policy_atypia"
        else:
            choice, reason = getattr(self, label), f"label_{label}"
        if choice == "exclude":
            return None, reason
        return int(choice == "positive"), ""
