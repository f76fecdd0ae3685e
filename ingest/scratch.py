"""Room on disk for what does not fit in memory: an SQLite file that has no name any more, so nothing stays behind.

The file is unlinked while it is open: a killed run leaves no patient data. It is private to one process and one run, so
it needs neither journal nor flush.
"""

import sqlite3
import tempfile
from pathlib import Path

CACHE_KIB = 32_768  # page cache of SQLite, and as much again while it sorts; the rest is on disk


def open_scratch(folder: Path | None = None) -> sqlite3.Connection:
    """A new empty database; closing it gives the disk space back.

    Args:
        folder: where there is room. Default: the system's temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix=".fullslide-", dir=folder) as private:  # its mode is 0700
        connection = sqlite3.connect(Path(private) / "scratch", isolation_level=None)
        connection.execute("PRAGMA journal_mode = OFF")  # also keeps SQLite from opening files by name
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA temp_store = FILE")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE opened (here)")  # makes SQLite open the file while it has its name
    return connection
