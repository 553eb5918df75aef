"""The module-level store and its functions, as Pyro has them, and ``open``.

Delegates to one store; must never choose a file that nobody named.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore.db.sqlite import Journal
from paramstore.errors import InvalidInputError
from paramstore.reader import MapLocation
from paramstore.restore import Names
from paramstore.session import Reference
from paramstore.store import M, ParamStoreDict

_URL = "PARAMSTORE_URL"
_current: ParamStoreDict | None = None


def open(  # noqa: A001  # the verb that users of gzip, shelve and zarr expect here
    path_or_url: str | os.PathLike[str] | None = None,
    *,
    scope: str = "main",
    start: Reference | None = None,
    readonly: bool = False,
    create: bool = True,
    map_location: MapLocation = None,
    validate: bool | None = None,
    statistics: bool = True,
    timeout: float = 60,
    journal: Journal | None = None,
) -> ParamStoreDict:
    """Open a store; created when new, at the newest snapshot of ``scope`` otherwise.

    Nothing but names is read: a tensor is read when it is first touched.

    Args:
        path_or_url: A path is an SQLite file; text with ``://`` is a URL that SQLAlchemy serves.
            Default: the environment's ``PARAMSTORE_URL``.
        scope: The named line of snapshots to continue.
        start: Where a scope without snapshots begins, e.g. ``"main@12"``.
        readonly: Refuse everything that writes; the file itself is opened read-only.
        create: Whether a missing file is made.
        map_location: Where tensors are put that no live tensor takes in place, as in
            ``torch.load``.
        validate: Whether values are checked against their constraint; default: as
            ``torch.distributions``.
        statistics: Whether a commit describes what changed (norm, mean, …).
        timeout: Seconds to wait for another process's lock.
        journal: ``"wal"`` for a new file that many processes read while it is written.

    Raises:
        NotADatabaseError, SchemaError, StorageError: the file cannot be used; the message says
            why and what to do.
        InvalidInputError: no path given and no ``PARAMSTORE_URL``, or an argument that can never
            work; the message names it.
    """
    if path_or_url is None:
        path_or_url = os.environ.get(_URL)
        if not path_or_url:
            raise InvalidInputError(
                "paramstore.open() needs a path, or the environment variable PARAMSTORE_URL; for "
                "a store in memory only call paramstore.ParamStoreDict()"
            )
    return ParamStoreDict(
        path_or_url,
        scope=scope,
        start=start,
        readonly=readonly,
        create=create,
        map_location=map_location,
        validate=validate,
        statistics=statistics,
        timeout=timeout,
        journal=journal,
    )


def get_param_store() -> ParamStoreDict:
    """The module-level store: the one last set, that of ``PARAMSTORE_URL``, or a private one.

    Two scripts in one folder must not share a scope by accident, so there is no default file.
    """
    global _current
    if _current is None:
        _current = open() if os.environ.get(_URL) else ParamStoreDict()
    return _current


class set_param_store:  # noqa: N801  # used like a function; with ``with`` it undoes itself
    """Make ``store`` the module-level one; in a ``with`` statement only for the block.

    >>> import paramstore
    >>> with paramstore.set_param_store(paramstore.ParamStoreDict()) as store:
    ...     assert paramstore.get_param_store() is store
    """

    def __init__(self, store: ParamStoreDict) -> None:
        global _current
        if not isinstance(store, ParamStoreDict):
            raise InvalidInputError(f"expected a ParamStoreDict, got {store!r}")
        self._store, self._before = store, _current
        _current = store

    def __enter__(self) -> ParamStoreDict:
        return self._store

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _current
        _current = self._before


def clear_param_store() -> None:
    """Empty the working set of the module-level store; see :meth:`ParamStoreDict.clear`."""
    get_param_store().clear()


def param(
    name: str,
    init_tensor: Tensor | Callable[[], Tensor] | None = None,
    constraint: Constraint = constraints.real,
    event_dim: int | None = None,
) -> Tensor:
    """A parameter of the module-level store; see :meth:`ParamStoreDict.get_param`."""
    return get_param_store().get_param(name, init_tensor, constraint, event_dim)


def module(
    name: str,
    nn_module: M,
    update_module_params: bool = False,  # noqa: ARG001, FBT001, FBT002  # Pyro's signature
    *,
    strict: bool = True,
    exclude: Names = None,
) -> M:
    """Bind a module to the module-level store; see :meth:`ParamStoreDict.module`.

    Stored values always go into the module's own tensors, with ``update_module_params`` and
    without it.
    """
    return get_param_store().module(name, nn_module, strict=strict, exclude=exclude)
