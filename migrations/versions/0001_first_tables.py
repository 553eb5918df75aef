"""The first tables and views.

Carries its own frozen tables: it must keep doing what it does when the package's have moved on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A 64-bit key; on SQLite only INTEGER is the table's own key instead of a second tree.
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

metadata = sa.MetaData(
    naming_convention={
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

scopes = sa.Table(
    "scopes",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("head_version", Id, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)

snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("scope_id", Id, sa.ForeignKey("scopes.id"), nullable=False),
    sa.Column("version", Id, nullable=False),
    sa.Column("parent_id", Id),
    sa.Column("step", Id),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("message", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("params", Id, nullable=False),
    sa.Column("changed", Id, nullable=False),
    sa.Column("nbytes", Id, nullable=False),
    sa.Column("added_nbytes", Id, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("scope_id", "version"),
    sqlite_autoincrement=True,
)

metrics = sa.Table(
    "metrics",
    metadata,
    sa.Column("snapshot_id", Id, sa.ForeignKey("snapshots.id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Double),  # NULL is NaN
    sqlite_with_rowid=False,
)

tags = sa.Table(
    "tags",
    metadata,
    sa.Column("scope_id", Id, sa.ForeignKey("scopes.id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("snapshot_id", Id, nullable=False),
    sqlite_with_rowid=False,
)

params = sa.Table(
    "params",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("scope_id", Id, sa.ForeignKey("scopes.id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.UniqueConstraint("scope_id", "name"),
    sqlite_autoincrement=True,
)

# No index but the key, here and on snapshot_params: a commit must only append.
param_versions = sa.Table(
    "param_versions",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("param_id", Id, nullable=False),
    sa.Column("version", Id, nullable=False),
    sa.Column("blob_id", Id, nullable=False),
    sa.Column("constraint_id", Id, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("requires_grad", sa.Boolean, nullable=False),
    sa.Column("shape", sa.Text, nullable=False),
    sa.Column("norm", sa.Double),
    sa.Column("mean", sa.Double),
    sa.Column("std", sa.Double),
    sa.Column("min", sa.Double),
    sa.Column("max", sa.Double),
    sa.Column("nan_count", Id),  # NULL where no statistics were taken
    sa.Column("inf_count", Id),
    sa.Column("value", sa.Text),
    sa.Column("unconstrained", sa.Boolean),
    sqlite_autoincrement=True,
)

snapshot_params = sa.Table(
    "snapshot_params",
    metadata,
    sa.Column("snapshot_id", Id, sa.ForeignKey("snapshots.id"), primary_key=True),
    sa.Column("param_id", Id, primary_key=True),
    sa.Column("param_version_id", Id, nullable=False),
    sqlite_with_rowid=False,
)

constraints = sa.Table(
    "constraints",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("spec", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

constraint_blobs = sa.Table(
    "constraint_blobs",
    metadata,
    sa.Column("constraint_id", Id, primary_key=True),
    sa.Column("seq", Id, primary_key=True),
    sa.Column("blob_id", Id, nullable=False),
    sqlite_with_rowid=False,
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("nbytes", Id, nullable=False),
    sa.Column("dtype", sa.Text, nullable=False),
    sa.Column("shape", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
sa.Index(
    "uq_blobs_digest",
    blobs.c.digest,
    unique=True,
    sqlite_where=sa.text("nbytes >= 65536"),
    postgresql_where=sa.text("nbytes >= 65536"),
)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("id", Id, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

extras = sa.Table(
    "extras",
    metadata,
    sa.Column("snapshot_id", Id, sa.ForeignKey("snapshots.id"), primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("skeleton", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

extra_blobs = sa.Table(
    "extra_blobs",
    metadata,
    sa.Column("snapshot_id", Id, sa.ForeignKey("snapshots.id"), primary_key=True),
    sa.Column("seq", Id, primary_key=True),
    sa.Column("blob_id", Id, nullable=False),
    sqlite_with_rowid=False,
)

# What the two dialects say differently. `IS NOT` because SQLite knows IS DISTINCT FROM since 3.39.
_WORDS = {
    "sqlite": {
        "differs_from": "IS NOT",
        "hex": "lower(hex({}))",
        "list": "group_concat({}, ', ')",
    },
    "postgresql": {
        "differs_from": "IS DISTINCT FROM",
        "hex": "encode({}, 'hex')",
        "list": "string_agg({0}, ', ' ORDER BY {0})",
    },
}

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
  {snapshot_digest} AS digest,
  snapshots.id AS snapshot_id
FROM scopes CROSS JOIN snapshots
WHERE snapshots.scope_id = scopes.id"""

# One row wherever a value differs from that in the previous snapshot that still exists, a return
# after absence included. CROSS JOIN keeps SQLite from choosing another order of the tables, and
# the correlated subquery, unlike a window function, lets LIMIT stop early.
_HISTORY = """\
CREATE VIEW v_history AS
SELECT
  scopes.name AS scope,
  params.name AS name,
  snapshots.version AS version,
  snapshots.step AS step,
  snapshots.created_at AS created_at,
  param_versions.version AS since_version,
  param_versions.kind AS kind,
  param_versions.requires_grad AS requires_grad,
  blobs.dtype AS dtype,
  param_versions.shape AS shape,
  blobs.nbytes AS nbytes,
  constraints.spec AS constraint_spec,
  {blob_digest} AS digest,
  param_versions.norm AS norm,
  param_versions.mean AS mean,
  param_versions.std AS std,
  param_versions.min AS min,
  param_versions.max AS max,
  param_versions.nan_count AS nan_count,
  param_versions.inf_count AS inf_count,
  param_versions.value AS value,
  param_versions.unconstrained AS unconstrained,
  snapshots.id AS snapshot_id,
  param_versions.id AS param_version_id,
  blobs.id AS blob_id
FROM scopes CROSS JOIN params CROSS JOIN snapshots CROSS JOIN snapshot_params
CROSS JOIN param_versions CROSS JOIN blobs CROSS JOIN constraints
WHERE params.scope_id = scopes.id
  AND snapshots.scope_id = scopes.id
  AND snapshot_params.snapshot_id = snapshots.id
  AND snapshot_params.param_id = params.id
  AND param_versions.id = snapshot_params.param_version_id
  AND blobs.id = param_versions.blob_id
  AND constraints.id = param_versions.constraint_id
  AND snapshot_params.param_version_id {differs_from} (
    SELECT before.param_version_id FROM snapshot_params AS before
    WHERE before.param_id = params.id AND before.snapshot_id = (
      SELECT earlier.id FROM snapshots AS earlier
      WHERE earlier.scope_id = scopes.id AND earlier.version < snapshots.version
      ORDER BY earlier.version DESC LIMIT 1))"""

_SIZES = """\
CREATE VIEW v_sizes AS
SELECT
  scopes.name AS scope,
  snapshots.version AS version,
  params.name AS name,
  param_versions.kind AS kind,
  blobs.dtype AS dtype,
  param_versions.shape AS shape,
  blobs.nbytes AS nbytes,
  param_versions.version AS since_version,
  snapshots.id AS snapshot_id,
  blobs.id AS blob_id
FROM scopes CROSS JOIN snapshots CROSS JOIN snapshot_params
CROSS JOIN params CROSS JOIN param_versions CROSS JOIN blobs
WHERE snapshots.scope_id = scopes.id
  AND snapshot_params.snapshot_id = snapshots.id
  AND params.id = snapshot_params.param_id
  AND param_versions.id = snapshot_params.param_version_id
  AND blobs.id = param_versions.blob_id"""


def upgrade() -> None:
    connection = op.get_bind()
    metadata.create_all(connection)
    for view in create_views(connection.dialect.name):
        op.execute(view)


def downgrade() -> None:
    raise CommandError("there is nothing before the first tables")


def create_views(dialect: str) -> list[str]:
    words = _WORDS[dialect]
    fill = {
        "differs_from": words["differs_from"],
        "tags": words["list"].format("tags.name"),
        "snapshot_digest": words["hex"].format("snapshots.digest"),
        "blob_digest": words["hex"].format("blobs.digest"),
    }
    return [view.format(**fill) for view in (_SNAPSHOTS, _HISTORY, _SIZES)]
