"""One store for the parameters of PyTorch and Pyro experiments, with their history by name.

The public names live here and are imported when first used, so that ``paramstore.db`` and the
command line work without torch; nothing is defined here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paramstore.autosave import Autosave
    from paramstore.background import PendingCommit
    from paramstore.constraints import register_constraint
    from paramstore.damage import Loss, Problem, Salvaged, Verified
    from paramstore.db.salvage import salvage
    from paramstore.default import (
        clear_param_store,
        get_param_store,
        module,
        open,  # noqa: A004 - the name of the verb
        param,
        set_param_store,
    )
    from paramstore.diff import Change, Diff
    from paramstore.errors import (
        ConflictError,
        CorruptError,
        DatabaseError,
        ExpiredError,
        ForeignDatabaseError,
        InvalidInputError,
        InvalidNameError,
        InvalidReferenceError,
        InvalidValueError,
        MismatchError,
        NotADatabaseError,
        NotFoundError,
        ParamNotFoundError,
        ParamStoreError,
        ReadOnlyError,
        RestoreInterruptedError,
        SchemaError,
        SchemaTooNewError,
        SchemaTooOldError,
        ScopeError,
        ScopeNotFoundError,
        SnapshotNotFoundError,
        StorageError,
        StoreBusyError,
        StoreClosedError,
        TagNotFoundError,
        UnknownConstraintError,
        UnsupportedExtraError,
        UnsupportedFileError,
        UnsupportedTensorError,
        UsageError,
    )
    from paramstore.history import History, Log
    from paramstore.names import (
        module_from_param_with_module_name,
        normalize_param_name,
        param_with_module_name,
        user_param_name,
    )
    from paramstore.reader import SnapshotView
    from paramstore.retention import (
        Expired,
        KeepBest,
        KeepEvery,
        KeepLast,
        KeepTagged,
        KeepWithin,
        Kept,
        Policy,
    )
    from paramstore.snapshot import ParamVersion, ScopeInfo, Snapshot, Statistics
    from paramstore.store import ParamStoreDict
    from paramstore.usage import Collected, ScopeUsage, Usage
    from paramstore.working_set import StateDict

__version__ = "0.1.0"

__all__ = [
    "Autosave",
    "Change",
    "Collected",
    "ConflictError",
    "CorruptError",
    "DatabaseError",
    "Diff",
    "Expired",
    "ExpiredError",
    "ForeignDatabaseError",
    "History",
    "InvalidInputError",
    "InvalidNameError",
    "InvalidReferenceError",
    "InvalidValueError",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepTagged",
    "KeepWithin",
    "Kept",
    "Log",
    "Loss",
    "MismatchError",
    "NotADatabaseError",
    "NotFoundError",
    "ParamNotFoundError",
    "ParamStoreDict",
    "ParamStoreError",
    "ParamVersion",
    "PendingCommit",
    "Policy",
    "Problem",
    "ReadOnlyError",
    "RestoreInterruptedError",
    "Salvaged",
    "SchemaError",
    "SchemaTooNewError",
    "SchemaTooOldError",
    "ScopeError",
    "ScopeInfo",
    "ScopeNotFoundError",
    "ScopeUsage",
    "Snapshot",
    "SnapshotNotFoundError",
    "SnapshotView",
    "StateDict",
    "Statistics",
    "StorageError",
    "StoreBusyError",
    "StoreClosedError",
    "TagNotFoundError",
    "UnknownConstraintError",
    "UnsupportedExtraError",
    "UnsupportedFileError",
    "UnsupportedTensorError",
    "Usage",
    "UsageError",
    "Verified",
    "__version__",
    "clear_param_store",
    "get_param_store",
    "module",
    "module_from_param_with_module_name",
    "normalize_param_name",
    "open",
    "param",
    "param_with_module_name",
    "register_constraint",
    "salvage",
    "set_param_store",
    "user_param_name",
]

_HOMES = {
    "autosave": ("Autosave",),
    "background": ("PendingCommit",),
    "constraints": ("register_constraint",),
    "damage": ("Loss", "Problem", "Salvaged", "Verified"),
    "db.salvage": ("salvage",),
    "default": (
        "clear_param_store",
        "get_param_store",
        "module",
        "open",
        "param",
        "set_param_store",
    ),
    "diff": ("Change", "Diff"),
    "history": ("History", "Log"),
    "names": (
        "module_from_param_with_module_name",
        "normalize_param_name",
        "param_with_module_name",
        "user_param_name",
    ),
    "reader": ("SnapshotView",),
    "retention": (
        "Expired",
        "KeepBest",
        "KeepEvery",
        "KeepLast",
        "KeepTagged",
        "KeepWithin",
        "Kept",
        "Policy",
    ),
    "snapshot": ("ParamVersion", "ScopeInfo", "Snapshot", "Statistics"),
    "store": ("ParamStoreDict",),
    "usage": ("Collected", "ScopeUsage", "Usage"),
    "working_set": ("StateDict",),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    # PEP 562. The value is kept, so that this runs once per name.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'paramstore' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"paramstore.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
