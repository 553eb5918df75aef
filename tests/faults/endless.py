"""A run without an end that does everything to one file, and the process that it lives in.

Commits, scopes, expire, gc, backup and verify, each said; must be killed, and never stops.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import content
import runs
from content import Training
from disturb import Disturbed, killed_after
from ledger import Teller

import paramstore
from paramstore import KeepEvery, KeepLast, ParamStoreDict

KEPT = KeepLast(8) | KeepEvery(steps=500)


@dataclass
class Pace:
    """How much of one core a process may use."""

    share: float = 1.0
    _began: float = 0.0
    _used: float = 0.0

    def keep(self) -> None:
        """Sleep until no more than that share has been used since the last call."""
        used, now = time.process_time() - self._used, time.monotonic()
        if self._began:
            time.sleep(max(0.0, used / self.share - (now - self._began)))
        self._used, self._began = time.process_time(), time.monotonic()


@contextmanager
def living(path: Path, scope: str, pace: Pace) -> Iterator[Disturbed]:
    """Open the store, and yield the endless part."""
    with content.opened(path, scope) as (store, training):
        yield lambda teller: _live(store, training, teller, path, pace)


def _live(
    store: ParamStoreDict, training: Training, teller: Teller, path: Path, pace: Pace
) -> NoReturn:
    turn = random.randrange(60)  # so that short lives come to everything, too
    while True:
        turn += 1
        step = content.next_key(store).step
        commits = runs.behind(step, step + 1) if turn % 3 == 0 else runs.steps(step)
        commits(store, training, teller)
        if turn % 5 == 0:
            _visit(store, training, teller)
        if turn % 11 == 0:
            teller.say("note", "expired", runs.expire(store, teller, KEPT))
        if turn % 17 == 0:
            teller.say("note", "freed", store.gc(compact=turn % 5 == 0).nbytes)
        if turn % 23 == 0:
            verified = store.verify(sample=0.5)
            assert verified.ok, verified
            teller.say("note", "verified", 1)
        if turn % 29 == 0:
            _back_up(store, path.with_name(f"backup-{os.getpid()}-{turn}.db"))
            teller.say("note", "backups", 1)
        pace.keep()


def _visit(store: ParamStoreDict, training: Training, teller: Teller) -> None:
    with store.scope("guide"):
        step = content.next_key(store).step
    runs.leave_scopes(["guide"], step)(store, training, teller)


def _back_up(store: ParamStoreDict, path: Path) -> None:
    """Make a copy, look at it, and remove it."""
    store.backup(path)
    scope = content.next_key(store).scope
    with closing(paramstore.open(path, scope=scope, readonly=True)) as copy:
        content.check(copy.at(scope))
    path.unlink()


def one_life(path: Path, scope: str, seconds: float, *, share: float = 1.0) -> list[str]:
    """Let one process live on a file for some seconds, kill it, and return what it said."""
    outcome = killed_after(partial(living, path, scope, Pace(share)), seconds)
    assert outcome.killed, outcome
    return outcome.lines
