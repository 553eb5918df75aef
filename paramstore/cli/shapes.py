"""The JSON that listings print, field by field: a contract, written down in docs/commands.md.

Makes plain dictionaries of plain values; must never leave a field out because it is empty.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from paramstore.diff import Diff
from paramstore.snapshot import ParamVersion, ScopeInfo, Snapshot, Statistics

_NONE = Statistics()


def time(moment: datetime) -> str:
    """Write a time as the database does: UTC, ``2026-01-31T12:00:00.000000Z``."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def snapshot(found: Snapshot) -> dict[str, Any]:
    """Return the fields of a snapshot."""
    return {
        "ref": found.ref,
        "scope": found.scope,
        "version": found.version,
        "parent": found.parent,
        "step": found.step,
        "created_at": time(found.created_at),
        "message": found.message,
        "kind": found.kind,
        "metrics": dict(found.metrics),
        "tags": list(found.tags),
        "params": found.params,
        "changed": found.changed,
        "nbytes": found.nbytes,
        "added_nbytes": found.added_nbytes,
        "origin": found.origin,
    }


def statistics(found: Statistics | None, value: object) -> dict[str, Any]:
    """Return the statistics of one value; all null where none were taken."""
    taken = found or _NONE
    return {
        "norm": taken.norm,
        "mean": taken.mean,
        "std": taken.std,
        "min": taken.min,
        "max": taken.max,
        "nan_count": None if found is None else taken.nan_count,
        "inf_count": None if found is None else taken.inf_count,
        "value": value,
        "unconstrained": taken.unconstrained,
    }


def param_version(found: ParamVersion) -> dict[str, Any]:
    """Return the fields of one version of a parameter."""
    return {
        "name": found.name,
        "scope": found.scope,
        "version": found.version,
        "since_version": found.since_version,
        "until_version": found.until_version,
        "until_step": found.until_step,
        "removed": found.removed,
        "step": found.step,
        "created_at": time(found.created_at),
        "kind": found.kind,
        "requires_grad": found.requires_grad,
        "dtype": found.dtype,
        "shape": list(found.shape),
        "nbytes": found.nbytes,
        "constraint": json.loads(found.constraint),
        "digest": found.digest,
        **statistics(found.statistics, found.value),
    }


def scope(found: ScopeInfo, snapshots: int, newest: str | None) -> dict[str, Any]:
    """Return the fields of a scope."""
    return {
        "scope": found.name,
        "head_version": found.head_version,
        "snapshots": snapshots,
        "created_at": time(found.created_at),
        "newest_at": newest,
    }


def diff(found: Diff) -> dict[str, Any]:
    """Return the fields of a difference."""
    return {
        "before": snapshot(found.before),
        "after": snapshot(found.after),
        "added": list(found.added),
        "removed": list(found.removed),
        "changed": [
            {
                "name": change.name,
                "what": change.what,
                "norm": change.norm,
                "relative": change.relative,
                "cosine": change.cosine,
            }
            for change in found.changed
        ],
        "unchanged": found.unchanged,
    }
