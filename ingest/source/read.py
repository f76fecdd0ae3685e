"""Every configured table read into the canonical tables; every row that cannot be used is in the rejected list.

with read_source(config.source, folder) as source:
    groups = patient_groups(source.batches("patients"), source.batches("cases"), config.identity)
    for record in source.case_records(): ...
"""

import datetime as dt
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ingest.errors import ConfigError, InputError
from ingest.source import hl7, sql, table_files
from ingest.source.canonical import COLUMNS, TABLE_NAMES, TableName
from ingest.source.cells import BadRow, Cells, RowFault, check_encoding, row_mapper
from ingest.source.config import Hl7Config, SourceConfig, TableConfig
from ingest.source.intake import Intake, content_digest, rejected
from ingest.source.staging import Staging
from ingest.source.tables import SourceTables


def read_source(config: SourceConfig, base_folder: Path, staging_folder: Path | None = None) -> SourceTables:
    """All tables of a source.

    Args:
        base_folder: what relative paths of the configuration are relative to.
        staging_folder: a folder with room for the report text (it holds patient data while it is open; it has no name
            and is gone after a kill). Default: the system's temporary folder.
    Raises:
        ConfigError: a query, an environment variable, an encoding or a column name is wrong.
        InputError: a required column is missing, no file matches, the database refuses, or no report can be used.
    """
    check_encoding(config.encoding)
    if not config.tables and config.hl7 is None:
        raise ConfigError(
            "source: no tables; give ingest.source.preset, [ingest.source.tables.NAME] or [ingest.source.hl7]"
        )
    staging = Staging(staging_folder)
    try:
        return _read_all(config, base_folder, staging)
    except BaseException:
        staging.close()
        raise


def _read_all(config: SourceConfig, base_folder: Path, staging: Staging) -> SourceTables:
    intake = Intake(staging)
    snapshots: list[str] = []
    queries = {name: table for name, table in config.tables.items() if table.file is None}
    if queries:
        snapshots.append(_read_database(config, queries, base_folder, intake))
    newest = 0.0
    for name in TABLE_NAMES:
        table = config.tables.get(name)
        if table is not None and table.file is not None:
            newest = max(newest, _read_files(config, name, table, base_folder, intake))
    if config.hl7 is not None:
        newest = max(newest, _read_messages(config, base_folder, intake))
    if newest:
        snapshots.append(_iso(newest))
    staging.seal()
    for name in TABLE_NAMES:
        if name in config.tables and config.tables[name].distinct:
            continue
        if name in ("patients", "cases", "parts") and name not in config.tables:
            continue  # of HL7: every message about a patient says again who it is
        for digest, count in staging.duplicates(name):
            intake.reject("row", name, "duplicate_row", digest, count)
    if ("reports" in config.tables or config.hl7 is not None) and not staging.num_rows("reports"):
        reasons = Counter(entry.reason for entry in rejected(staging) if entry.table in ("reports", "messages"))
        most = f"; most often {reasons.most_common(1)[0][0]}" if reasons else ""
        raise InputError(
            f"source: no usable report among {intake.num_rows['reports']} rows{most}; check ingest.source.tables.reports"
        )
    num_kept = {name: staging.num_stored(name) for name in TABLE_NAMES} | {"messages": intake.num_messages_kept}
    return SourceTables(staging, dict(intake.num_rows), num_kept, max(snapshots, default=""), config.line_join)


def _mapper(
    config: SourceConfig, name: TableName, table: TableConfig | None, header: Sequence[str], where: str
) -> Callable[[Sequence[Any]], Cells]:
    pattern = re.compile(config.accession_pattern, re.IGNORECASE) if config.accession_pattern else None
    return row_mapper(
        name,
        header,
        table.columns if table is not None else {},
        table.values if table is not None else {},
        encoding=config.encoding,
        null_values=frozenset(config.null_values),
        accession_pattern=pattern,
        where=where,
    )


def _read_database(
    config: SourceConfig, queries: dict[TableName, TableConfig], base_folder: Path, intake: Intake
) -> str:
    engine = sql.open_engine(config.url_env, config.database_file, base_folder)
    for attempt in range(1, config.read_attempts + 1):
        try:
            with sql.read_only(engine) as connection:
                for name, table in queries.items():
                    where = f"ingest.source.tables.{name}"
                    text = table.query or _query_file(table.query_file or "", base_folder, where)
                    header, rows = sql.read_query(connection, text, config.chunk_rows, where)
                    intake.add_rows(name, rows, _mapper(config, name, table, header, where))
                if config.database_file is not None:
                    return _iso((base_folder / config.database_file).stat().st_mtime)
                return sql.snapshot_time(connection)
        except sql.DroppedConnection as error:
            if attempt == config.read_attempts:
                raise InputError(
                    f"source: the database connection broke {attempt} times ({error}); check it and run again"
                ) from None
            intake.clear()
    raise AssertionError("read_attempts is at least 1")


def _query_file(name: str, base_folder: Path, where: str) -> str:
    try:
        return (base_folder / name).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        raise ConfigError(f"{where}.query_file = {name}: no readable UTF-8 file beside the configuration") from None


def _read_files(config: SourceConfig, name: TableName, table: TableConfig, base_folder: Path, intake: Intake) -> float:
    where = f"ingest.source.tables.{name}"
    newest = 0.0
    for path in table_files.find_files(table.file or "", base_folder, where):
        newest = max(newest, path.stat().st_mtime)
        try:
            with table_files.open_table_file(
                path, delimiter=table.delimiter, quotes=table.quotes, sheet=table.sheet, encoding=config.encoding
            ) as opened:
                to_cells = _mapper(config, name, table, opened.header, where)
                intake.add_rows(name, opened.rows, to_cells)
        except table_files.UnreadableFile as fault:
            intake.reject("file", name, fault.reason, _file_digest(path))
    return newest


def _read_messages(config: SourceConfig, base_folder: Path, intake: Intake) -> float:
    settings = config.hl7
    assert settings is not None
    hl7.check_sections(settings)
    mappers = {name: _mapper(config, name, None, COLUMNS[name], "ingest.source.hl7") for name in TABLE_NAMES}
    newest = 0.0
    for path in table_files.find_files(settings.messages, base_folder, "ingest.source.hl7"):
        newest = max(newest, path.stat().st_mtime)
        num_messages = 0
        with path.open("rb") as file:
            for message in hl7.split_messages(file):
                num_messages += isinstance(message, bytes)
                _read_message(message, config, settings, mappers, intake)
        if not num_messages:
            reason = "not_hl7" if path.stat().st_size else "empty_file"
            intake.reject("file", "messages", reason, _file_digest(path))
    return newest


def _read_message(
    message: bytes | BadRow,
    config: SourceConfig,
    settings: Hl7Config,
    mappers: Mapping[TableName, Callable[[Sequence[Any]], Cells]],
    intake: Intake,
) -> None:
    intake.num_rows["messages"] += 1
    if isinstance(message, BadRow):
        intake.reject("message", "messages", message.reason, content_digest(message.raw))
        return
    try:
        found = hl7.read_message(message, settings, config.encoding)
        good = [(row.table, mappers[row.table](row.cells)) for row in found if isinstance(row, hl7.TableRow)]
    except RowFault as fault:
        intake.reject("message", "messages", fault.reason, content_digest(message))
        return
    intake.num_messages_kept += 1
    for name, cells in good:
        intake.num_rows[name] += 1
        intake.staging.add(name, [cells])
    for row in found:
        if isinstance(row, BadRow):
            intake.num_rows["reports"] += 1
            intake.reject("row", "reports", row.reason, content_digest(message + row.raw))


def _file_digest(path: Path) -> bytes:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


def _iso(timestamp: float) -> str:
    return dt.datetime.fromtimestamp(timestamp, dt.UTC).isoformat(timespec="seconds")
