"""One database: its connections, its transactions, and how long to wait for other processes.

Runs statements and never writes one, apart from those that open and close transactions.
"""

from __future__ import annotations

import ctypes
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from numbers import Real
from pathlib import Path
from typing import Any, Final, TypeVar, get_args
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Executable, create_engine, event, text
from sqlalchemy.pool import QueuePool, StaticPool

from paramstore.db import sqlite
from paramstore.db.border import FOREIGN, is_busy, translate
from paramstore.db.forks import GATE
from paramstore.db.place import Place
from paramstore.db.prepared import prepare
from paramstore.errors import (
    DatabaseError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    StoreClosedError,
)

PAUSE: Final = 0.001
"""Seconds, on average, between two tries to get a lock."""
POOL_SIZE: Final = 5
"""Connections kept open; more are opened when more threads read at once."""

_NBYTES: Final = text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")

_inherited: list[object] = []
"""Connections that came through a fork; never emptied, see `Database.after_fork_in_child`."""
_forked_inside: set[Path] = set()
"""Files of which this process inherited a transaction, and cannot open again."""

T = TypeVar("T")


class Database:
    """An open database with the tables of this library.

    **Threads**: any number may read and write; writers wait for each other, and in memory readers
    wait too. A fork waits until no thread is inside; in the child the object opens connections of
    its own.

    **Ownership**: owns a pool of connections until ``close``. Nobody holds a connection or a cursor
    outside ``fetch`` and ``write``: a half-read query blocks every writer of the file.

    **Durability**: when ``write`` has left without an error, its transaction survives a power cut;
    with an error, nothing of it is in the file.
    """

    def __init__(self, path: Path | None, *, mode: sqlite.Mode, timeout: float) -> None:
        """Connect to nothing yet; use `open` or `memory`."""
        self.path = path
        """The file, absolute; None in memory."""
        self.timeout = timeout
        """Seconds to wait for a lock that another process holds."""
        self._mode: sqlite.Mode = mode
        self._place = None if path is None else Place(path)
        self._closed = False
        # The one connection of a database in memory is one thread's at a time.
        self._lock = threading.RLock() if path is None else nullcontext()
        self._connections: WeakSet[sqlite3.Connection] = WeakSet()
        self._in_use: set[object] = set()
        self._readers: list[sqlite3.Connection] = []
        """Idle connections for queries; popped and appended without a lock."""
        self._value_readers: list[sqlite3.Connection] = []
        """The same for large values, which would push everything else out of their caches."""
        self._engine = self._make_engine()
        GATE.add(self)

    # -- opening and closing -------------------------------------------------------

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str],
        *,
        readonly: bool = False,
        create: bool = True,
        timeout: float = 60.0,
        journal: sqlite.Journal | None = None,
    ) -> Database:
        """Open a database, creating its file and tables where they do not exist.

        Args:
            where: a path, or SQLAlchemy's URL of an SQLite database.
            readonly: never write.
            create: whether a missing file, or one without tables, becomes a store.
            timeout: seconds to wait for a lock that another process holds.
            journal: ``wal`` or ``truncate`` changes the file; None leaves it as it is.

        Raises:
            NotFoundError: no such store, and it is not to be created.
            NotADatabaseError, ForeignDatabaseError: the file is something else.
            SchemaTooOldError, SchemaTooNewError: of another version of this library.
            SchemaError: it holds triggers, or tables or views that are not as they were made.
            StorageError: a directory, a pipe or a device, or not permitted.
            StoreBusyError: locked for the whole timeout.
            InvalidInputError: not a path, or a URL of another kind; no time, or no journal.
        """
        _check_version()
        _check_options(timeout, journal)
        path = sqlite.locate(where)
        if path is None:
            return cls.memory(timeout=timeout)
        create = create and not readonly
        check_path(path, create=create)
        database = cls(path, mode="ro" if readonly else "rwc" if create else "rw", timeout=timeout)
        try:
            database._prepare(create=create)
            if journal is not None and not readonly:
                database._set_journal(journal)
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def memory(cls, *, timeout: float = 60.0) -> Database:
        """Create a database in memory; it lives as long as the object."""
        _check_version()
        database = cls(None, mode="rwc", timeout=timeout)
        database._prepare(create=True)
        return database

    @property
    def readonly(self) -> bool:
        """Whether it refuses to write."""
        return self._mode == "ro"

    @property
    def name(self) -> str:
        """The file as error texts name it."""
        return "the database in memory" if self.path is None else repr(str(self.path))

    def close(self) -> None:
        """Close every connection; a second call does nothing."""
        with GATE, self._lock:
            self._closed = True
            self._close_readers()
            self._engine.dispose()

    def _prepare(self, *, create: bool) -> None:
        # Imported late: only this function of the engine stands above the schema.
        from paramstore.db import strangers
        from paramstore.db.migrate import prepare

        found = strangers.objects(self)
        strangers.check_tables(self.name, found)
        prepare(self, create=create)
        strangers.check_views(self.name, found)  # an older revision has other views

    def _make_engine(self) -> Engine:
        pool: dict[str, Any] = {"poolclass": StaticPool}
        if self.path is not None:
            pool = {"poolclass": QueuePool, "pool_size": POOL_SIZE, "max_overflow": -1}
        engine = create_engine("sqlite+pysqlite://", creator=self._connect, **pool)
        event.listen(engine, "begin", self._on_begin)
        event.listen(engine, "commit", self._on_commit)
        return engine

    def _connect(self) -> sqlite3.Connection:
        if self.path in _forked_inside:
            raise sqlite.forked_inside()
        connection = sqlite.connect(self.path, self._mode)
        if self._place is not None:
            self._connections.add(connection)
            try:
                self._place.opened()
            except BaseException:
                connection.close()
                raise
            if self._mode == "rwc":
                self._mode = "rw"  # a later connection must not make a file anew
        return connection

    def _set_journal(self, journal: sqlite.Journal) -> None:
        self._close_readers()  # SQLite changes it for the only connection to a file
        self.outside_transaction(lambda c: sqlite.set_pragmas(c, ("journal_mode", journal)))

    # -- reading -------------------------------------------------------------------

    def fetch(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Run one query and return all its rows; it sees everything that was committed before.

        Raises:
            StoreClosedError: after ``close``.
            StoreBusyError: a writer held the lock for the whole timeout.
            StorageError: the file was deleted or replaced since it was opened.
            DatabaseError: anything else that the database says.
        """
        query = prepare(statement)

        def attempt() -> list[Any]:
            with self._borrowed_driver(self._readers) as connection:
                return query.rows(connection, parameters or {})

        with translate(self.name):
            return self._patiently(attempt)

    def read_value(self, table: str, column: str, row_id: int) -> bytes | None:
        """Return one value of bytes by its row, None where there is none.

        SQLite's incremental I/O reads pages straight into the result, without the interpreter's
        lock; a SELECT copies a large value twice more, once with the lock held (268 MB in rows of
        1 MiB: 52 ms of CPU instead of 127).

        Raises:
            StoreClosedError, StoreBusyError, DatabaseError: as ``fetch``.
        """

        def attempt() -> bytes | None:
            with self._borrowed_driver(self._value_readers) as connection:
                return sqlite.read_value(connection, table, column, row_id)

        with translate(self.name):
            return self._patiently(attempt)

    def nbytes(self) -> int:
        """Return how many bytes of pages the database has; none of its values has more.

        Raises:
            StoreClosedError, StoreBusyError, DatabaseError: as ``fetch``.
        """
        ((found,),) = self.fetch(_NBYTES)
        return int(found)

    # -- writing -------------------------------------------------------------------

    @contextmanager
    def write(self, *, foreign_keys: bool = True) -> Iterator[Connection]:
        """Run the block in one write transaction; it commits at the end, or leaves nothing.

        Raises:
            ReadOnlyError: opened with ``readonly=True``.
            StoreClosedError: after ``close``.
            StoreBusyError: another process held the lock for the whole timeout.
            StorageError: the file was deleted or replaced since it was opened, or the disk refused.
            DatabaseError: anything else that the database says.
        """
        if self.readonly:
            raise ReadOnlyError(f"{self.name} was opened with readonly=True and cannot be written")
        with translate(self.name), ExitStack() as transaction:
            yield self._patiently(lambda: self._begin(transaction, foreign_keys=foreign_keys))

    def _begin(self, transaction: ExitStack, *, foreign_keys: bool) -> Connection:
        """Begin, and leave in ``transaction`` what ends it; nothing is held when this fails."""
        with ExitStack() as attempt:
            connection = attempt.enter_context(self._borrowed())
            connection.execution_options(write=True)
            if not foreign_keys:
                attempt.enter_context(_without_foreign_keys(_driver(connection)))
            attempt.enter_context(connection.begin())
            transaction.enter_context(attempt.pop_all())
        return connection

    def outside_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call ``work`` with the driver's connection, for what no transaction may surround.

        It is called again while another process is in the way.

        Raises:
            StoreClosedError, StoreBusyError, DatabaseError: as ``fetch``.
        """

        def attempt() -> T:
            with self._borrowed() as connection:
                return work(_driver(connection))

        with translate(self.name):
            return self._patiently(attempt)

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """Lend a connection of the pool; one that has seen an error does not come back to it."""
        with self._inside(), self._engine.connect() as connection:
            try:
                yield connection
            except FOREIGN as error:
                # Where SQLite could not open the file for writing it has opened it for reading,
                # and so it would stay when the reason is long gone.
                if self.path is not None and not is_busy(error):
                    connection.invalidate()
                raise

    @contextmanager
    def _borrowed_driver(self, idle: list[sqlite3.Connection]) -> Iterator[sqlite3.Connection]:
        """Lend a connection that only reads: SQLAlchemy's pool costs a quarter of reading 1 MiB."""
        if self.path is None:
            with self._borrowed() as connection:
                yield _driver(connection)
            return
        with self._inside():
            try:
                driver = idle.pop()
            except IndexError:
                driver = self._connect()
            yield driver
            idle.append(driver)  # not after an error: then it is closed
            if self._closed:
                self._close_readers()

    def _close_readers(self) -> None:
        for idle in (self._readers, self._value_readers):
            while idle:
                idle.pop().close()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Keep the process from forking while the block uses a connection of the pool."""
        with GATE, self._lock:
            if self._closed:
                raise StoreClosedError(f"{self.name} has been closed; open it again")
            if self._place is not None:
                self._place.check()
            user = object()
            self._in_use.add(user)
            try:
                yield
            finally:
                self._in_use.discard(user)

    def _on_begin(self, connection: Connection) -> None:
        # A query needs no BEGIN: SQLite gives it a transaction of its own, ended by its last row.
        if connection.get_execution_options().get("write"):
            driver = _driver(connection)
            driver.execute("BEGIN IMMEDIATE")
            if isinstance(driver, sqlite.Connection) and driver.log is not None:
                driver.log.opened()

    def _on_commit(self, connection: Connection) -> None:
        # A reader in another process delays the COMMIT and nothing is lost by repeating it.
        # SQLAlchemy's own commit, after this one, then finds no transaction.
        driver = _driver(connection)
        self._patiently(driver.commit)
        if self._place is not None:
            self._place.check(committed=True)
        if isinstance(driver, sqlite.Connection) and driver.log is not None:
            driver.log.check(committed=True)

    # -- waiting -------------------------------------------------------------------

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try again while another process is in the way, until the timeout."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return self._try(attempt)
            except FOREIGN as error:
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(PAUSE * (0.5 + random.random()))  # noqa: S311 — jitter

    def _try(self, attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        except FOREIGN as error:
            if not self.readonly or self.path is None or not sqlite.is_hot_journal(error):
                raise
            sqlite.roll_back(self.path)
            return attempt()

    # -- forks ---------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the idle connections, so that the child inherits none."""
        if self.path is not None:
            self._close_readers()
            self._engine.dispose()

    def after_fork_in_child(self) -> None:
        """Put what was inherited where nothing finalises it, and start with a fresh pool.

        Only a thread that forks inside its own transaction leaves a connection here. To finalise
        that would roll the parent's transaction back in the file, at the exit of the child too:
        so its reference count never reaches zero.
        """
        if self.path is None:
            return
        if self._in_use:
            _forked_inside.add(self.path)
            self._in_use.clear()
        # The list alone is emptied at the interpreter's exit.
        for connection in self._connections:
            _inherited.append(connection)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        _inherited.append(self._engine)
        self._connections = WeakSet()
        self._readers, self._value_readers = [], []
        self._engine = self._make_engine()


@contextmanager
def _without_foreign_keys(connection: sqlite3.Connection) -> Iterator[None]:
    # The pragma does nothing inside a transaction, so it surrounds it.
    connection.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        connection.execute("PRAGMA foreign_keys=ON")


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _check_options(timeout: object, journal: object) -> None:
    if not isinstance(timeout, Real) or not float(timeout) >= 0:  # "not": NaN is no time, either
        raise InvalidInputError(f"timeout is in seconds, 0 or more, got {timeout!r}")
    if journal not in (None, *get_args(sqlite.Journal)):
        raise InvalidInputError(f"journal is 'wal', 'truncate' or None, got {journal!r}")


def _check_version() -> None:
    if sqlite3.sqlite_version_info < sqlite.OLDEST:
        oldest = ".".join(map(str, sqlite.OLDEST))
        raise DatabaseError(
            f"this Python has SQLite {sqlite3.sqlite_version}; paramstore needs {oldest} or newer"
        )


def is_open_here(path: str | os.PathLike[str]) -> bool:
    """Tell whether this process has that file open as a database.

    Then nobody but SQLite may open it: closing any other descriptor drops SQLite's locks.
    """
    opened = [db.path for db in GATE.members() if db.path is not None and not db._closed]
    try:
        return any(other.samefile(path) for other in opened if other.exists())
    except OSError:  # no such file, or not to be looked at; opening it will say so
        return False


def check_path(path: Path, *, create: bool) -> None:
    """Refuse a path at which there can be no database.

    Raises:
        NotFoundError: nothing is there, and ``create`` is false.
        StorageError: a directory, a pipe or a device; or no folder for a new file.
    """
    try:
        if path.is_dir():
            raise StorageError(f"{str(path)!r} is a directory; give the path of a file in it")
        if path.exists():
            # A pipe would block for ever, and a device takes what is written and keeps nothing.
            if not path.is_file():
                raise StorageError(f"{str(path)!r} is no file but a pipe, a socket or a device")
            return
        if not create:
            raise NotFoundError(f"there is no store at {str(path)!r}")
        if not path.parent.is_dir():
            raise StorageError(
                f"{str(path)!r} cannot be created: there is no folder {str(path.parent)!r}"
            )
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be looked at: {error}") from error
