"""Queries on the driver's connection give the rows that SQLAlchemy gives."""

from __future__ import annotations

import pytest
from sqlalchemy import Executable, bindparam, literal, null, select, text, true, union_all

from paramstore.db.engine import Database
from paramstore.db.schema import scopes
from paramstore.errors import DatabaseError

SCOPES = select(scopes.c.id, scopes.c.name).order_by(scopes.c.name)
_other = scopes.alias("other")


@pytest.fixture
def database() -> Database:
    database = Database.memory()
    with database.write() as connection:
        for name in ("a", "b", "c"):
            values = {"name": name, "head_version": 0, "created_at": "now"}
            connection.execute(scopes.insert().values(**values))
    return database


def test_rows_have_the_names_and_values_of_sqlalchemys(database: Database) -> None:
    queries: tuple[Executable, ...] = (
        SCOPES,
        SCOPES.limit(1),
        select(scopes, _other).join_from(scopes, _other, _other.c.id == scopes.c.id),
        select(scopes.c.name.label("count"), literal(b"bytes").label("_odd"), null()),
        union_all(select(true().label("flag")), select(null().label("flag"))),
        text("SELECT name FROM scopes"),
    )
    for query in queries:
        found = database.fetch(query)
        with database.write() as connection:
            wanted = connection.execute(query).all()
        assert found == wanted
        for row, other in zip(found, wanted, strict=True):
            assert list(map(type, row)) == list(map(type, other))
    assert [row.name for row in database.fetch(SCOPES)] == ["a", "b", "c"]


def test_a_query_takes_lists_of_any_length(database: Database) -> None:
    query = SCOPES.where(scopes.c.name.in_(bindparam("names", expanding=True)))
    for names in (["b"], [], ["c", "a", "nobody"]):
        found = database.fetch(query, {"names": names})
        assert [row.name for row in found] == sorted(set(names) - {"nobody"})


def test_a_parameter_that_is_left_out_is_an_error_and_not_null(database: Database) -> None:
    query = SCOPES.where(scopes.c.name == bindparam("name"))
    with pytest.raises(DatabaseError, match="name"):
        database.fetch(query)
