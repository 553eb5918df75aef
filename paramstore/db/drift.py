"""What a database has that its migrations do not make, and the reverse.

Compares statements; must never change one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from paramstore.db.scripts import Made


def drift(found: Iterable[Made], expected: Iterable[Made]) -> tuple[str, ...]:
    """Say in one line each how what was found differs from what the migrations make.

    Tables and views of other programs in the same database are their own affair.
    """
    here = {_key(made): made for made in found}
    ours = {_key(made): made for made in expected}
    missing = [f"{_named(made)} is missing" for key, made in ours.items() if key not in here]
    altered = [
        f"{_named(made)} has been altered: {_compact(here[key].sql)}"
        for key, made in ours.items()
        if key in here and _compact(here[key].sql) != _compact(made.sql)
    ]
    names = {made.name.lower() for made in ours.values()}
    added = [
        f"{_named(made)} on {made.of!r} has been added"
        for key, made in here.items()
        if key not in ours and made.kind in ("index", "trigger") and made.of.lower() in names
    ]
    return tuple(sorted(missing + altered + added))


def clashes(found: Iterable[Made], expected: Iterable[Made]) -> list[str]:
    """Return the names that are taken by something of another program, sorted."""
    names = {made.name.lower() for made in expected}
    return sorted(made.name for made in found if made.name.lower() in names)


def _key(made: Made) -> tuple[str, str]:
    return made.kind, made.name.lower()  # names of SQLite have no case


def _named(made: Made) -> str:
    return f"{made.kind} {made.name!r}"


def _compact(sql: str) -> str:
    # Spaces and quotes depend on the version of SQLAlchemy, and on whether a column came later.
    return re.sub(r"\s*([(),=])\s*", r"\1", re.sub(r"\s+", " ", sql.replace('"', "")))
