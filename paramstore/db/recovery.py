"""What can still be read of a damaged database, table by table.

Works on a copy of its own, whose first page it may replace; must never touch the damaged file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Boolean, Column, Double, LargeBinary, Table, Text

from paramstore.db import sqlite
from paramstore.db.engine import Database
from paramstore.db.schema import CHUNK_BITS, VERSION_TABLE, chunks, metadata
from paramstore.db.views import create_views
from paramstore.files import read_start, write_start

_FIRST: Final = 1 << 16  # bytes of the first page
SHORTEST: Final = 64 * _FIRST
"""Bytes of a file in which every table of a new store begins; a schema that leads beyond the end
of the file makes SQLite refuse all of it."""
_HEADER: Final = 100  # bytes; https://sqlite.org/fileformat2.html#the_database_header
_STRIDE: Final = 64
"""Keys between two looks for rows that can be read again; a page of small rows has more."""
_LOOKS: Final = (2_000, 1_000_000)
"""The most looks, each of which takes some microseconds: without and with a known last key."""

_TYPES: Final[dict[type[Any], tuple[type, ...]]] = {
    Text: (str,),
    LargeBinary: (bytes,),
    Double: (float, int),
    Boolean: (int,),
}
_UNREADABLE: Final = (sqlite3.Error, UnicodeDecodeError, OverflowError)
_OTHERS: Final = (
    "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view', 'trigger') "
    "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"
)
_Row = tuple[Any, ...]


class Recovery:
    """A damaged database, as far as SQLite can read a copy of it.

    **Threads**: one.

    **Ownership**: owns the connection to the copy until ``close``; the copy is the caller's.
    """

    def __init__(self, copy: Path) -> None:
        """Make as much of the copy readable as possible; it has to be ``SHORTEST`` at least."""
        _roll_back(copy)
        tables = _most_readable(copy)
        self._connection = _connect(copy)
        self._columns = {name: _columns(self._connection, name) for name in tables}
        self.unreadable: dict[str, int] = {}
        """How often rows of a table could not be read, by the table's name."""
        self.missing = [name for name in metadata.tables if name not in tables]
        """Tables that cannot be read at all."""
        self._newest = self._newest_ids()

    def others(self) -> list[str]:
        """Return the tables, views and triggers that no store has, as far as they are known."""
        ours = {
            *metadata.tables,
            VERSION_TABLE,
            *(view.split()[2] for view in create_views("sqlite")),
        }
        try:
            found = self._connection.execute(_OTHERS).fetchall()
        except _UNREADABLE:
            return []
        return [f"{kind} {name!r}" for kind, name in found if name not in ours]

    def close(self) -> None:
        """Let go of the copy."""
        self._connection.close()

    def rows(self, table: Table) -> Iterator[_Row]:
        """Yield the rows of a table as the present schema has them, by key; step over others.

        A row whose values cannot be those of its columns is left out, too.
        """
        known = self._columns.get(table.name, ())
        if not known:
            return
        key, *_ = table.primary_key.columns
        statement = _select(table, known) + f" WHERE {key.name} >= ? ORDER BY {key.name}"
        position = list(table.columns).index(key)
        start = -(2**63)
        while True:
            try:
                for row in self._connection.execute(statement, (start,)):
                    if _fits(table, row):
                        yield row
                        start = row[position]
                    else:
                        self._skip(table.name)
            except _UNREADABLE:
                self._skip(table.name)
            else:
                return
            last = self._newest.get("snapshots" if key.name == "snapshot_id" else table.name)
            found = self._readable_from(statement, position, max(start, 0) + 1, last)
            if found is None:
                return
            start = found

    def chunks(self, blob_id: int, count: int) -> Iterator[_Row]:
        """Yield the rows of a tensor's bytes, up to the first that cannot be read."""
        if chunks.name not in self._columns:
            return
        for row_id in range(blob_id << CHUNK_BITS, (blob_id << CHUNK_BITS) + count):
            try:
                data = sqlite.read_value(self._connection, chunks.name, chunks.c.data.name, row_id)
            except sqlite3.Error:
                self._skip(chunks.name)
                return
            if data is None:
                return
            yield row_id, data

    def _skip(self, name: str) -> None:
        self.unreadable[name] = self.unreadable.get(name, 0) + 1

    def _newest_ids(self) -> dict[str, int]:
        """The newest key that each table had, as far as it is known."""
        try:
            found = dict(self._connection.execute("SELECT name, seq FROM sqlite_sequence"))
        except _UNREADABLE:
            return {}
        return {name: seq for name, seq in found.items() if type(seq) is int}

    def _readable_from(
        self, statement: str, position: int, start: int, last: int | None
    ) -> int | None:
        """Find a key from which rows can be read again; None where there seems to be none."""
        offset = 0
        for _ in range(_LOOKS[last is not None]):
            if last is not None and start + offset > last:
                return None
            try:
                row = self._connection.execute(f"{statement} LIMIT 1", (start + offset,)).fetchone()
            except _UNREADABLE:
                offset += 1 if offset < _STRIDE else _STRIDE
                continue
            # The rows in between are those that cannot be read, or were never there.
            return None if row is None or type(row[position]) is not int else int(row[position])
        return None


def _connect(copy: Path) -> sqlite3.Connection:
    connection = sqlite.connect(copy, "rw")
    sqlite.set_pragmas(connection, ("cell_size_check", "ON"), ("foreign_keys", "OFF"))
    connection.text_factory = _text
    return connection


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data  # which is not what a column of text holds


def _fits(table: Table, row: _Row) -> bool:
    return all(_fits_column(c, value) for c, value in zip(table.columns, row, strict=True))


def _fits_column(column: Column[Any], value: Any) -> bool:
    if value is None:
        return bool(column.nullable)
    kinds = next((k for kind, k in _TYPES.items() if isinstance(column.type, kind)), (int,))
    return type(value) in kinds


def _select(table: Table, known: Iterable[str]) -> str:
    known = set(known)
    names = [c.name if c.name in known else f"NULL AS {c.name}" for c in table.columns]
    return f"SELECT {', '.join(names)} FROM {table.name}"  # noqa: S608  # our own names


def _columns(connection: sqlite3.Connection, name: str) -> tuple[str, ...]:
    return tuple(row[1] for row in connection.execute(f"PRAGMA table_info({name})"))


# -- the first page ----------------------------------------------------------------


def _roll_back(copy: Path) -> None:
    """Let SQLite undo what a killed writer left half done, while the first page is as it was."""
    try:
        with closing(sqlite.connect(copy, "rw")) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error:
        """Then there is nothing that it knows how to undo."""


def _most_readable(copy: Path) -> list[str]:
    """Put the first page on the copy with which most tables can be read, and return those."""
    original = read_start(copy, _FIRST)
    best: tuple[list[str], bytes] = ([], original)
    for page in _first_pages(copy, original):
        write_start(copy, page)
        found = _readable_tables(copy)
        if len(found) > len(best[0]):
            best = found, page
        if len(found) == len(metadata.tables):
            break
    write_start(copy, best[1])
    return best[0]


def _first_pages(copy: Path, original: bytes) -> Iterator[bytes]:
    """Yield what the first page may have been: every store begins with almost the same."""
    size = copy.stat().st_size
    yield _sized(original, size)
    new = _new_page(copy.parent, compacted=False)
    yield _sized(new[:_HEADER] + original[_HEADER:], size)
    yield _sized(new, size)
    yield _sized(_new_page(copy.parent, compacted=True), size)


def _readable_tables(copy: Path) -> list[str]:
    found = []
    try:
        with closing(_connect(copy)) as connection:
            for name, table in metadata.tables.items():
                if _is_readable(connection, table):
                    found.append(name)
    except sqlite3.Error:
        return []
    return found


def _is_readable(connection: sqlite3.Connection, table: Table) -> bool:
    known = _columns(connection, table.name)
    # Columns that a later revision has added may be missing.
    if not {column.name for column in table.columns if not column.nullable} <= set(known):
        return False
    try:
        rows = connection.execute(f"{_select(table, known)} LIMIT 1").fetchall()
    except _UNREADABLE:
        # The page may be damaged further down: that it is the root of a table is enough.
        return table.name in _roots(connection)
    return all(_fits(table, row) for row in rows)


def _roots(connection: sqlite3.Connection) -> Mapping[str, int]:
    return dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE rootpage > 1"))


def _sized(page: bytes, size: int) -> bytes:
    """Let the header of a first page say how long the file really is; SQLite refuses a lie."""
    page_size = int.from_bytes(page[16:18], "big") or 1
    page_size = 1 << 16 if page_size == 1 else page_size
    pages = (size // page_size).to_bytes(4, "big")
    # The pages that are free are of no interest, and their list may be damaged.
    page = page[:28] + pages + bytes(8) + page[40:]
    return page[:92] + page[24:28] + page[96:]


def _new_page(folder: Path, *, compacted: bool) -> bytes:
    """Return the first page of a new store, whose tables have the roots that they always get.

    It is made in that folder, which is the caller's to empty.
    """
    path = folder / ("compacted.db" if compacted else "new.db")
    database = Database.open(path)
    try:
        if compacted:
            database.outside_transaction(lambda connection: connection.execute("VACUUM").close())
    finally:
        database.close()
    return read_start(path, _FIRST)
