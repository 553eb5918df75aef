"""The runs that are disturbed: how each begins, and what it then does to the file.

Each is opened undisturbed, does its work under faults, and says every commit before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import alembic.command  # noqa: F401  # here, so that not every fork has to import it
import content
import pytest
from content import Key, Training
from ledger import Listener, Teller

from paramstore import KeepLast, KeepTagged, ParamStoreDict, ParamStoreError, Policy

Do = Callable[[ParamStoreDict, Training, Teller], None]
LATER = 50
"""The step of the commit after an error."""
TIMEOUT = 2.0
"""Seconds; longer than anything here takes, and short where an error looks like another's lock."""


@dataclass(frozen=True)
class Run:
    """One kind of run."""

    name: str
    do: Do
    """Its disturbed part."""
    scope: str = "main"
    before: int = 2
    """Snapshots in the file when it begins; 0: there is no file."""
    journal: str | None = None

    def prepare(self, path: Path) -> list[str]:
        """Make the file as it is before, to be copied; return what was said."""
        listener = Listener()
        if self.before:
            with content.opened(path, self.scope, journal=self.journal) as (store, training):
                steps(*range(1, self.before + 1))(store, training, listener)
        return listener.lines

    @contextmanager
    def begun(self, path: Path) -> Iterator[Callable[[Teller], None]]:
        """Open the store where there is one, and yield what is to be disturbed."""
        with _small_transactions():
            if not self.before:
                yield lambda teller: self._all(path, teller)
                return
            with content.opened(path, self.scope) as (store, training):
                yield lambda teller: self._rest(store, training, teller)

    def _all(self, path: Path, teller: Teller) -> None:
        options = {"journal": self.journal, "timeout": TIMEOUT}
        with content.opened(path, self.scope, **options) as (store, training):
            self.do(store, training, teller)

    def _rest(self, store: ParamStoreDict, training: Training, teller: Teller) -> None:
        self.do(store, training, teller)
        store.close()

    @contextmanager
    def enduring(self, path: Path) -> Iterator[Callable[[Teller], None]]:
        """The same, but go on after a named error: pause, and commit once more."""
        with _small_transactions():
            if not self.before:
                yield lambda teller: self._all_again(path, teller)
                return
            with content.opened(path, self.scope, timeout=TIMEOUT) as (store, training):
                yield lambda teller: self._rest_and_more(store, training, teller)

    def _all_again(self, path: Path, teller: Teller) -> None:
        with _named_errors(teller):
            self._all(path, teller)
        teller.pause()
        with content.opened(path, self.scope) as (store, training):
            steps(LATER)(store, training, teller)

    def _rest_and_more(self, store: ParamStoreDict, training: Training, teller: Teller) -> None:
        with _named_errors(teller):
            self.do(store, training, teller)
        with _named_errors(teller):
            store.flush()  # a second commit in the background may have failed as well
        teller.pause()
        steps(LATER)(store, training, teller)
        store.close()


@contextmanager
def _small_transactions() -> Iterator[None]:
    """Let a few MiB be as many transactions as 4 GiB are in earnest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paramstore.writer.TRANSACTION_BYTES", 1 << 19)
        patch.setattr("paramstore.jobs.BATCH_BYTES", 1 << 18)
        yield


@contextmanager
def _named_errors(teller: Teller) -> Iterator[None]:
    try:
        yield
    except ParamStoreError as error:
        teller.say("note", type(error).__name__, error)


def steps(*numbers: int) -> Do:
    """Commits, one after the other."""

    def do(store: ParamStoreDict, training: Training, teller: Teller) -> None:
        for step in numbers:
            key = Key(store._session.scope_name(), step)
            _ready(store, training, teller, key)
            store.commit(**content.about(key))
            teller.say("have", *key)

    return do


def behind(*numbers: int) -> Do:
    """Commits in the background, all asked for before the first is waited for."""

    def do(store: ParamStoreDict, training: Training, teller: Teller) -> None:
        keys = [Key(store._session.scope_name(), step) for step in numbers]
        handles = []
        for key in keys:
            _ready(store, training, teller, key)
            handles.append(store.commit(**content.about(key), wait=False, max_pending=8))
        for key, handle in zip(keys, handles, strict=True):
            handle.result()
            teller.say("have", *key)

    return do


def leave_scopes(names: Sequence[str], step: int) -> Do:
    """Commits made by leaving scopes."""

    def do(store: ParamStoreDict, training: Training, teller: Teller) -> None:
        for name in names:
            with store.scope(name):
                _ready(store, training, teller, Key(name, step))
            teller.say("have", name, step)

    return do


def new_scope(store: ParamStoreDict, training: Training, teller: Teller) -> None:
    """A fork into a scope of its own, and a commit there."""
    store.fork("side")
    steps(1)(store, training, teller)


def everything(store: ParamStoreDict, training: Training, teller: Teller) -> None:
    """A longer run: commits and scopes."""
    for step in range(3, 9):
        steps(step)(store, training, teller)
        if step % 3 == 0:
            leave_scopes(["guide", "model"], step)(store, training, teller)
    thin()(store, training, teller)
    steps(9)(store, training, teller)


def thin(*, compact: bool = False) -> Do:
    """Most snapshots are forgotten, and what they held is freed."""

    def do(store: ParamStoreDict, training: Training, teller: Teller) -> None:
        expire(store, teller, KeepLast(2) | KeepTagged())
        store.gc(compact=compact)

    return do


def expire(store: ParamStoreDict, teller: Teller, policy: Policy) -> int:
    """Let snapshots be forgotten, and say which; return how many."""
    going = [content.key_of(store.at(s)) for s in store.expire(policy, dry_run=True).expired]
    for key in going:
        teller.say("drop", *key)
    store.expire(policy)
    for key in going:
        teller.say("dropped", *key)
    return len(going)


def _ready(store: ParamStoreDict, training: Training, teller: Teller, key: Key) -> None:
    """Bring the working set to a step, and say that it will be committed."""
    if content.is_trained(key.scope):
        training.train(key.step)
    content.put(store, key)
    teller.say("try", *key)


RUNS = {
    run.name: run
    for run in (
        Run("first commit", steps(1), before=0),
        Run("small change", steps(3)),
        Run("many MiB", steps(3), scope="large", before=1),
        Run("extras and optimiser", steps(3), scope="trained"),
        Run("background", behind(3, 4)),
        Run("leaving scopes", leave_scopes(["guide", "model"], 3)),
        Run("new scope", new_scope),
        Run("WAL", steps(3, 4), journal="wal"),
        Run("WAL from nothing", steps(1), before=0, journal="wal"),
        Run("expire and gc", thin(), scope="large", before=4),
        Run("gc that compacts", thin(compact=True), before=6),
        Run("everything", everything),
    )
}
"""By name."""
