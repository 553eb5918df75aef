"""Databases in memory and in a file, checked in whole when the test is over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from drafts import Line

from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.testing import invariants


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, to be copied: faster than to migrate one for every test."""
    path = tmp_path_factory.mktemp("template") / "empty.db"
    Database.open(path).close()
    return path


@pytest.fixture
def file(path: Path, template: Path) -> Iterator[Database]:
    """A new database in a file."""
    shutil.copy(template, path)
    database = Database.open(path)
    yield database
    database.close()


@pytest.fixture(params=["memory", "file"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A new database, in memory and in a file; its invariants hold when the test is over."""
    if request.param == "file":
        opened: Database = request.getfixturevalue("file")
    else:
        opened = Database.memory()
    yield opened
    invariants.check(opened)
    opened.close()


@pytest.fixture
def repository(database: Database) -> Repository:
    return Repository(database)


@pytest.fixture
def line(repository: Repository) -> Line:
    return Line(repository)
