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
def writing(place: str | None = None) -> Iterator[Repository]:
    """Open the store for a verb that writes.

    Raises:
        NotFoundError, DatabaseError: it cannot be opened; the message says why.
    """
    with _opened(place or where(), readonly=False, create=False, timeout=WAIT) as repository:
        yield repository


@contextmanager
def made_whole(place: str) -> Iterator[str]:
    """Yield the store that a verb writes to; where there is none, a draft that becomes it.

    What fails leaves no file that was not there before. The block has to close what it opens.

    Raises:
        InvalidInputError: another process has made the store meanwhile; it stays as it is.
        StorageError: there is no such folder, or it cannot be written to.
    """
    from paramstore.db.sqlite import locate
    from paramstore.files import new_file

    path = locate(place)
    if path is None or path.exists():
        yield place
        return
    with new_file(path) as draft:
        yield str(draft)


@contextmanager
def making(place: str) -> Iterator[Repository]:
    """Open a store for a verb that writes, and that makes it where there is none.

    Raises:
        InvalidInputError, DatabaseError: as `made_whole`, or it cannot be opened.
    """
    with (
        made_whole(place) as whole,
        _opened(whole, readonly=False, create=True, timeout=WAIT) as repository,
    ):
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
