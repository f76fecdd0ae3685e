"""A small invented CoPath-like database for tests, on any DB-API connection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ingest.source

SCHEMA = (Path(ingest.source.__file__).parent / "copath_schema.sql").read_text(encoding="utf-8")
COPATH_ROWS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("r_pat_demograph", ("1", "E1", "NOBODY,INVENTED", "1950-01-31")),
    ("r_pat_demograph", ("2", None, "NOBODY,OTHER", "1950-02-28")),
    ("r_medrec", ("1", "NORTH", "00027670")),
    ("r_medrec", ("1", "SOUTH", "55123")),
    ("r_medrec", ("2", "NORTH", "77123")),
    ("merged_patients", ("3", "1")),
    ("c_specimen", ("10", "S23-1", "S", "1", "NORTH", "2023-04-01 08:00:00", "2023-04-05 10:00:00")),
    ("c_specimen", ("11", "S23-2", "S", "3", "NORTH", "2023-04-02 08:00:00", None)),
    ("p_part", ("10", "1", "A", "BREAST; CORE", "left, upper outer")),
    ("p_part", ("10", "2", "B", "BREAST; CORE", "left, lower")),
    ("p_block", ("10", "1", "1", "A1")),
    ("p_block", ("10", "1", "2", "A2")),
    ("p_block", ("10", "2", "1", "B1")),
    ("p_block", ("10", "2", "2", None)),
    ("c_spec_text", ("10", "$final", "0", "A. BREAST: BENIGN.")),
    ("c_spec_text", ("10", "$gross", None, "{\\rtf1 Received fresh.}")),
    ("c_spec_text", ("10", "$procint", "1", "AMENDED: A. CARCINOMA.")),
    ("c_spec_text", ("10", "$procint", "2", "Pending.")),
    ("c_spec_text", ("11", "$final", "0", "Draft.")),
    ("c_spec_text", ("11", "site7", "0", "Billing note.")),
    ("p_special_proc", ("10", "1", "AMD", "2023-05-01 09:00:00")),
    ("p_special_proc", ("10", "2", "ADD", None)),
    ("p_stainprocess", ("10", "1", "1", "1", "HE", "H&E", "S23-1;A1;HE;1")),
    ("scanned_slides", ("i1", "S23-1;A1;HE;1", "a.svs", "GT450", "40x", "2023-06-01 00:00:00")),
    ("scanned_slides", ("i2", "S23-1;A1;HE;1", "b.svs", "GT450", "20x", "2023-06-02 00:00:00")),
    ("scanned_slides", ("i3", "lost label", "c.svs", "GT450", "40x", None)),
)


def fill_copath(
    connection: Any, rows: Sequence[tuple[str, tuple[str | None, ...]]] = COPATH_ROWS, mark: str = "?"
) -> None:
    """Make the tables of `copath_schema.sql` and fill them; `mark` is the driver's parameter mark."""
    cursor = connection.cursor()
    statements = "\n".join(line.partition("--")[0] for line in SCHEMA.splitlines())
    for statement in statements.split(";"):
        if statement.strip():
            cursor.execute(statement)
    for table, row in rows:
        cursor.execute(f"INSERT INTO {table} VALUES ({', '.join([mark] * len(row))})", row)
    connection.commit()
