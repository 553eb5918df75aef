"""SQLite as this library wants it: where the file is, how it is opened, what is set on it.

Only SQLite ever opens the database or its journal: closing any other descriptor of the file drops
the locks of the whole process. So nothing here, or anywhere, may open, copy or read them itself.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from paramstore.db.border import error_code
from paramstore.db.place import Place
from paramstore.db.writeback import Writeback
from paramstore.errors import InvalidInputError, StorageError, UsageError
from paramstore.files import path_text

Mode = Literal["ro", "rw", "rwc"]
Journal = Literal["truncate", "wal"]
C = TypeVar("C", bound=sqlite3.Connection)

OLDEST: Final = (3, 35, 0)
"""The oldest SQLite with all that is used here (RETURNING, DROP COLUMN)."""

# In this order on every connection, the journal mode after the first of them.
PAGE_SIZE: Final = ("page_size", "65536")  # bytes; counts only before the first table
PRAGMAS: Final = (
    ("synchronous", "FULL"),  # a commit that returned survives a power cut
    ("foreign_keys", "ON"),
    ("secure_delete", "OFF"),  # Debian's default writes zeros: deleting takes twenty times as long
    ("trusted_schema", "OFF"),  # a file from elsewhere must not call functions through its views
)
# Once, on a file without tables; it cannot be set later.
NEW_FILE: Final = (("auto_vacuum", "INCREMENTAL"),)

_HOT_JOURNAL: Final = (sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY)
_STATEMENTS: Final = 256  # prepared statements kept per connection
_PAGES_GIVEN_BACK: Final = 512  # 32 MiB: a commit beside it waits for one step


class Connection(sqlite3.Connection):
    """A connection to a file that is dead in every process but the one that opened it.

    **Ownership**: a child of a fork inherits it and must not touch it: closing or rolling back
    there undoes the parent's transaction in the file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._process = os.getpid()
        self.writeback: Writeback | None = None
        self.log: Place | None = None
        """The write-ahead log, which is the same file for as long as a connection is open."""
        super().__init__(*args, **kwargs)

    @property
    def inherited(self) -> bool:
        """Whether another process opened it."""
        return self._process != os.getpid()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Make a cursor, in the process that opened the connection only."""
        if self.inherited:
            raise forked_inside()
        return super().cursor(*args, **kwargs)

    def commit(self) -> None:
        """Commit, in the process that opened the connection only."""
        if self.inherited:
            raise forked_inside()
        super().commit()

    def rollback(self) -> None:
        """Roll back; nothing in another process."""
        if not self.inherited:
            super().rollback()

    def close(self) -> None:
        """Close; nothing in another process."""
        if not self.inherited:
            super().close()


def forked_inside() -> UsageError:
    """Return the error for a process that was forked in the middle of a transaction."""
    return UsageError(
        "this process was forked in the middle of a transaction of the store, so SQLite's locks "
        "on that file are wrong here: let the parent write, or start the child with the "
        "multiprocessing method 'spawn'"
    )


def locate(where: str | os.PathLike[str]) -> Path | None:
    """Return the absolute path of a database file; None for a database in memory.

    Args:
        where: a path, ``~`` for the home folder included, ``:memory:``, or SQLAlchemy's URL of an
            SQLite database.

    Raises:
        InvalidInputError: another kind of URL, or no path at all.
    """
    text = path_text(where)
    if not text or "\0" in text:
        raise InvalidInputError(f"{text!r} is not the path of a database")
    if "://" in text:
        text = path_text(_path_of_url(text))
    try:
        return None if text == ":memory:" else Path(os.path.realpath(text))
    except UnicodeEncodeError as error:  # a lone surrogate that stands for no byte
        raise InvalidInputError(f"{text!r} is not the path of a database: {error}") from error


def _path_of_url(text: str) -> str:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InvalidInputError(f"{text!r} is neither a path nor a database URL") from error
    if url.get_backend_name() != "sqlite":
        raise InvalidInputError(
            f"{url.render_as_string()!r}: only SQLite is supported; give a path, or "
            f"'sqlite:///run.db'"
        )
    if url.query:
        raise InvalidInputError(
            f"{text!r}: options in the URL are not supported; give them to open()"
        )
    return url.database or ":memory:"


def connect(path: Path | None, mode: Mode) -> sqlite3.Connection:
    """Open one connection and set it up.

    Raises:
        sqlite3.Error: whatever SQLite says.
    """
    if path is None:
        connection = _connect(":memory:", sqlite3.Connection)
    else:
        connection = file = _connect(f"{path.as_uri()}?mode={mode}", Connection)
        file.writeback = Writeback(path)
        file.log = Place(path.with_name(f"{path.name}-wal"))
    try:
        _set_up(connection, mode)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(uri: str, factory: type[C]) -> C:
    made: C = sqlite3.connect(
        uri,
        uri=True,
        timeout=0,  # waiting is ours, so that Ctrl-C works and a cache spill never waits
        isolation_level=None,  # transactions are ours
        check_same_thread=False,  # the pool gives a connection to one thread at a time
        cached_statements=_STATEMENTS,
        factory=factory,
    )
    return made


def _set_up(connection: sqlite3.Connection, mode: Mode) -> None:
    set_pragmas(connection, PAGE_SIZE)
    (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "ro" and journal not in ("wal", "memory"):
        # Not stored in the file, unlike WAL: each connection chooses how it ends its journal.
        connection.execute("PRAGMA journal_mode=TRUNCATE").fetchall()
    set_pragmas(connection, *PRAGMAS)


def set_pragmas(connection: sqlite3.Connection, *pragmas: tuple[str, str]) -> None:
    """Set pragmas from the tables above."""
    for name, value in pragmas:
        connection.execute(f"PRAGMA {name}={value}").fetchall()


def read_value(connection: Any, table: str, column: str, row_id: int) -> bytes | None:
    """Return one value of bytes by its row, None where there is none."""
    try:
        with connection.blobopen(table, column, row_id, readonly=True) as value:
            data: bytes = value.read()
    except sqlite3.OperationalError as error:
        # Plain SQLITE_ERROR: only its text says that the row is gone, or holds no bytes.
        if str(error).startswith(("no such rowid", "cannot open value of type")):
            return None
        raise
    return data


def insert_value(
    connection: Any, table: str, column: str, row_id: int, parts: Sequence[bytes | memoryview]
) -> None:
    """Insert a row with one large value, the parts of it one behind the other.

    Binding it would copy it three times, twice with the interpreter's lock held: 156 ms of CPU for
    268 MB where this takes 112.
    """
    length = sum(map(len, parts))
    row = (row_id, length)
    insert = f"INSERT INTO {table} (id, {column}) VALUES (?, zeroblob(?))"  # noqa: S608  # our names
    connection.execute(insert, row)
    with connection.blobopen(table, column, row_id) as value:
        for part in parts:
            value.write(part)
    if isinstance(connection, Connection) and connection.writeback is not None:
        connection.writeback.wrote(length)


def size(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the bytes of a database, and how many of them are empty pages."""
    names = ("page_size", "page_count", "freelist_count")
    page, pages, empty = (connection.execute(f"PRAGMA {n}").fetchone()[0] for n in names)
    return page * pages, page * empty


def give_back(connection: sqlite3.Connection) -> None:
    """Cut some empty pages off the file, outside a transaction."""
    # Each step of the statement frees one page, and only executescript steps to its end.
    connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_GIVEN_BACK})")


def rewrite(connection: sqlite3.Connection) -> None:
    """Rewrite the whole file, with the settings of a new one, outside a transaction."""
    set_pragmas(connection, *NEW_FILE)
    connection.execute("VACUUM")


def empty_log(connection: sqlite3.Connection) -> None:
    """Move what is in a write-ahead log into the file, unless somebody reads it; else nothing."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def is_hot_journal(error: BaseException) -> bool:
    """Whether a reader without write access met what a killed writer left behind."""
    return error_code(error) in _HOT_JOURNAL


def roll_back(path: Path) -> None:
    """Let SQLite undo the transaction that a killed writer left half done.

    Raises:
        StorageError: this process may not write there.
    """
    try:
        connection = connect(path, "rw")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        if error_code(error) & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise
        raise StorageError(
            f"{str(path)!r} holds a transaction that a killed writer left half done, and this "
            f"process may not write to the file and its folder to undo it; open the store once "
            f"with write permission, then read"
        ) from error
