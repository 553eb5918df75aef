"""Rows that stand for lost ones, so that what refers to them can be kept.

Before a salvaged database is mended; each says in its text that it is none that was committed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from blake3 import blake3
from sqlalchemy import Connection, func, select

from paramstore.db import bulk
from paramstore.db.reading import inside, read_rows
from paramstore.db.schema import (
    constraints,
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
)

UNKNOWN_TIME: Final = "1970-01-01T00:00:00.000000Z"
REAL: Final = '{"kind":"real"}'
_MAIN: Final = "main"
_TRIED: Final = 20  # snapshots; one that is whole is enough
_PLAIN: Final = (
    "real", "positive", "softplus_positive", "unit_interval", "simplex", "nonnegative",
    "real_vector", "lower_cholesky", "softplus_lower_cholesky", "unit_lower_cholesky",
    "corr_cholesky", "corr_matrix", "positive_definite", "ordered_vector",
    "positive_ordered_vector", "sphere",
)  # fmt: skip
"""Kinds of constraints without arguments."""
STATISTICS: Final = (
    "norm", "mean", "std", "min", "max", "nan_count", "inf_count", "value", "unconstrained",
)  # fmt: skip
"""The columns of a value's statistics."""
_LONGEST_SPEC: Final = 400
"""Bytes of a spec of which one byte is sought: some 0.1 s of hashing."""

_LOST_PARAMS = (
    select(snapshot_params.c.param_id, func.min(snapshots.c.scope_id))
    .join_from(snapshot_params, snapshots, snapshots.c.id == snapshot_params.c.snapshot_id)
    .where(snapshot_params.c.param_id.not_in(select(params.c.id)))
    .group_by(snapshot_params.c.param_id)
)
_LOST_CONSTRAINTS = select(param_versions.c.constraint_id).except_(select(constraints.c.id))
# The scope and the newest value of a snapshot of which only the parameters are left.
_LOST_SNAPSHOTS = (
    select(
        snapshot_params.c.snapshot_id,
        func.min(params.c.scope_id).label("scope_id"),
        func.max(param_versions.c.version).label("version"),
    )
    .join_from(snapshot_params, params, params.c.id == snapshot_params.c.param_id)
    .join(param_versions, param_versions.c.id == snapshot_params.c.param_version_id)
    .where(snapshot_params.c.snapshot_id.not_in(select(snapshots.c.id)))
    .group_by(snapshot_params.c.snapshot_id)
    .order_by(snapshot_params.c.snapshot_id)
)
_VALUES_OF_NO_SNAPSHOT = (
    select(params.c.scope_id, param_versions.c.version)
    .distinct()
    .join_from(param_versions, params, params.c.id == param_versions.c.param_id)
    .where(
        param_versions.c.id.in_(
            select(param_versions.c.id).except_(select(snapshot_params.c.param_version_id))
        )
    )
    .order_by(params.c.scope_id, param_versions.c.version)
)


def put_placeholders(connection: Connection, *, suspicious: bool) -> list[str]:
    """Let every row that is referred to exist; return what was lost, a sentence each.

    Args:
        connection: inside a write transaction.
        suspicious: whether rows may be missing without a trace.
    """
    notes = [*_constraints(connection), *_snapshots(connection, suspicious=suspicious)]
    return [*notes, *_scopes(connection), *_params(connection)]


def _scopes(connection: Connection) -> Iterator[str]:
    known = set(connection.execute(select(scopes.c.id)).scalars())
    for column in (snapshots.c.scope_id, params.c.scope_id):
        for scope_id in connection.execute(select(column).distinct()).scalars().all():
            if scope_id not in known:
                known.add(scope_id)
                name = f"lost scope {scope_id}"
                bulk.insert(connection, scopes, [(scope_id, name, 0, UNKNOWN_TIME)])
                if not _is_main(connection, scope_id):
                    yield f"the name of a scope is lost; it is {name!r} now"


def _is_main(connection: Connection, scope_id: int) -> bool:
    """Give a scope the name that most have, if the digest of a snapshot agrees."""
    if connection.execute(select(scopes.c.id).where(scopes.c.name == _MAIN)).first():
        return False
    here = scopes.update().where(scopes.c.id == scope_id)
    before = connection.execute(select(scopes.c.name).where(scopes.c.id == scope_id)).scalar()
    connection.execute(here.values(name=_MAIN))
    of_scope = select(snapshots.c.id).where(snapshots.c.scope_id == scope_id).limit(_TRIED)
    for snapshot_id in connection.execute(of_scope).scalars().all():
        rows = read_rows(inside(connection), snapshot_id)
        if rows is not None and rows.checked() is not None:
            return True
    connection.execute(here.values(name=before))
    return False


def _params(connection: Connection) -> Iterator[str]:
    for param_id, scope_id in connection.execute(_LOST_PARAMS).all():
        name = f"lost name {param_id}"
        bulk.insert(connection, params, [(param_id, scope_id, name)])
        yield f"the name of a parameter is lost; it is {name!r} now"


# -- constraints -------------------------------------------------------------------


def _constraints(connection: Connection) -> Iterator[str]:
    """Put right what can be; what had a constraint that is lost has none from now on.

    Nearly all parameters of a store share one. Where that was none, the digests of the snapshots
    agree again.
    """
    lost = connection.execute(_LOST_CONSTRAINTS).scalars().all()
    for row in connection.execute(select(constraints)).all():
        if blake3(row.spec.encode()).digest() == row.digest:
            continue
        spec = _guess(row.spec, row.digest)
        here = constraints.c.id == row.id
        if spec is None:
            lost = [*lost, row.id]
            connection.execute(constraints.delete().where(here))
        else:
            connection.execute(constraints.update().where(here).values(spec=spec))
    if lost:
        real = _real(connection)
        # They were of the constrained value.
        values = {**dict.fromkeys(STATISTICS), "constraint_id": real}
        for some in bulk.batched(lost, bulk.VARIABLES):
            chosen = param_versions.c.constraint_id.in_(some)
            connection.execute(param_versions.update().where(chosen).values(**values))
    for row_id in lost:
        yield (
            f"constraint {row_id} is lost: values that had it are given unconstrained, and have "
            f"no statistics"
        )


def _real(connection: Connection) -> int:
    """Return the row of no constraint at all."""
    digest = blake3(REAL.encode()).digest()
    here = constraints.c.digest == digest
    found = connection.execute(select(constraints.c.id).where(here)).scalar()
    if found is None:
        (found,) = bulk.next_ids(connection, constraints, 1)
        bulk.insert(connection, constraints, [(found, digest, REAL)])
    return int(found)


def _guess(spec: str, digest: bytes) -> str | None:
    """Find the spec of a digest: one of the plain ones, or this with one byte put right."""
    for kind in _PLAIN:
        if blake3(f'{{"kind":"{kind}"}}'.encode()).digest() == digest:
            return f'{{"kind":"{kind}"}}'
    data = bytearray(spec.encode())
    if len(data) > _LONGEST_SPEC:
        return None
    for position, before in enumerate(data):
        for byte in range(128):  # specs are ASCII
            data[position] = byte
            if blake3(data).digest() == digest:
                return data.decode()
        data[position] = before
    return None


# -- snapshots ---------------------------------------------------------------------


def _snapshots(connection: Connection, *, suspicious: bool) -> Iterator[str]:
    """Make snapshots for parameters, and for values, whose own are lost."""
    of_scope: dict[int, dict[int, int]] = defaultdict(dict)
    for row in connection.execute(select(snapshots)).all():
        of_scope[row.scope_id][row.version] = row.id
    taken = {row_id for rows in of_scope.values() for row_id in rows.values()}
    for row in connection.execute(_LOST_SNAPSHOTS).all():
        version = _free_version(of_scope[row.scope_id], row.snapshot_id, row.version)
        if version is not None:
            yield _make(connection, row.snapshot_id, row.scope_id, version)
            of_scope[row.scope_id][version] = row.snapshot_id
            taken.add(row.snapshot_id)
    heads = {row.id: row.head_version for row in connection.execute(select(scopes)).all()}
    for scope_id, version in connection.execute(_VALUES_OF_NO_SNAPSHOT).all():
        rows = of_scope[scope_id]
        # Values of a snapshot that was expired wait for gc; the newest is never expired.
        if version in rows or not (suspicious or version >= heads.get(scope_id, 0)):
            continue
        row_id = _free_id(rows, taken, version)
        if row_id is not None:
            yield _make(connection, row_id, scope_id, version)
            rows[version] = row_id
            taken.add(row_id)


def _make(connection: Connection, snapshot_id: int, scope_id: int, version: int) -> str:
    numbers = dict.fromkeys(("params", "changed", "nbytes", "added_nbytes"), 0)
    connection.execute(
        snapshots.insert().values(
            id=snapshot_id,
            scope_id=scope_id,
            version=version,
            created_at=UNKNOWN_TIME,
            kind="commit",
            digest=b"",
            **numbers,
        )
    )
    return f"the row of a snapshot is lost, maybe that of version {version}"


def _free_version(rows: Mapping[int, int], row_id: int, version: int) -> int | None:
    """Find a version for a lost snapshot, between those of the rows around it."""
    first = max((v for v, i in rows.items() if i < row_id), default=0) + 1
    end = min((v for v, i in rows.items() if i > row_id), default=first + 1_000_000)
    return next((v for v in range(max(first, version), end) if v not in rows), None)


def _free_id(rows: Mapping[int, int], taken: Sequence[int] | set[int], version: int) -> int | None:
    """Find a row for a lost snapshot, between those of the versions around it."""
    first = max((i for v, i in rows.items() if v < version), default=0) + 1
    end = min((i for v, i in rows.items() if v > version), default=max(taken, default=0) + 2)
    return next((i for i in range(first, end) if i not in taken), None)
