"""Canonical rows from a database through SQLAlchemy: SQLite, PostgreSQL, SQL Server, Oracle, by URL.

Read-only, in one transaction (where the database has it, one snapshot: tables that agree with each other), with a
server-side cursor. Database messages quote values and SQL, so only the error's class and SQLSTATE are passed on.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from ingest.errors import ConfigError, InputError


class DroppedConnection(Exception):  # noqa: N818 - it is no error of the user; the read is tried again
    """The database went away in the middle of a read."""


def open_engine(url_env: str, database_file: str | None, base_folder: Path) -> Engine:
    """An engine that never shows parameters.

    Raises:
        ConfigError: the variable is not set, the URL or its driver is unknown.
        InputError: the SQLite file does not exist.
    """
    if database_file is not None:
        path = base_folder / database_file
        if not path.is_file():
            raise InputError(f"ingest.source.database_file = {database_file}: no such file beside the configuration")
        url = sqlalchemy.engine.URL.create(
            "sqlite", database=f"file:{path.resolve()}", query={"mode": "ro", "uri": "true"}
        )
    else:
        text = os.environ.get(url_env)
        if not text:
            raise ConfigError(
                f"ingest.source.url_env = {url_env}: the variable is not set; export the SQLAlchemy URL in it"
            )
        try:
            url = sqlalchemy.engine.make_url(text)
        except exc.ArgumentError:
            raise ConfigError(
                f"variable {url_env}: no SQLAlchemy URL; for example postgresql+psycopg://reader@host/lis"
            ) from None
    try:
        return sqlalchemy.create_engine(url, hide_parameters=True, poolclass=sqlalchemy.pool.NullPool)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"variable {url_env}: the driver {error.name} is not installed; pip install it (psycopg, pyodbc, oracledb)"
        ) from None
    except (exc.ArgumentError, exc.NoSuchModuleError):
        raise ConfigError(f"variable {url_env}: database kind {url.drivername!r} is not known to SQLAlchemy") from None


@contextmanager
def read_only(engine: Engine) -> Iterator[Connection]:
    """A connection in one read-only transaction that is rolled back at the end."""
    try:
        connection = engine.connect()
    except exc.DBAPIError as error:  # not tried again: a wrong password three times locks the account
        raise InputError(
            f"source: no connection to the database ({describe(error)}); check address and account"
        ) from None
    try:
        match engine.dialect.name:
            case "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            case "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            case "oracle":
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        yield connection
    finally:
        connection.close()


def snapshot_time(connection: Connection) -> str:
    """The database's own time, which is the time of the snapshot."""
    return str(connection.execute(sqlalchemy.select(sqlalchemy.func.current_timestamp())).scalar_one())


def read_query(
    connection: Connection, query: str, chunk_rows: int, where: str
) -> tuple[list[str], Iterator[Sequence[Any]]]:
    """Column names and a stream of rows, `chunk_rows` in memory at a time.

    Raises:
        ConfigError: the text is not one SELECT.
        InputError: the database refuses the query.
        DroppedConnection: the connection broke; read again.
    """
    check_select(query, where)
    # A driver-level string: a colon in a literal or a :: cast is no bound parameter. No parameters are ever passed,
    # so % needs no doubling in any driver.
    streaming = connection.execution_options(yield_per=chunk_rows, no_parameters=True)  # and so stream_results
    try:
        result = streaming.exec_driver_sql(query.strip().rstrip(";"))  # Oracle refuses the semicolon
    except exc.DBAPIError as error:
        raise _translated(error, where) from None
    return list(result.keys()), _stream(result, where)


def check_select(query: str, where: str) -> None:
    """One statement that starts with SELECT or WITH. The guard against a slip; the database role is the real one."""
    bare = re.sub(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", " ", query, flags=re.DOTALL).strip().rstrip(";").strip()
    if not re.match(r"(?i)(select|with)\b", bare):
        raise ConfigError(f"{where}: the query must start with SELECT or WITH")
    if ";" in bare:
        raise ConfigError(f"{where}: more than one statement; give one SELECT")
    if word := re.search(
        r"(?i)\b(insert|update|delete|merge|drop|alter|create|truncate|grant|exec|execute|into)\b", bare
    ):
        raise ConfigError(f"{where}: {word.group().upper()} in a query; sources are only read")


def describe(error: exc.DBAPIError) -> str:
    """Class and SQLSTATE of a database error: enough to look it up, nothing of what was in the query."""
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorname", None)
    return f"{type(error.orig).__name__} {state}" if state else type(error.orig).__name__


def _stream(result: sqlalchemy.CursorResult[Any], where: str) -> Iterator[Sequence[Any]]:
    try:
        yield from result
    except exc.DBAPIError as error:
        raise _translated(error, where) from None
    finally:
        result.close()


def _translated(error: exc.DBAPIError, where: str) -> Exception:
    if error.connection_invalidated:
        return DroppedConnection(describe(error))
    return InputError(f"{where}: the database refused the query ({describe(error)}); run it by hand and edit it")
