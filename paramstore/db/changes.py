"""Tags and names: the only things about a snapshot that can change once it is stored.

Each function checks before it writes, inside a transaction; must never touch a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select

from paramstore.db import owners
from paramstore.db.catalogue import set_tags
from paramstore.db.manifest import entry_line
from paramstore.db.reading import intact
from paramstore.db.records import Entry
from paramstore.db.schema import extras, params, scopes, snapshot_params, snapshots, tags
from paramstore.errors import (
    InvalidNameError,
    ParamNotFoundError,
    ScopeNotFoundError,
    SnapshotNotFoundError,
    TagNotFoundError,
)
from paramstore.refs import check_param_name, check_scope_name, check_tag_name, suggest
from paramstore.snapshot import Snapshot

_SCOPE_ID = select(scopes.c.id).where(scopes.c.name == bindparam("scope"))
_TAGGED = (
    select(snapshots.c.id, snapshots.c.version)
    .join_from(tags, snapshots, snapshots.c.id == tags.c.snapshot_id)
    .where(tags.c.scope_id == bindparam("scope_id"), tags.c.name == bindparam("name"))
)
_TAG_NAMES = select(tags.c.name).where(tags.c.scope_id == bindparam("scope_id"))
_PARAMS = select(params.c.name, params.c.id).where(params.c.scope_id == bindparam("scope_id"))
_HOLDERS = (
    select(snapshots.c.id, snapshots.c.version)
    .join_from(snapshots, snapshot_params, snapshot_params.c.snapshot_id == snapshots.c.id)
    .where(snapshots.c.scope_id == bindparam("scope_id"))
    .where(snapshot_params.c.param_id == bindparam("param_id"))
    .order_by(snapshots.c.version)
)


def tag(connection: Connection, snapshot: Snapshot, name: str, *, move: bool) -> None:
    """Let a tag point to a snapshot.

    Raises:
        InvalidNameError: not a tag's name, or, without ``move``, the tag of another snapshot.
        SnapshotNotFoundError: the snapshot is gone.
    """
    check_tag_name(name)
    scope_id = _scope_id(connection, snapshot.scope)
    here = (snapshots.c.id == snapshot.id) & (snapshots.c.scope_id == scope_id)
    if connection.execute(select(snapshots.c.id).where(here)).first() is None:
        raise SnapshotNotFoundError(f"{snapshot.ref} is gone: it has been expired")
    at = connection.execute(_TAGGED, {"scope_id": scope_id, "name": name}).first()
    if at is not None and at.id != snapshot.id and not move:
        raise InvalidNameError(
            f"tag {name!r} of scope {snapshot.scope!r} points to {snapshot.scope}@{at.version}; "
            f"pass move=True to let it point to {snapshot.ref}"
        )
    set_tags(connection, scope_id, snapshot.id, [name])


def untag(connection: Connection, scope: str, name: str) -> None:
    """Remove a tag; its snapshot stays.

    Raises:
        ScopeNotFoundError, TagNotFoundError: there is none.
    """
    scope_id = _scope_id(connection, scope)
    here = (tags.c.scope_id == scope_id) & (tags.c.name == check_tag_name(name))
    if connection.execute(tags.delete().where(here)).rowcount == 0:
        names = connection.execute(_TAG_NAMES, {"scope_id": scope_id}).scalars().all()
        raise TagNotFoundError(f"scope {scope!r} has no tag {name!r}{suggest(name, names)}")


def rename(connection: Connection, scope: str, old: str, new: str) -> None:
    """Give a parameter another name in every snapshot of a scope, which it was checked in before.

    Raises:
        ScopeNotFoundError, ParamNotFoundError: there is none.
        InvalidNameError: not a name, or one that a snapshot of the scope has already.
        CorruptError: a snapshot that holds it is damaged.
    """
    check_param_name(new)
    scope_id = _scope_id(connection, scope)
    known = _known(connection, scope_id)
    holders = _holders(connection, scope_id, known.get(old))
    if not holders:
        raise ParamNotFoundError(
            f"no snapshot of scope {scope!r} has a parameter {old!r}{suggest(old, known)}"
        )
    if old == new:
        return
    if taken := _holders(connection, scope_id, known.get(new)):
        raise InvalidNameError(
            f"{new!r} is a parameter of {scope}@{taken[-1].version} already; choose another name"
        )
    for holder in holders:
        _rename_in(connection, holder.id, f"{scope}@{holder.version}", old, new)
    # The row of a name that no snapshot has any more.
    connection.execute(params.delete().where(params.c.id == known.get(new)))
    connection.execute(params.update().where(params.c.id == known[old]).values(name=new))


def _rename_in(connection: Connection, snapshot_id: int, ref: str, old: str, new: str) -> None:
    """Write the states of optimisers and the digest that a snapshot will have, which is intact."""
    rows, entries = intact(connection, snapshot_id, ref)
    own = extras.c.snapshot_id == snapshot_id
    found = list[tuple[str, str, str]]()
    for kind, name, text in rows.extras:
        skeleton = owners.renamed(text, old, new) if kind == "state" else text
        found.append((kind, name, skeleton))
        if skeleton != text:
            here = own & (extras.c.kind == kind) & (extras.c.name == name)
            connection.execute(extras.update().where(here).values(skeleton=skeleton))
    after = [_with_name(e, new) if e.name == old else e for e in entries]
    digest = rows._replace(extras=found).digest(after)
    connection.execute(
        snapshots.update().where(snapshots.c.id == snapshot_id).values(digest=digest)
    )


def _with_name(entry: Entry, name: str) -> Entry:
    line = entry_line(name, entry.digest, entry.spec, entry.kind, requires_grad=entry.requires_grad)
    return entry._replace(name=name, line=line)


def _scope_id(connection: Connection, scope: str) -> int:
    row = connection.execute(_SCOPE_ID, {"scope": check_scope_name(scope)}).first()
    if row is None:
        raise ScopeNotFoundError(f"there is no scope {scope!r}")
    return int(row.id)


def _known(connection: Connection, scope_id: int) -> dict[str, int]:
    rows: Sequence[Any] = connection.execute(_PARAMS, {"scope_id": scope_id}).all()
    return dict(rows)


def _holders(connection: Connection, scope_id: int, param_id: int | None) -> Sequence[Any]:
    if param_id is None:
        return []
    return connection.execute(_HOLDERS, {"scope_id": scope_id, "param_id": param_id}).all()
