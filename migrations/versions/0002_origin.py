"""Who wrote a snapshot; views of metrics and tags.

Carries its own frozen tables: it must keep doing what it does when the package's have moved on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

snapshots = sa.table("snapshots", sa.column("origin", sa.Text))

# What the two dialects say differently.
_WORDS = {
    "sqlite": {"hex": "lower(hex({}))", "list": "group_concat({}, ', ')"},
    "postgresql": {"hex": "encode({}, 'hex')", "list": "string_agg({0}, ', ' ORDER BY {0})"},
}

_ORIGIN = ",\n  snapshots.origin AS origin"

_SNAPSHOTS = """\
CREATE VIEW v_snapshots AS
SELECT
  scopes.name AS scope,
  snapshots.version AS version,
  snapshots.step AS step,
  snapshots.created_at AS created_at,
  (SELECT parent_scopes.name || '@' || parents.version
   FROM snapshots AS parents JOIN scopes AS parent_scopes ON parent_scopes.id = parents.scope_id
   WHERE parents.id = snapshots.parent_id) AS parent,
  (SELECT {tags} FROM tags
   WHERE tags.scope_id = snapshots.scope_id AND tags.snapshot_id = snapshots.id) AS tags,
  snapshots.message AS message,
  snapshots.kind AS kind,
  snapshots.params AS params,
  snapshots.changed AS changed,
  snapshots.nbytes AS nbytes,
  snapshots.added_nbytes AS added_nbytes,
  {digest} AS digest,
  snapshots.id AS snapshot_id{origin}
FROM scopes CROSS JOIN snapshots
WHERE snapshots.scope_id = scopes.id"""

_METRICS = """\
CREATE VIEW v_metrics AS
SELECT
  scopes.name AS scope,
  snapshots.version AS version,
  snapshots.step AS step,
  snapshots.created_at AS created_at,
  metrics.name AS name,
  metrics.value AS value,
  snapshots.id AS snapshot_id
FROM scopes CROSS JOIN snapshots CROSS JOIN metrics
WHERE snapshots.scope_id = scopes.id
  AND metrics.snapshot_id = snapshots.id"""

_TAGS = """\
CREATE VIEW v_tags AS
SELECT
  scopes.name AS scope,
  tags.name AS name,
  snapshots.version AS version,
  snapshots.step AS step,
  snapshots.created_at AS created_at,
  snapshots.id AS snapshot_id
FROM scopes CROSS JOIN tags CROSS JOIN snapshots
WHERE tags.scope_id = scopes.id
  AND snapshots.id = tags.snapshot_id"""


def upgrade() -> None:
    op.execute("DROP VIEW IF EXISTS v_snapshots")
    # Appends the column and moves no row: their digests do not cover it.
    op.add_column("snapshots", sa.Column("origin", sa.Text))
    for view in (_v_snapshots(_ORIGIN), _METRICS, _TAGS):
        op.execute(view)


def downgrade() -> None:
    named = sa.select(sa.func.count()).where(snapshots.c.origin.is_not(None))
    if count := op.get_bind().execute(named).scalar_one():
        raise CommandError(
            f"revision {down_revision!r} has no column 'origin', and it says here who wrote a "
            f"snapshot, {count} times. Restore the copy that was made before the upgrade, or give "
            f"that up first: UPDATE snapshots SET origin = NULL"
        )
    for view in ("v_tags", "v_metrics", "v_snapshots"):
        op.execute(f"DROP VIEW IF EXISTS {view}")
    # Before the column goes, so that a view of the user's that reads this one stays whole.
    op.execute(_v_snapshots(""))
    op.drop_column("snapshots", "origin")


def _v_snapshots(origin: str) -> str:
    words = _WORDS[op.get_bind().dialect.name]
    return _SNAPSHOTS.format(
        tags=words["list"].format("tags.name"),
        digest=words["hex"].format("snapshots.digest"),
        origin=origin,
    )
