"""Many rows at once: the driver's own executemany, with many rows to a statement.

Knows tables and tuples; must never know what the rows mean.

The driver binds int, float, str and bytearray at 0.1 µs a value; None, bool, bytes and memoryview
cost 0.5 µs, because it looks for an adapter first. Where a commit makes many rows, they are made of
the former.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Dialect, Executable, Table

from paramstore.db import sqlite
from paramstore.db.schema import CHUNK_BITS
from paramstore.errors import CorruptError

VARIABLES: Final = 500
"""Values in one IN list; databases limit them, and each length is a statement of its own."""

_LAST: Final = 1 << (63 - CHUNK_BITS)  # a blob's row, shifted, is that of its chunks
_ROWS: Final = 64
"""Rows in one statement, each run of which reads and writes the newest id of the table: alone, a
short row takes twice as long."""

# The newest id that a table ever had. SQLite keeps it in sqlite_sequence for AUTOINCREMENT keys,
# and raises it when a row with a larger id is inserted.
_NEWEST: Final = {
    "sqlite": "SELECT max(coalesce((SELECT max(id) FROM {table}), 0), coalesce("
    "(SELECT seq FROM sqlite_sequence WHERE name = '{table}'), 0))",
}

_statements: dict[tuple[str, int, int, str], str] = {}

T = TypeVar("T")


def insert(connection: Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows of values for the columns of ``table`` in their order; those left out are NULL.

    All rows leave out the same ones. Core's own executemany takes 2.3 times as long: it looks at
    every value.
    """
    left, dialect = iter(rows), connection.dialect
    together = [tuple(chain.from_iterable(islice(left, _ROWS))) for _ in range(len(rows) // _ROWS)]
    for count, values in ((_ROWS, together), (1, list(left))):
        if values:
            connection.exec_driver_sql(_insert(table, len(rows[0]), count, dialect), values)


def insert_value(
    connection: Connection, table: Table, row_id: int, parts: Sequence[bytes | memoryview]
) -> None:
    """Insert a row whose second column is one large value, given in parts."""
    if connection.dialect.name == "sqlite":
        driver = connection.connection.driver_connection
        sqlite.insert_value(driver, table.name, table.columns[1].name, row_id, parts)
    else:
        insert(connection, table, [(row_id, b"".join(parts))])


def next_ids(connection: Connection, table: Table, count: int) -> range:
    """Return ids for rows that are inserted next, inside a write transaction.

    An id is never given twice, not even after its row is gone.

    Raises:
        CorruptError: the counter of the table is no number, or has run out.
    """
    if not count:
        return range(0)
    newest = _NEWEST[connection.dialect.name].format(table=table.name)
    last = connection.exec_driver_sql(newest).scalar_one()
    if not isinstance(last, int) or not 0 <= last < _LAST - count:
        raise CorruptError(
            f"the counter of the table {table.name!r} is damaged: {last!r:.99}. Salvage the file, "
            f"or restore it from a backup"
        )
    return range(last + 1, last + 1 + count)


def select_in(
    connection: Connection, statement: Executable, values: Iterable[object]
) -> Iterator[Any]:
    """Run a statement with an expanding parameter ``values``, some hundred values at a time."""
    for batch in batched(values, VARIABLES):
        yield from connection.execute(statement, {"values": batch}).all()


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut an iterable into lists of at most ``size``."""
    left = iter(values)
    while batch := list(islice(left, size)):
        yield batch


def _insert(table: Table, length: int, count: int, dialect: Dialect) -> str:
    key = (table.name, length, count, dialect.name)
    if key not in _statements:
        columns = [column.name for column in table.columns][:length]
        compiled = str(table.insert().compile(dialect=dialect, column_keys=columns))
        row = compiled.rpartition(" VALUES ")[2]
        _statements[key] = compiled + f", {row}" * (count - 1)
    return _statements[key]
