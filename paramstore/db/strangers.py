"""What in a database could act by itself, or lie to a query: refused before any row is read.

Our tables and views have to be as plain as the migrations make them; tables of other programs may
stand beside them. Reads `sqlite_master` alone; must never change anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import text

from paramstore.db.engine import Database
from paramstore.db.schema import DEDUPLICATED_FROM, VERSION_TABLE, metadata
from paramstore.db.views import create_views
from paramstore.errors import CorruptError, SchemaError

_OBJECTS: Final = text("SELECT type, name, tbl_name, sql FROM sqlite_master")
_WORD: Final = re.compile(r"\w+")
_TABLES: Final = frozenset(metadata.tables) | {VERSION_TABLE}
# None of these words stands in a table of ours: each makes SQLite compute something, or change
# other rows than those that a statement names.
_ACTING: Final = frozenset((
    "AS", "CASCADE", "CHECK", "COLLATE", "CONFLICT", "DEFAULT", "GENERATED", "ON", "REPLACE", "SET",
    "VIRTUAL",
))  # fmt: skip
_OUR_INDEXES: Final = {
    f"CREATE UNIQUE INDEX uq_blobs_digest ON blobs (digest) WHERE nbytes >= {DEDUPLICATED_FROM}"
}
_PLAIN_INDEX: Final = re.compile(r"CREATE INDEX [^()]+\([\w\s,\"`\[\]]+\)", re.IGNORECASE)


class Object(NamedTuple):
    """One row of ``sqlite_master``."""

    type: str
    name: str
    table: str
    sql: str | None


def objects(database: Database) -> tuple[Object, ...]:
    """Return everything that the schema of a database names.

    Raises:
        CorruptError: bytes in the place of a text, which SQLite would take for one.
    """
    found = tuple(Object(*row) for row in database.fetch(_OBJECTS))
    if any(isinstance(value, bytes) for row in found for value in row):
        raise CorruptError(f"{database.name} is damaged: its schema is no text")
    return found


def check_tables(name: str, found: tuple[Object, ...]) -> None:
    """Refuse triggers, and tables and indexes of ours that compute something.

    Args:
        name: What errors call the database.
        found: Its objects.

    Raises:
        SchemaError: names all of them.
    """
    _refuse(name, _acting(found))


def check_views(name: str, found: tuple[Object, ...]) -> None:
    """Refuse views of ours that ask something else than the migrations made them ask.

    Raises:
        SchemaError: names all of them.
    """
    _refuse(name, _other_views(found))


def _refuse(name: str, problems: Sequence[str]) -> None:
    if problems:
        raise SchemaError(
            f"{name} holds what paramstore did not make and does not trust: "
            f"{'; '.join(problems[:5])}{' …' if len(problems) > 5 else ''}. Nothing of it was "
            f"read; if you made these yourself, drop them and open it again"
        )


# The rows of one file are the same at each open, and looking at them costs as much as the query.
@lru_cache(maxsize=64)
def _acting(found: tuple[Object, ...]) -> tuple[str, ...]:
    return tuple(_acting_tables(found))


@lru_cache(maxsize=64)
def _other_views(found: tuple[Object, ...]) -> tuple[str, ...]:
    ours = _views()
    return tuple(
        f"the view {view.name!r} is not as it was made"
        for view in found
        if view.type == "view" and _plain(view.sql) != ours.get(view.name.lower(), _plain(view.sql))
    )


def _acting_tables(found: Iterable[Object]) -> Iterator[str]:
    found = list(found)
    ours = _TABLES | _views().keys()
    # SQLite carries a deletion on to tables that refer to ours, and their triggers run then.
    linked = any(_refers_to_ours(it) for it in found if it.table.lower() not in _TABLES)
    for it in found:
        if it.type == "trigger":
            if linked or it.table.lower() in ours:
                yield f"the trigger {it.name!r} on the table {it.table!r}"
        elif it.table.lower() in _TABLES:
            why = _index(it) if it.type == "index" else _table(it)
            if why:
                yield f"the {it.type} {it.name!r} {why}"


def _table(it: Object) -> str | None:
    if it.type != "table":
        return "in the place of a table"
    acting = _words(it.sql) & _ACTING
    return f"with the words {', '.join(sorted(acting))}" if acting else None


def _index(it: Object) -> str | None:
    # One without a text belongs to a key of the table.
    sql = _plain(it.sql)
    if not sql or sql in _OUR_INDEXES:
        return None
    plain = _PLAIN_INDEX.fullmatch(sql) and not _words(sql) & {"COLLATE"}
    return None if plain else "on an expression, or with a condition"


def _refers_to_ours(it: Object) -> bool:
    words = _words(it.sql)
    return "REFERENCES" in words and not words.isdisjoint(table.upper() for table in _TABLES)


def _words(sql: str | None) -> set[str]:
    return set(_WORD.findall((sql or "").upper()))


def _plain(sql: str | None) -> str:
    return " ".join((sql or "").split())


@lru_cache(maxsize=1)
def _views() -> dict[str, str]:
    made: Any = map(_plain, create_views("sqlite"))
    return {sql.split()[2].lower(): sql for sql in made}
