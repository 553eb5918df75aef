"""Queries as the driver takes them: compiled once, their rows named tuples.

Knows the statement and never the database it runs on; must never be used to write.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Boolean, Executable
from sqlalchemy.dialects.sqlite.pysqlite import dialect
from sqlalchemy.sql.compiler import SQLCompiler

# Named parameters, so that a caller's mapping goes to the driver as it is.
_DIALECT: Final = dialect(paramstyle="named")
_KEPT: Final = 256  # statements; those of this library are constants, and fewer


class Prepared:
    """A query that runs on the driver's connection.

    SQLAlchemy's own way to the same rows (a key for its cache, a context, a result, a connection
    of its pool) costs 70 µs more, which is most of what a small query takes.

    **Threads**: any.
    """

    def __init__(self, statement: Executable) -> None:
        compiled = statement.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
        assert isinstance(compiled, SQLCompiler)
        self._compiled = compiled
        self._expands = bool(compiled.post_compile_params)
        """Whether the text depends on the values: a list after IN."""
        self._sql = str(compiled)
        # The values that the statement holds itself; one that is not given must not become NULL.
        self._own = {key: value for key, value in compiled.params.items() if value is not None}
        self._row: Callable[[Any], Any] | None = None
        columns = getattr(statement, "selected_columns", ())
        self._booleans = [i for i, c in enumerate(columns) if isinstance(c.type, Boolean)]

    def rows(self, connection: sqlite3.Connection, parameters: Mapping[str, Any]) -> list[Any]:
        """Return all rows, as tuples with the names of the columns."""
        sql, values = self._sql, {**self._own, **parameters}
        if self._expands:
            state = self._compiled.construct_expanded_state(values)
            sql, values = state.statement, dict(state.parameters)
        # Closed here: after an error it would hold the lock for reading as long as the traceback.
        with closing(connection.execute(sql, values)) as cursor:
            found = cursor.fetchall()
            if self._row is None:
                self._row = _row_type(cursor)
        return list(map(self._row, self._with_booleans(found) if self._booleans else found))

    def _with_booleans(self, rows: list[Any]) -> list[Any]:
        """Make booleans of SQLite's numbers."""
        changed = list(map(list, rows))
        for row in changed:
            for i in self._booleans:
                row[i] = None if row[i] is None else bool(row[i])
        return changed


@lru_cache(maxsize=_KEPT)
def prepare(statement: Executable) -> Prepared:
    """Compile a query; the same object is compiled once."""
    return Prepared(statement)


def _row_type(cursor: sqlite3.Cursor) -> Callable[[Any], Any]:
    names: Any = [name for name, *_ in cursor.description]
    kind: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # known when it runs
    make: Callable[[Any], Any] = kind._make
    return make
