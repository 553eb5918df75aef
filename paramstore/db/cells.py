"""Whether the rows of a query hold what the schema says: SQLite takes any type in any column.

Looks at rows that were read; must never ask the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Double, Integer, Select, Text

from paramstore.errors import CorruptError

_PYTHON: Final[tuple[tuple[type, tuple[type, ...]], ...]] = (
    (Integer, (int,)),
    (BigInteger, (int,)),
    (Boolean, (bool, int)),
    (Double, (float, int)),
    (Text, (str,)),
)


class Cells:
    """What the rows of one query may hold.

    **Threads**: any.
    """

    def __init__(self, statement: Select[Any]) -> None:
        self._columns = [
            (column.name, _kinds(column.type), bool(getattr(column, "nullable", True)))
            for column in statement.selected_columns
        ]
        self._fine: set[tuple[type, ...]] = set()
        """The types of rows that have been looked at: few, so that a row costs a look-up."""

    def check(self, rows: Sequence[Iterable[Any]]) -> None:
        """Refuse rows with a value that no commit writes there; columns behind them are let be.

        Raises:
            CorruptError: names the first such column.
        """
        for types in {tuple(map(type, row)) for row in rows} - self._fine:
            for (name, kinds, nullable), found in zip(self._columns, types, strict=False):
                if kinds and found not in kinds and not (nullable and found is type(None)):
                    raise CorruptError(
                        f"the database is damaged: a column {name!r} holds {found.__name__}, which "
                        f"no commit wrote there; verify() says where"
                    )
            self._fine.add(types)


def _kinds(kind: object) -> tuple[type, ...]:
    return next((python for sql, python in _PYTHON if isinstance(kind, sql)), ())
