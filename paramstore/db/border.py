"""The border at which errors of SQLAlchemy, sqlite3 and the system become the library's own.

Translates and never handles: whoever catches decides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc

from paramstore.errors import (
    CorruptError,
    DatabaseError,
    NotADatabaseError,
    ParamStoreError,
    StorageError,
    StoreBusyError,
    StoreClosedError,
)

# UnicodeDecodeError comes of an error text that quotes the file where that is not UTF-8,
# OverflowError of a number that has no room in 64 bits, as a damaged row or counter leads to.
FOREIGN: Final = (
    exc.SQLAlchemyError,
    sqlite3.Error,
    sqlite3.Warning,
    OSError,
    OverflowError,
    UnicodeDecodeError,
)
"""What may come out of a call into the database; nothing else is caught."""

# Primary result codes, https://sqlite.org/rescode.html; all others are DatabaseError.
_BY_CODE: Final[dict[int, type[DatabaseError]]] = {
    sqlite3.SQLITE_PERM: StorageError,
    sqlite3.SQLITE_BUSY: StoreBusyError,
    sqlite3.SQLITE_LOCKED: StoreBusyError,
    sqlite3.SQLITE_NOMEM: StorageError,
    sqlite3.SQLITE_READONLY: StorageError,
    sqlite3.SQLITE_IOERR: StorageError,
    sqlite3.SQLITE_CORRUPT: CorruptError,
    sqlite3.SQLITE_FULL: StorageError,
    sqlite3.SQLITE_CANTOPEN: StorageError,
    sqlite3.SQLITE_PROTOCOL: StoreBusyError,
    sqlite3.SQLITE_TOOBIG: StorageError,
    sqlite3.SQLITE_NOLFS: StorageError,
    sqlite3.SQLITE_AUTH: StorageError,
    sqlite3.SQLITE_FORMAT: CorruptError,
    sqlite3.SQLITE_NOTADB: NotADatabaseError,
}

_ADVICE: Final[dict[type[ParamStoreError], str]] = {
    StoreBusyError: "another process holds the lock; try again, or open with a longer timeout=",
    NotADatabaseError: "the file is not an SQLite database; give another path",
    CorruptError: "stored rows are damaged; restore the file from a backup",
    StorageError: "look at free space and at the permissions of the file and its folder",
    DatabaseError: "the database refused a statement",
    StoreClosedError: "open the store again",
}


_NO_SUCH: Final = ("no such column: ", "no such table: ")
_OTHER_SCHEMA: Final = (
    "another process has migrated the store, which paramstore db current tells; or its schema is "
    "damaged, then restore the file from a backup"
)


@contextmanager
def translate(where: str) -> Iterator[None]:
    """Turn foreign errors inside the block into those of `paramstore.errors`.

    Args:
        where: the database, as the error text should name it.

    Raises:
        DatabaseError: of the class that fits, from the foreign error.
        StoreClosedError: the connection had been closed.
        ParamStoreError: as it was, where SQLAlchemy had wrapped it.
    """
    try:
        yield
    except FOREIGN as error:
        origin = original(error)
        if isinstance(origin, ParamStoreError):  # from inside the driver's connection
            raise origin from None
        raise translated(error, where) from error


def translated(error: BaseException, where: str) -> ParamStoreError:
    """Return the library's error for a foreign one."""
    origin = original(error)
    kind = _kind(origin)
    advice = _OTHER_SCHEMA if _is_other_schema(origin) else _ADVICE[kind]
    return kind(f"{where}: {_first_line(origin)} ({advice})")


def original(error: BaseException) -> BaseException:
    """Return what the driver raised, where SQLAlchemy wrapped it."""
    origin = getattr(error, "orig", None)
    return origin if isinstance(origin, BaseException) else error


def error_code(error: BaseException) -> int:
    """Return the extended SQLite result code; 0 where there is none."""
    return getattr(original(error), "sqlite_errorcode", 0) or 0


def is_busy(error: BaseException) -> bool:
    """Whether another connection was in the way, so that trying again may help."""
    return error_code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)


def _is_other_schema(error: BaseException) -> bool:
    # Our statements never change, and the revision has been looked at.
    found = str(error)
    lacking = found.startswith(_NO_SUCH) or " has no column named " in found
    return error_code(error) == sqlite3.SQLITE_ERROR and lacking


def _kind(error: BaseException) -> type[ParamStoreError]:
    code = error_code(error)
    if _is_other_schema(error):
        return CorruptError
    if code:
        return _BY_CODE.get(code & 0xFF, DatabaseError)
    if isinstance(error, OSError):
        return StorageError
    if isinstance(error, exc.TimeoutError):
        return StoreBusyError
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return StoreClosedError
    # Without a code, sqlite3 raises the first of these for text in the file that is not UTF-8.
    if isinstance(error, sqlite3.OperationalError | UnicodeError | OverflowError):
        return CorruptError
    return DatabaseError


def _first_line(error: BaseException) -> str:
    name = getattr(error, "sqlite_errorname", None)
    text = str(error).partition("\n")[0] or type(error).__name__
    return f"{text} [{name}]" if name else text
