"""The views: a public contract, so that any SQL client reads a run without this package.

Text per dialect and nothing else; like the tables, the migrations create them.
"""

from __future__ import annotations

from typing import Final

# What the two dialects say differently. `IS NOT` because SQLite knows IS DISTINCT FROM since 3.39.
_WORDS: Final = {
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
  snapshots.id AS snapshot_id,
  snapshots.origin AS origin
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


def create_views(dialect: str) -> list[str]:
    """Return the statements that create the views.

    Args:
        dialect: SQLAlchemy's name of it, ``sqlite`` or ``postgresql``.
    """
    words = _WORDS[dialect]
    fill = {
        "differs_from": words["differs_from"],
        "tags": words["list"].format("tags.name"),
        "snapshot_digest": words["hex"].format("snapshots.digest"),
        "blob_digest": words["hex"].format("blobs.digest"),
    }
    return [view.format(**fill) for view in (_SNAPSHOTS, _HISTORY, _SIZES, _METRICS, _TAGS)]
