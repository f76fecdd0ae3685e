import re
from pathlib import Path

import pytest

from ingest.manifest import TABLES

PAGE = (Path(__file__).parents[2] / "manifests" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_schema_page_names_every_column(table: str) -> None:
    assert f"{table}.parquet" in PAGE
    named = set(re.findall(r"`([a-z_0-9]+)`", PAGE))
    assert [name for name in TABLES[table].names if name not in named] == []
