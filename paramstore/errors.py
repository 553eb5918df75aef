"""Every error that paramstore raises, grouped by what a handler would do about it.

    ParamStoreError
    ├── NotFoundError (KeyError)          ask for something that exists
    │   ├── ParamNotFoundError
    │   ├── ScopeNotFoundError
    │   ├── SnapshotNotFoundError
    │   └── TagNotFoundError
    ├── InvalidInputError (ValueError)    pass something else
    │   ├── InvalidNameError
    │   ├── InvalidReferenceError
    │   ├── InvalidValueError             a value that its constraint does not admit
    │   ├── MismatchError                 stored and live shape, dtype, constraint or names differ
    │   ├── UnknownConstraintError        (NotImplementedError) without a transform, or a spec
    │   ├── UnsupportedExtraError
    │   ├── UnsupportedFileError          a parameter file that load() refuses
    │   └── UnsupportedTensorError
    ├── UsageError (RuntimeError)         call in another order
    │   ├── ScopeError
    │   ├── StoreClosedError
    │   └── ReadOnlyError
    ├── ConflictError                     somebody else committed: fork, append or resume
    └── DatabaseError                     look at the file, the disk or the other processes
        ├── StoreBusyError                retry: the lock was held for the whole timeout
        ├── StorageError                  disk full, I/O error, no permission
        ├── NotADatabaseError
        ├── SchemaError                   older or newer than this library, or not ours
        │   ├── ForeignDatabaseError
        │   ├── SchemaTooNewError
        │   └── SchemaTooOldError
        ├── ExpiredError                  another process expired what was to be read: resume()
        └── CorruptError                  stored bytes are not what was written
            └── RestoreInterruptedError   … found after the first live tensor was overwritten

A text never holds what a terminal would act on, whatever the names in it. This module must never
import anything but the standard library and the listing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Final

from paramstore.listing import printable

LONGEST: Final = 10_000
"""Characters of a message that are shown."""


class ParamStoreError(Exception):
    """Base of everything that paramstore raises on purpose."""

    kind: ClassVar[str] = "error"
    """A stable, machine-readable word for this class of error."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument; our messages are sentences.
        text = printable(str(self.args[0])) if self.args else ""
        if len(text) <= LONGEST:
            return text
        # A damaged cell that a message quotes may be as large as its file. What it is about
        # stands before the quotation, the next step after it.
        half = LONGEST // 2
        return f"{text[:half]}… ({len(text) - 2 * half:,} characters) …{text[-half:]}"


class NotFoundError(ParamStoreError, KeyError):
    """What was asked for does not exist."""

    kind = "not-found"


class ParamNotFoundError(NotFoundError):
    """No parameter of that name."""

    kind = "param-not-found"


class ScopeNotFoundError(NotFoundError):
    """No scope of that name."""

    kind = "scope-not-found"


class SnapshotNotFoundError(NotFoundError):
    """The reference names no snapshot."""

    kind = "snapshot-not-found"


class TagNotFoundError(NotFoundError):
    """No tag of that name in the scope."""

    kind = "tag-not-found"


class InvalidInputError(ParamStoreError, ValueError):
    """An argument that can never work."""

    kind = "invalid"


class InvalidNameError(InvalidInputError):
    """A parameter, scope, tag or metric name that is not allowed."""

    kind = "invalid-name"


class InvalidReferenceError(InvalidInputError):
    """Text that is not a snapshot reference."""

    kind = "invalid-reference"


class InvalidValueError(InvalidInputError):
    """A value that cannot be a parameter, or that its constraint does not admit."""

    kind = "invalid-value"


class MismatchError(InvalidInputError):
    """What is stored and what is live do not fit together."""

    kind = "mismatch"


class UnknownConstraintError(InvalidInputError, NotImplementedError):
    """A constraint without a transform or a spec, or a spec without a constraint.

    torch raises NotImplementedError for the first, and Pyro's guides look for that one.
    """

    kind = "unknown-constraint"


class UnsupportedExtraError(InvalidInputError):
    """A value in extras or attached state that has no exact stored form."""

    kind = "unsupported-extra"


class UnsupportedFileError(InvalidInputError):
    """A parameter file that carries something other than parameters."""

    kind = "unsupported-file"


class UnsupportedTensorError(InvalidInputError):
    """A tensor layout or dtype without a stored form."""

    kind = "unsupported-tensor"


class UsageError(ParamStoreError, RuntimeError):
    """A call that is right in itself but not now."""

    kind = "usage"


class ScopeError(UsageError):
    """A scope entered twice, or from two threads."""

    kind = "scope"


class StoreClosedError(UsageError):
    """The store has been closed."""

    kind = "closed"


class ReadOnlyError(UsageError):
    """The store was opened with ``readonly=True``."""

    kind = "read-only"


class ConflictError(ParamStoreError):
    """Somebody else committed to the scope since this store last looked."""

    kind = "conflict"

    def __init__(self, scope: str, *, seen: int, found: int) -> None:
        self.scope = scope
        """The scope that both wrote to."""
        self.seen = seen
        """The head version that this store knew; 0 for none."""
        self.found = found
        """The head version in the database."""
        why = (
            "another snapshot than the one that this store knew: the scope was made anew"
            if seen == found
            else f"this store knew version {seen}: another writer committed in between"
        )
        super().__init__(
            f"scope {scope!r} is at version {found}, {why}. Nothing was written. Continue in a "
            f"scope of your own with store.fork(name), append with commit(on_conflict='append'), "
            f"or take the other writer's state with store.resume()."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_conflict, (self.scope, self.seen, self.found))


def _rebuild_conflict(scope: str, seen: int, found: int) -> ConflictError:
    return ConflictError(scope, seen=seen, found=found)


class DatabaseError(ParamStoreError):
    """The database could not do what was asked."""

    kind = "database"


class StoreBusyError(DatabaseError):
    """Another process held the database's lock for the whole timeout."""

    kind = "busy"


class StorageError(DatabaseError):
    """The file or the disk under it refused: full, unreadable, not permitted."""

    kind = "storage"


class NotADatabaseError(DatabaseError):
    """The path holds something that is not an SQLite database."""

    kind = "not-a-database"


class SchemaError(DatabaseError):
    """The tables are not those that this version of the library reads."""

    kind = "schema"


class ForeignDatabaseError(SchemaError):
    """A database of another program."""

    kind = "foreign-database"


class SchemaTooNewError(SchemaError):
    """A store written by a newer paramstore."""

    kind = "schema-too-new"


class SchemaTooOldError(SchemaError):
    """A store that has to be upgraded before this paramstore can use it."""

    kind = "schema-too-old"


class ExpiredError(DatabaseError):
    """Values that this process had still to read were expired and freed by another one.

    No KeyError: the parameter exists, and must not be taken for a new one.
    """

    kind = "expired"


class CorruptError(DatabaseError):
    """Stored bytes differ from what was written."""

    kind = "corrupt"

    def __init__(
        self, message: str, *, params: Sequence[str] = (), snapshots: Sequence[str] = ()
    ) -> None:
        self.params = tuple(params)
        """Names of the parameters that are affected, where known."""
        self.snapshots = tuple(snapshots)
        """References of the snapshots that are affected, where known."""
        super().__init__(message)


class RestoreInterruptedError(CorruptError):
    """A stored tensor vanished after a restore had begun to fill live ones.

    ``params`` names the live parameters that have already been changed.
    """

    kind = "restore-interrupted"


def warn_deprecated(method: str, instead: str) -> None:
    """Warn whoever called the method that calls this."""
    message = f"{method}() is deprecated; use {instead} instead"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
