"""A small store with a bit of everything, what is true of it, and reads compared with that truth.

All is read as the store reads it, through the repository and the reader, by a new database object
each time, so that nothing is cached. What is right, and what only is a named error, is told apart
here; the tests decide.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreError
from paramstore.constraints import to_spec
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.reader import Reader, SnapshotView
from paramstore.refs import parse_ref
from paramstore.snapshot import Snapshot
from paramstore.testing.bits import bits

REFS = ("main@1", "main@2", "side@1")


def make(path: Path) -> None:
    """Two snapshots of one scope and one of another: every kind of value, constraint and extra."""
    with paramstore.open(path) as store:
        store["still"] = torch.arange(5.0)
        store["moving"] = torch.randn(3, 4, dtype=torch.float64)
        store.setdefault("scale", torch.rand(3) + 1, constraint=constraints.positive)
        store.setdefault("within", torch.rand(2), constraint=constraints.interval(0.0, 2.0))
        store.module("net", nn.BatchNorm1d(2))
        store["large"] = torch.zeros(20_000)
        store.commit(step=10, metrics={"loss": 1.5, "odd": float("nan")}, message="the first")
        with torch.no_grad():
            store["moving"].mul_(2.0)
            store["large"][7] = 0.5
        bound = torch.zeros(1100)
        store.setdefault("bound", bound + 1, constraint=constraints.greater_than(bound))
        store.commit(step=20, metrics={"loss": 0.75}, tags=["warm"], extras={"epoch": [1, "two"]})
        store.fork("side")
        del store["still"]
        store["more"] = torch.tensor([float("nan"), -0.0])
        store.commit(step=20, extras={"table": torch.arange(30.0)})


@dataclass(frozen=True)
class Seen:
    """All that is promised about one snapshot."""

    snapshot: Snapshot
    """Its own fields; the tags, the parent's name and the origin are not promised."""
    values: dict[str, bytes]
    about: dict[str, tuple[Any, ...]]
    extras: str


@dataclass
class Outcome:
    """What came of reading a damaged file."""

    right: set[str] = field(default_factory=set)
    errors: dict[str, ParamStoreError] = field(default_factory=dict)
    """By question; ``open`` where there was no asking."""
    wrong: list[str] = field(default_factory=list)


def see(repository: Repository, snapshot: Snapshot | None) -> Seen | None:
    """Read one snapshot, all of it."""
    if snapshot is None:
        return None
    reader, manifest = Reader(repository), repository.manifest(snapshot)
    view = SnapshotView(reader, manifest, snapshot)
    return Seen(
        snapshot=replace(snapshot, id=0, tags=(), parent=None, origin=None, extras={}),
        values={name: bits(view.unconstrained(name)) for name in view},
        about={
            name: (to_spec(view.constraint(name)).text, entry.kind, entry.requires_grad)
            for name, entry in manifest.entries.items()
        },
        extras=repr(reader.extras(manifest, "extra")),
    )


def _at(ref: str) -> Callable[[Repository], object]:
    return lambda repository: see(repository, repository.resolve(parse_ref(ref), "main"))


QUESTIONS: dict[str, Callable[[Repository], object]] = {
    **{ref: _at(ref) for ref in (*REFS, "main@step=10")},
    "the newest of main": lambda repository: see(repository, repository.latest("main")),
    "the head of side": lambda repository: see(repository, repository.head("side")),
    "the scopes": lambda repository: [(s.name, s.head_version) for s in repository.scopes()],
}


def truth(path: Path) -> dict[str, object]:
    """The answers of an intact file."""
    database = Database.open(path, readonly=True)
    try:
        return {what: ask(Repository(database)) for what, ask in QUESTIONS.items()}
    finally:
        database.close()


def examine(path: Path, answers: dict[str, object]) -> Outcome:
    """Ask everything of a file, and compare with the truth.

    Raises:
        Exception: whatever comes out of a read and is no error of this library.
    """
    outcome = Outcome()
    try:
        database = Database.open(path, readonly=True, timeout=1)
    except ParamStoreError as error:
        outcome.errors["open"] = error
        return outcome
    try:
        for what, ask in QUESTIONS.items():
            try:
                found = ask(Repository(database))
            except ParamStoreError as error:
                outcome.errors[what] = error
                continue
            if found == answers[what]:
                outcome.right.add(what)
            else:
                outcome.wrong.append(f"{what}: {_difference(found, answers[what])}")
    finally:
        database.close()
    return outcome


def rows(path: Path) -> object:
    """All rows of all tables as SQLite reads them; None where it cannot."""
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        try:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {
                name: connection.execute(f'SELECT * FROM "{name.decode()}"').fetchall()
                for (name,) in tables.fetchall()
            }
        except sqlite3.Error:
            return None


def _difference(found: object, wanted: object) -> str:
    if not isinstance(found, Seen) or not isinstance(wanted, Seen):
        return f"{found!r:.400} instead of {wanted!r:.400}"
    pairs: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("snapshot", asdict(found.snapshot), asdict(wanted.snapshot)),
        ("value", found.values, wanted.values),
        ("description", found.about, wanted.about),
        ("extras", {"": found.extras}, {"": wanted.extras}),
    ]
    return "; ".join(
        f"{what} {key}: {one.get(key)!r} instead of {other.get(key)!r}"
        for what, one, other in pairs
        for key in one.keys() | other.keys()
        if one.get(key) != other.get(key)
    )
