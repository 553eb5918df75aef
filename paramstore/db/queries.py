"""Questions about snapshots, scopes and the history of a name.

Reads and never writes; every answer is a plain value.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from numbers import Integral
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    Double,
    Executable,
    Integer,
    Text,
    bindparam,
    cast,
    column,
    false,
    func,
    null,
    select,
    table,
    true,
    union_all,
)

from paramstore.db.blobs import parse_shape
from paramstore.db.cells import Cells
from paramstore.db.engine import Database
from paramstore.db.reading import Fetch
from paramstore.db.schema import Id, metrics, params, scopes, snapshots, tags
from paramstore.db.spans import Span, spans
from paramstore.errors import (
    CorruptError,
    InvalidInputError,
    ParamNotFoundError,
    ScopeNotFoundError,
    SnapshotNotFoundError,
    TagNotFoundError,
)
from paramstore.refs import Ref, check_param_name, check_scope_name, suggest
from paramstore.snapshot import INTERRUPTED, ParamVersion, ScopeInfo, Snapshot, Statistics

_ALL: Final = 2**63 - 1  # as LIMIT: both dialects take it, and only SQLite takes -1

_parents = snapshots.alias("parents")
_parent_scopes = scopes.alias("parent_scopes")
_SNAPSHOTS = (
    select(
        snapshots,
        scopes.c.name.label("scope"),
        _parent_scopes.c.name.label("parent_scope"),
        _parents.c.version.label("parent_version"),
    )
    .join_from(snapshots, scopes)
    .outerjoin(_parents, _parents.c.id == snapshots.c.parent_id)
    .outerjoin(_parent_scopes, _parent_scopes.c.id == _parents.c.scope_id)
)
_OF_SCOPE = _SNAPSHOTS.where(scopes.c.name == bindparam("scope")).order_by(
    snapshots.c.version.desc()
)
_LOG = _OF_SCOPE.limit(bindparam("limit"))
_HEAD = _OF_SCOPE.add_columns(scopes.c.head_version).limit(1)
_BY_VERSION = _OF_SCOPE.where(snapshots.c.version == bindparam("version"))
# What an exception left behind may be half a step: only its version, or a tag, leads there.
_WHOLE = snapshots.c.kind != INTERRUPTED
_LATEST = _OF_SCOPE.where(_WHOLE).limit(1)
_BY_STEP = _OF_SCOPE.where(snapshots.c.step == bindparam("step"), _WHOLE).limit(1)
_BY_TAG = _OF_SCOPE.join(
    tags, (tags.c.scope_id == scopes.c.id) & (tags.c.snapshot_id == snapshots.c.id)
).where(tags.c.name == bindparam("tag"))
_BY_METRIC = (
    _SNAPSHOTS.join(metrics, metrics.c.snapshot_id == snapshots.c.id)
    .where(scopes.c.name == bindparam("scope"), metrics.c.name == bindparam("metric"))
    .where(metrics.c.value.is_not(None), _WHOLE)
    .limit(1)
)
_BEST = {
    "min": _BY_METRIC.order_by(metrics.c.value, snapshots.c.version.desc()),
    "max": _BY_METRIC.order_by(metrics.c.value.desc(), snapshots.c.version.desc()),
}

# Both in one statement: each costs as much as ten of these rows.
_METRICS_AND_TAGS = union_all(
    select(metrics.c.snapshot_id, metrics.c.name, metrics.c.value, false().label("is_tag"))
    .join_from(snapshots, metrics, metrics.c.snapshot_id == snapshots.c.id)
    .where(snapshots.c.scope_id == bindparam("scope_id"))
    .where(snapshots.c.version.between(bindparam("first"), bindparam("last"))),
    select(tags.c.snapshot_id, tags.c.name, cast(null(), Double), true()).where(
        tags.c.scope_id == bindparam("scope_id")
    ),
)
_METRIC_NAMES = (
    select(metrics.c.name)
    .distinct()
    .join_from(snapshots, metrics, metrics.c.snapshot_id == snapshots.c.id)
    .join(scopes)
    .where(scopes.c.name == bindparam("scope"))
)
_HEAD_VERSION = select(scopes.c.head_version).where(scopes.c.name == bindparam("scope"))
# What a damaged page hides from one of these two, the other has: the rows themselves, and the index
# of their names. The concatenation keeps SQLite from using that.
_newest = select(func.max(snapshots.c.version)).where(snapshots.c.scope_id == scopes.c.id)
_SCOPES = select(
    scopes.c.name,
    scopes.c.head_version,
    scopes.c.created_at,
    _newest.scalar_subquery().label("newest"),
).order_by(scopes.c.id)
_SCOPE_NAMES = select(scopes.c.name).order_by(scopes.c.name)
_SAME_SCOPE = select(scopes.c.head_version).where(scopes.c.name.concat("") == bindparam("scope"))
_PARAM_NAMES = (
    select(params.c.name).join_from(scopes, params).where(scopes.c.name == bindparam("scope"))
)
_TAG_NAMES = select(tags.c.name).join_from(scopes, tags).where(scopes.c.name == bindparam("scope"))

_HISTORY_COLUMNS: Final[dict[str, Any]] = {
    "scope": Text, "name": Text, "version": Id, "step": Id, "created_at": Text, "since_version": Id,
    "kind": Text, "requires_grad": Integer, "dtype": Text, "shape": Text, "nbytes": Id,
    "constraint_spec": Text, "digest": Text, "norm": Double, "mean": Double, "std": Double,
    "min": Double, "max": Double, "nan_count": Id, "inf_count": Id, "value": Text,
    "unconstrained": Integer, "param_version_id": Id,
}  # fmt: skip
_v_history = table("v_history", *(column(*typed) for typed in _HISTORY_COLUMNS.items()))
HISTORY = (
    select(_v_history)
    .where(_v_history.c.scope == bindparam("scope"), _v_history.c.name == bindparam("name"))
    .order_by(_v_history.c.version.desc())
    .limit(bindparam("limit"))
)

_SNAPSHOT_CELLS: Final = Cells(_SNAPSHOTS)
_HISTORY_CELLS: Final = Cells(HISTORY)
_SCOPE_CELLS: Final = Cells(_SCOPES)


# -- scopes ------------------------------------------------------------------------


def list_scopes(database: Database) -> list[ScopeInfo]:
    """Return all scopes, sorted by name.

    Raises:
        CorruptError: the tables contradict each other about them.
    """
    for _ in range(10):  # another process may make a scope between the two queries
        rows = database.fetch(_SCOPES)
        names = {name for (name,) in database.fetch(_SCOPE_NAMES)}
        strange = names ^ {row.name for row in rows}
        strange |= {row.name for row in rows if row.newest != row.head_version}
        if not strange:
            return sorted(map(_scope_info, rows), key=attrgetter("name"))
    raise CorruptError(
        f"{database.name}: what is stored about these scopes contradicts itself: "
        f"{_listed(sorted(map(str, strange)))}. Salvage the file, or restore it from a backup"
    )


def _scope_info(row: Any) -> ScopeInfo:
    _SCOPE_CELLS.check([row])
    return ScopeInfo(name=row.name, head_version=row.head_version, created_at=_time(row.created_at))


def head_version(database: Database, scope: str) -> int:
    """Return the version of the newest snapshot of a scope; 0 where there is none."""
    rows = database.fetch(_HEAD_VERSION, {"scope": check_scope_name(scope)})
    return rows[0].head_version if rows else 0


# -- snapshots ---------------------------------------------------------------------


def head(database: Database, scope: str) -> Snapshot | None:
    """Return the newest snapshot of a scope; None where there is none.

    Raises:
        CorruptError: the tables contradict each other about it.
    """
    key = {"scope": check_scope_name(scope)}
    for _ in range(2):  # another process may commit the first between the two queries
        rows = database.fetch(_HEAD, key)
        if rows and rows[0].version == rows[0].head_version:
            return _snapshots(database.fetch, rows)[0]
        # A run that was taken for a new one would begin again beside what is there.
        if not rows and not (
            database.fetch(_HEAD_VERSION, key) or database.fetch(_SAME_SCOPE, key)
        ):
            return None
    found = f"{scope}@{rows[0].version}" if rows else "nothing"
    raise CorruptError(
        f"{database.name}: the newest snapshot of scope {scope!r} cannot be found: its tables lead "
        f"to {found}, which is not its head. Look at others by version, as in "
        f"store.at('{scope}@1'), salvage the file, or restore it from a backup",
        snapshots=[found] if rows else [],
    )


def latest(database: Database, scope: str) -> Snapshot | None:
    """Return the newest snapshot of a scope that no exception left behind; None without one.

    Raises:
        CorruptError: the tables contradict each other about the newest.
    """
    newest = head(database, scope)
    if newest is None or newest.kind != INTERRUPTED:
        return newest
    return _first(database, _LATEST, scope=scope)


def log(database: Database, scope: str, limit: int | None) -> list[Snapshot]:
    """Return the snapshots of a scope, newest first.

    Raises:
        ScopeNotFoundError: no such scope.
    """
    rows = database.fetch(_LOG, {"scope": check_scope_name(scope), "limit": _limit(limit)})
    if not rows:
        _check_scope(database, scope)
    return _snapshots(database.fetch, rows)


def snapshots_of(fetch: Fetch, scope: str) -> list[Snapshot]:
    """Return all snapshots of a scope, newest first; inside a transaction, too."""
    return _snapshots(fetch, fetch(_LOG, {"scope": scope, "limit": _ALL}))


def best(database: Database, scope: str, metric: str, mode: str) -> Snapshot:
    """Return the snapshot with the smallest or largest metric, NaN left out; of equals the newest.

    Raises:
        ScopeNotFoundError: no such scope.
        SnapshotNotFoundError: no snapshot of it has that metric as a number.
        InvalidInputError: ``mode`` is neither ``min`` nor ``max``.
    """
    if mode not in _BEST:
        raise InvalidInputError(f"mode is 'min' or 'max', got {mode!r}")
    known = {"scope": check_scope_name(scope)}
    found = _first(database, _BEST[mode], **known, metric=check_param_name(metric, "metric"))
    if found is None:
        _check_scope(database, scope)
        names = sorted(str(name) for (name,) in database.fetch(_METRIC_NAMES, known))
        raise SnapshotNotFoundError(
            f"no snapshot of scope {scope!r} has a number as metric {metric!r}"
            f"{suggest(metric, names)}; its metrics: {_listed(names)}"
        )
    return found


def resolve(database: Database, ref: Ref, scope: str) -> Snapshot:
    """Return the snapshot that a reference means, ``scope`` being the current one.

    Raises:
        ScopeNotFoundError, SnapshotNotFoundError, TagNotFoundError: there is none; the text
            suggests what there is.
    """
    name = check_scope_name(scope if ref.scope is None else ref.scope)
    if ref.version is not None:
        found = _first(database, _BY_VERSION, scope=name, version=ref.version)
    elif ref.tag is not None:
        found = _first(database, _BY_TAG, scope=name, tag=ref.tag)
    elif ref.step is not None:
        found = _first(database, _BY_STEP, scope=name, step=ref.step)
    else:
        found = latest(database, name)
    if found is None:
        _check_scope(database, name, current=scope)
        raise _nothing_there(database, ref, name)
    return found


def _first(database: Database, statement: Executable, **parameters: object) -> Snapshot | None:
    found = _snapshots(database.fetch, database.fetch(statement, parameters))
    return found[0] if found else None


def _snapshots(fetch: Fetch, rows: Sequence[Any]) -> list[Snapshot]:
    """Make snapshots of rows of one scope, in their order."""
    if not rows:
        return []
    _SNAPSHOT_CELLS.check(rows)
    versions = [row.version for row in rows]
    span = {"scope_id": rows[0].scope_id, "first": min(versions), "last": max(versions)}
    of_metrics: dict[int, dict[str, float]] = defaultdict(dict)
    of_tags: dict[int, list[str]] = defaultdict(list)
    for snapshot_id, name, value, is_tag in fetch(_METRICS_AND_TAGS, span):
        if not isinstance(name, str) or not isinstance(value, float | int | None):
            raise CorruptError(f"{name!r:.99}: {value!r:.99} is in the database, and no metric")
        if is_tag:
            of_tags[snapshot_id].append(name)
        else:
            of_metrics[snapshot_id][name] = math.nan if value is None else value
    return [
        _snapshot(row, of_metrics.get(row.id, {}), sorted(of_tags.get(row.id, ()))) for row in rows
    ]


def _snapshot(row: Any, found: dict[str, float], names: list[str]) -> Snapshot:
    parent = None if row.parent_scope is None else f"{row.parent_scope}@{row.parent_version}"
    return Snapshot(
        id=row.id,
        scope=row.scope,
        version=row.version,
        parent=parent,
        step=row.step,
        created_at=_time(row.created_at),
        message=row.message,
        kind=row.kind,
        metrics=found,
        tags=tuple(names),
        params=row.params,
        changed=row.changed,
        nbytes=row.nbytes,
        added_nbytes=row.added_nbytes,
        origin=row.origin,
    )


# -- one parameter -----------------------------------------------------------------


def history(database: Database, scope: str, name: str, limit: int | None) -> list[ParamVersion]:
    """Return the versions of a parameter, oldest first; the last ``limit`` of them.

    Raises:
        ScopeNotFoundError: no such scope.
        ParamNotFoundError: no snapshot of the scope has that parameter.
    """
    known = {"scope": check_scope_name(scope), "name": check_param_name(name)}
    rows = database.fetch(HISTORY, known | {"limit": _limit(limit)})
    if not rows and limit != 0:
        _check_scope(database, scope)
        names = [str(found) for (found,) in database.fetch(_PARAM_NAMES, {"scope": scope})]
        raise ParamNotFoundError(
            f"no snapshot of scope {scope!r} has a parameter {name!r}{suggest(name, names)}"
        )
    _HISTORY_CELLS.check(rows)
    rows.reverse()
    kept = spans(database, rows)
    return [_param_version(row, kept.get(row.version)) for row in rows]


def _param_version(row: Any, span: Span | None) -> ParamVersion:
    (
        scope, name, version, step, created_at, since_version, kind, requires_grad, dtype, shape,
        nbytes, constraint, digest, *statistics, _,
    ) = row  # fmt: skip
    until = span or Span(version, step, removed=False)
    return ParamVersion(
        name=name,
        scope=scope,
        version=version,
        step=step,
        created_at=_time(created_at),
        since_version=since_version,
        until_version=until.version,
        until_step=until.step,
        removed=until.removed,
        kind=kind,
        requires_grad=bool(requires_grad),
        dtype=dtype,
        shape=parse_shape(shape),
        nbytes=nbytes,
        constraint=constraint,
        digest=digest,
        statistics=_statistics(*statistics),
    )


def _statistics(
    norm: float | None,
    mean: float | None,
    std: float | None,
    least: float | None,
    most: float | None,
    nan_count: int | None,
    inf_count: int | None,
    value: str | None,
    unconstrained: int | None,
) -> Statistics | None:
    if nan_count is None or inf_count is None:
        return None
    return Statistics(
        norm=norm,
        mean=mean,
        std=std,
        min=least,
        max=most,
        nan_count=nan_count,
        inf_count=inf_count,
        value=value,
        unconstrained=bool(unconstrained),
    )


# -- what is missing ---------------------------------------------------------------


def _check_scope(database: Database, name: str, *, current: str | None = None) -> None:
    """Raise where there is no such scope, with what the caller may have meant."""
    existing = [scope.name for scope in list_scopes(database)]
    if name in existing:
        return
    if current is not None and _first(database, _BY_TAG, scope=current, tag=name):
        hint = f"; {name!r} is a tag of scope {current!r}: write '@{name}'"
    else:
        hint = suggest(name, existing)
    raise ScopeNotFoundError(
        f"{database.name} has no scope {name!r}{hint}; its scopes: {_listed(existing)}"
    )


def _nothing_there(
    database: Database, ref: Ref, scope: str
) -> SnapshotNotFoundError | TagNotFoundError:
    if ref.tag is not None:
        names = sorted(str(name) for (name,) in database.fetch(_TAG_NAMES, {"scope": scope}))
        return TagNotFoundError(
            f"scope {scope!r} has no tag {ref.tag!r}{suggest(ref.tag, names)}; its tags: "
            f"{_listed(names)}"
        )
    newest = head_version(database, scope)
    if ref.step is not None:
        return SnapshotNotFoundError(
            f"scope {scope!r} has no snapshot of step {ref.step}; its newest is {scope}@{newest}, "
            f"store.log() lists them"
        )
    if ref.version is None:
        return SnapshotNotFoundError(
            f"scope {scope!r} has only what exceptions left behind; its newest is "
            f"{scope}@{newest}, name it by its version"
        )
    gone = ref.version <= newest
    why = "it has been expired" if gone else f"its newest is {scope}@{newest}"
    return SnapshotNotFoundError(f"there is no snapshot {scope}@{ref.version}: {why}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:10])) + (" …" if len(names) > 10 else "")
    return shown or "none"


def _limit(limit: object) -> int:
    if limit is None:
        return _ALL
    if not isinstance(limit, Integral) or limit < 0:
        raise InvalidInputError(f"limit counts from 0, got {limit!r}")
    return min(int(limit), _ALL)


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise CorruptError(f"{text!r} in the database is not a time") from error
