"""What a source is made of, as TOML: where each canonical table comes from. Cheap to import.

A table comes from a `query` (SQL), from a `file` (CSV, TSV, Excel, Parquet) or from HL7 messages; one cohort may mix
them. A preset fills the tables that the file does not give, so that the resolved configuration shows every query.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ingest.config import Regex, Section

PresetName = Literal["copath", "powerpath", "beaker", "hl7", "csv"]
TableKey = Literal["patients", "cases", "parts", "reports", "codes", "synoptic", "blocks", "slides"]
PRESET_FOLDER = Path(__file__).parent / "presets"


class TableConfig(Section):
    query: str | None = None  # SELECT whose columns are named as the canonical columns
    query_file: str | None = None  # the same, in a .sql file beside the configuration
    file: str | None = None  # glob relative to the configuration: exports/reports-*.csv
    sheet: str | None = None  # Excel; default: the first sheet
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)  # default: "," for .csv, tab for .tsv .txt
    quotes: bool = True  # false: a " in the file is a letter (some TSV exports never quote)
    columns: dict[str, str] = Field(default_factory=dict)  # canonical = source column, or "=constant"
    values: dict[str, dict[str, str]] = Field(default_factory=dict)  # canonical column = {source value = canonical}
    distinct: bool = False  # true: repeated rows are expected (a flat export) and are not put into the ledger

    @model_validator(mode="after")
    def _one_origin(self) -> "TableConfig":
        if sum(origin is not None for origin in (self.query, self.query_file, self.file)) != 1:
            raise ValueError("give exactly one of query, query_file, file")
        return self


class Hl7Config(Section):
    messages: str  # glob of message files and batches, relative to the configuration: messages/**/*.hl7
    accession_field: Literal["OBR-3", "OBR-2", "ORC-3"] = "OBR-3"  # NAACCR Vol. V: filler order number
    part_from: Literal["OBX-4", "text"] = "OBX-4"  # "text": OBX-4 only numbers lines at this laboratory
    mrn_types: tuple[str, ...] = ("MR", "MRN", "PI", "PT")  # PID-3.5; a social security number (SS) is never read
    empi_types: tuple[str, ...] = ("EPI", "EMPI", "EN")  # PID-3.5 of an enterprise number
    sections: dict[str, str] = Field(default_factory=dict)  # local OBX-3 code = canonical section; "report" = whole


class SourceConfig(Section):
    preset: PresetName | None = None  # fills tables (and hl7) that are not given here
    url_env: str = "LIS_URL"  # environment variable with the SQLAlchemy URL; the URL itself never stands in a file
    database_file: str | None = None  # an SQLite file relative to the configuration, in place of url_env
    encoding: str | None = None  # used only where strict UTF-8 fails, for example cp1252
    null_values: tuple[str, ...] = ()  # cells that mean "nothing", for example NULL in exports of SQL Server
    accession_pattern: Regex | None = None  # regex; others are refused. Groups cls, yy, num remove padding zeros
    line_join: str = "\n"  # between the rows of a report that is stored line by line; "" for fixed-size pieces
    chunk_rows: int = Field(default=5000, ge=1)  # rows fetched at once
    read_attempts: int = Field(default=3, ge=1)  # of the whole read, when the database drops the connection
    tables: dict[TableKey, TableConfig] = Field(default_factory=dict)
    hl7: Hl7Config | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        path = PRESET_FOLDER / f"{values['preset']}.toml"
        if not path.is_file():
            return values  # the Literal refuses the name with the list of presets
        preset = tomllib.loads(path.read_text(encoding="utf-8"))["ingest"]["source"]
        tables = {**preset.pop("tables", {}), **values.get("tables", {})}
        return {**preset, **values, "tables": tables}
