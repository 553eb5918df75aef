"""Which store a command means, and how it is opened: for reading, unless the verb writes.

Imports the database when it is opened, so that help need not wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from paramstore.cli.group import DATABASE

if TYPE_CHECKING:
    from paramstore.db.repository import Repository

DEFAULT: Final = "paramstore.db"
VARIABLE: Final = "PARAMSTORE_URL"
MAIN: Final = "main"
WAIT: Final = 60.0
"""Seconds to wait for a lock that another process holds."""


def where() -> str:
    """Return the path or URL that the command line, the environment or the folder names."""
    named = click.get_current_context().meta.get(DATABASE) or os.environ.get(VARIABLE)
    return str(named or DEFAULT)


@contextmanager
def reading(place: str | None = None, *, timeout: float = WAIT) -> Iterator[Repository]:
    """Open the store for reading; wait so many seconds for a writer.

    Raises:
        NotFoundError, DatabaseError: it cannot be opened; the message says why.
    """
    with _opened(place or where(), readonly=True, create=False, timeout=timeout) as repository:
        yield repository


@contextmanager
def writing(place: str | None = None, *, create: bool = False) -> Iterator[Repository]:
    """Open the store for a verb that writes.

    Raises:
        NotFoundError, DatabaseError: it cannot be opened; the message says why.
    """
    with _opened(place or where(), readonly=False, create=create, timeout=WAIT) as repository:
        yield repository


@contextmanager
def _opened(place: str, *, readonly: bool, create: bool, timeout: float) -> Iterator[Repository]:
    from paramstore.db.engine import Database
    from paramstore.db.repository import Repository

    database = Database.open(place, readonly=readonly, create=create, timeout=timeout)
    try:
        yield Repository(database)
    finally:
        database.close()


def current_scope(repository: Repository, named: str | None) -> str:
    """Return the scope that is meant: the one named, else ``main``, else the only one there is."""
    if named is not None:
        return named
    existing = [scope.name for scope in repository.scopes()]
    return existing[0] if len(existing) == 1 else MAIN
