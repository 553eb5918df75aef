"""Other processes that use a store at the same time, and what has to be true of it afterwards.

Starts forks and waits for them; knows nothing of what they do.
"""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from paramstore.testing import invariants


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a fork of this process; 0 when it returned."""
    child = os.fork()
    if child == 0:
        end_with(function)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end_with(function: Callable[[], object]) -> NoReturn:
    """Run a function and end this process, with status 0 when it returned."""
    status = 1
    try:
        function()
        status = 0
    except BaseException:  # noqa: BLE001  # the parent sees the status
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def at_once(count: int, work: Callable[[Path, Any, int], None], path: Path) -> None:
    """Run so many processes, each of which gets the path, a barrier for all, and its number."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)
    workers = [context.Process(target=work, args=(path, barrier, n)) for n in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * count


def is_sound(path: Path) -> None:
    """Let SQLite and our own invariants look at the whole file."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    invariants.check(path)
