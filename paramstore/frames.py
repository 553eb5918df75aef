"""Logs and histories as pandas data frames, every column of one type.

Must never ask a database; pandas is not a dependency of this library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from paramstore.errors import UsageError
from paramstore.snapshot import ParamVersion, Snapshot, Statistics

try:
    import pandas as pd
except ModuleNotFoundError as error:
    raise UsageError(
        "to_pandas() needs pandas, which is not installed: pip install pandas"
    ) from error

if TYPE_CHECKING:
    from pandas import DataFrame

_TYPES: Final = {
    "step": "Int64",
    "until_step": "Int64",
    "nan_count": "Int64",
    "inf_count": "Int64",
    "created_at": "datetime64[us, UTC]",
    "message": "string",
    "origin": "string",
    "parent": "string",
    "id": "int64",
    "version": "int64",
    "since_version": "int64",
    "until_version": "int64",
    "params": "int64",
    "changed": "int64",
    "nbytes": "int64",
    "added_nbytes": "int64",
    "removed": "bool",
    "requires_grad": "bool",
    "unconstrained": "boolean",
}
_TEXTS: Final = ("scope", "name", "kind", "dtype", "constraint", "digest")
_NUMBERS: Final = ("norm", "mean", "std", "min", "max")


def log_frame(log: Sequence[Snapshot]) -> DataFrame:
    """Return a row per snapshot, and a column per metric."""
    names = [field.name for field in fields(Snapshot) if field.name not in ("metrics", "extras")]
    columns = {name: _column(name, [getattr(row, name) for row in log]) for name in names}
    metrics = dict.fromkeys(metric for row in log for metric in row.metrics)
    for metric in sorted(metrics):
        values = [row.metrics.get(metric, math.nan) for row in log]
        columns[f"metrics.{metric}"] = pd.Series(values, dtype="float64")
    return pd.DataFrame(columns)


def history_frame(history: Sequence[ParamVersion]) -> DataFrame:
    """Return a row per version, the statistics among its columns."""
    names = [field.name for field in fields(ParamVersion) if field.name != "statistics"]
    columns = {name: _column(name, [getattr(row, name) for row in history]) for name in names}
    for name in (field.name for field in fields(Statistics)):
        columns[name] = _column(name, [_statistic(row, name) for row in history])
    return pd.DataFrame(columns)


def _statistic(row: ParamVersion, name: str) -> Any:
    if name == "value":
        return row.value
    return None if row.statistics is None else getattr(row.statistics, name)


def _column(name: str, values: list[Any]) -> Any:
    if name == "value":
        return _values(values)
    if name in _NUMBERS:
        return pd.Series([math.nan if v is None else v for v in values], dtype="float64")
    if name in _TEXTS:
        return pd.Series(values, dtype="string")
    return pd.Series(values, dtype=_TYPES.get(name, "object"))


def _values(values: list[Any]) -> Any:
    """Whole numbers and booleans exactly; what is missing among floats is NaN."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int}:
        small = all(value is None or abs(value) < 2**63 for value in values)
        return pd.Series(values, dtype="Int64" if small else "object")
    if kinds <= {float, int}:
        return pd.Series([math.nan if v is None else v for v in values], dtype="float64")
    return pd.Series(values, dtype="complex128" if kinds == {complex} else "object")
