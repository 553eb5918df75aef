from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import exc

from paramstore import errors
from paramstore.db.border import translate, translated


def subclasses(root: type[BaseException]) -> list[type[BaseException]]:
    return [root, *(found for direct in root.__subclasses__() for found in subclasses(direct))]


RESULT_CODES = {
    name: code
    for name, code in vars(sqlite3).items()
    if name.startswith("SQLITE_") and name.count("_") == 1 and isinstance(code, int) and code < 27
}
# Answers and questions of an authorizer, whose numbers overlap with those of the errors.
NOT_ERRORS = {"SQLITE_OK", "SQLITE_DENY", "SQLITE_IGNORE"} | {
    f"SQLITE_{action}"
    for action in ("DELETE", "INSERT", "PRAGMA", "READ", "SELECT", "TRANSACTION", "UPDATE",
                   "ATTACH", "DETACH", "REINDEX", "ANALYZE")
}  # fmt: skip

CLASSES = {
    "SQLITE_PERM": errors.StorageError,
    "SQLITE_BUSY": errors.StoreBusyError,
    "SQLITE_LOCKED": errors.StoreBusyError,
    "SQLITE_NOMEM": errors.StorageError,
    "SQLITE_READONLY": errors.StorageError,
    "SQLITE_IOERR": errors.StorageError,
    "SQLITE_CORRUPT": errors.CorruptError,
    "SQLITE_FULL": errors.StorageError,
    "SQLITE_CANTOPEN": errors.StorageError,
    "SQLITE_PROTOCOL": errors.StoreBusyError,
    "SQLITE_TOOBIG": errors.StorageError,
    "SQLITE_NOLFS": errors.StorageError,
    "SQLITE_AUTH": errors.StorageError,
    "SQLITE_FORMAT": errors.CorruptError,
    "SQLITE_NOTADB": errors.NotADatabaseError,
    "SQLITE_INTERNAL": errors.DatabaseError,
    "SQLITE_ABORT": errors.DatabaseError,
    "SQLITE_INTERRUPT": errors.DatabaseError,
    "SQLITE_ERROR": errors.DatabaseError,
    "SQLITE_NOTFOUND": errors.DatabaseError,
    "SQLITE_EMPTY": errors.DatabaseError,
    "SQLITE_SCHEMA": errors.DatabaseError,
    "SQLITE_CONSTRAINT": errors.DatabaseError,
    "SQLITE_MISMATCH": errors.DatabaseError,
    "SQLITE_MISUSE": errors.DatabaseError,
    "SQLITE_RANGE": errors.DatabaseError,
}


def error_of(code: int, name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("what SQLite said")
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


def wrapped(error: BaseException) -> exc.DBAPIError:
    return exc.OperationalError("SELECT secret", {"a": 1}, error)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_result_code_has_the_class_that_says_what_to_do(name: str) -> None:
    code = RESULT_CODES[name]
    for extended in (code, code | 5 << 8):
        for error in (error_of(extended, name), wrapped(error_of(extended, name))):
            found = translated(error, "'run.db'")
            assert type(found) is CLASSES[name]
            assert "run.db" in str(found)
            assert name in str(found)
            assert "secret" not in str(found)


def test_no_result_code_is_missing() -> None:
    assert RESULT_CODES.keys() - NOT_ERRORS <= CLASSES.keys()


def some_error(kind: type[BaseException]) -> BaseException:
    if issubclass(kind, exc.StatementError):
        return kind("what it said", "SELECT 1", (), ValueError("why"))
    error = kind.__new__(kind)
    error.args = ("what it said",)
    return error


def foreign_classes() -> list[type[BaseException]]:
    sqlalchemy = subclasses(exc.SQLAlchemyError)
    return [*sqlalchemy, *subclasses(sqlite3.Error), *subclasses(sqlite3.Warning), OSError]


@pytest.mark.parametrize("kind", foreign_classes(), ids=lambda kind: kind.__name__)
def test_no_foreign_error_crosses_the_border(kind: type[BaseException]) -> None:
    error = some_error(kind)
    with pytest.raises(errors.ParamStoreError) as caught, translate("'run.db'"):
        raise error
    assert caught.value.__cause__ is error
    assert "run.db" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device"), errors.StorageError),
        (PermissionError(13, "Permission denied"), errors.StorageError),
        (exc.TimeoutError("the pool is empty"), errors.StoreBusyError),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), errors.StoreClosedError),
        (sqlite3.OperationalError("Could not decode to UTF-8 column 'name'"), errors.CorruptError),
        (sqlite3.InterfaceError("bad parameter"), errors.DatabaseError),
        (exc.ResourceClosedError("This Connection is closed"), errors.DatabaseError),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_errors_without_a_result_code_are_told_apart(
    error: Exception, kind: type[errors.ParamStoreError]
) -> None:
    assert type(translated(error, "here")) is kind


def test_errors_that_are_not_foreign_pass_unchanged() -> None:
    ours = errors.ConflictError("main", seen=1, found=2)
    for error in (ValueError("x"), KeyError("x"), KeyboardInterrupt(), ours):
        with pytest.raises(type(error)) as caught, translate("here"):
            raise error
        assert caught.value is error
