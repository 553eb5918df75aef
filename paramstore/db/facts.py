"""What a database file says about itself, whatever state it is in; for the doctor.

Asks SQLite and reads nothing that a person stored; must work on a file that ``open`` refuses.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import text

from paramstore.db.engine import Database

SYNCHRONOUS: Final = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
AUTO_VACUUM: Final = {0: "NONE", 1: "FULL", 2: "INCREMENTAL"}
WAL_FIXED: Final = (3, 51, 3)
"""Before it, a checkpoint beside a commit could corrupt a database in WAL mode."""

_PRAGMAS: Final = {
    name: text(f"PRAGMA {name}")
    for name in (
        "page_size", "page_count", "freelist_count", "journal_mode", "synchronous", "foreign_keys",
        "auto_vacuum", "secure_delete", "trusted_schema",
    )
}  # fmt: skip
_QUICK_CHECK: Final = text("PRAGMA quick_check(5)")


def pragmas(path: Path) -> dict[str, int | str]:
    """Return the pragmas that are in force on a connection of this library.

    Raises:
        DatabaseError: SQLite cannot open or read the file.
    """
    database = Database(path, mode="ro", timeout=5.0)
    try:
        return {name: database.fetch(pragma)[0][0] for name, pragma in _PRAGMAS.items()}
    finally:
        database.close()


def broken_pages(path: Path) -> list[str]:
    """Return what SQLite's own quick check says of the file; nothing when it is in order.

    Reads every page.

    Raises:
        DatabaseError: SQLite cannot open or read the file.
    """
    database = Database(path, mode="ro", timeout=5.0)
    try:
        said = [str(line) for (line,) in database.fetch(_QUICK_CHECK)]
    finally:
        database.close()
    return [] if said == ["ok"] else said


def known_bug(journal_mode: str) -> str | None:
    """Return what is known to be wrong with this build of SQLite for such a file."""
    if journal_mode.lower() == "wal" and sqlite3.sqlite_version_info < WAL_FIXED:
        fixed = ".".join(map(str, WAL_FIXED))
        return f"SQLite {sqlite3.sqlite_version} can corrupt a file in WAL mode; {fixed} does not"
    return None


def version() -> str:
    """Return the version of SQLite that this Python uses."""
    return sqlite3.sqlite_version
