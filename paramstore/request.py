"""What a caller says about a snapshot, checked before anything is written.

Plain values; must never look at the working set or the database.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from torch import Tensor

from paramstore.errors import InvalidInputError
from paramstore.refs import check_param_name, check_tag_name, is_encodable

OnConflict = Literal["raise", "append"]
OnFull = Literal["block", "raise"]


class About(TypedDict, total=False):
    """The arguments of ``ParamStoreDict.commit``, where they are described."""

    step: int | None
    message: str | None
    metrics: Mapping[str, float] | None
    tags: Iterable[str] | None
    extras: Mapping[str, object] | None
    on_conflict: OnConflict


class AboutLater(About, total=False):
    """Those that a commit with ``wait=False`` has besides."""

    max_pending: int
    on_full: OnFull


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller says about a snapshot."""

    step: int | None = None
    message: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Sequence[str] = ()
    extras: Mapping[str, object] = field(default_factory=dict)
    append: bool = False
    """Commit although another writer moved the head of the scope."""
    kind: str = "commit"
    """What made it: ``commit``, or ``interrupted``."""

    @classmethod
    def checked(
        cls,
        step: int | None,
        message: str | None,
        metrics: Mapping[str, float] | None,
        tags: Iterable[str] | None,
        extras: Mapping[str, object] | None,
        on_conflict: str,
        kind: str = "commit",
    ) -> Request:
        """Check what a caller says, before anything is written.

        Raises:
            InvalidInputError, InvalidNameError: names the argument and what it should be.
        """
        if on_conflict not in ("raise", "append"):
            raise InvalidInputError(f"on_conflict is 'raise' or 'append', got {on_conflict!r}")
        metrics, extras = _by_name("metric", metrics), _by_name("extra", extras)
        return cls(
            step=None if step is None else _integer("step", step),
            message=None if message is None else _text("message", message),
            metrics={name: _number(name, value) for name, value in metrics.items()},
            tags=[check_tag_name(name) for name in _names("tags", tags)],
            extras=dict(extras),
            append=on_conflict == "append",
            kind=kind,
        )


def check_queue(max_pending: int, on_full: OnFull) -> None:
    """Check what limits the commits with ``wait=False``.

    Raises:
        InvalidInputError: names the argument and what it should be.
    """
    if _integer("max_pending", max_pending) < 1:
        raise InvalidInputError(f"max_pending is 1 or more, got {max_pending}")
    if on_full not in ("block", "raise"):
        raise InvalidInputError(f"on_full is 'block' or 'raise', got {on_full!r}")


def _by_name(what: str, values: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InvalidInputError(
            f"{what}s is a dictionary by name, such as {what}s={{'loss': 0.3}}, got {values!r}"
        )
    for name in values:
        check_param_name(name, what)
    return values


def _names(what: str, names: Iterable[str] | None) -> Iterable[str]:
    if isinstance(names, str):
        raise InvalidInputError(f"{what} is a list of names; write {what}=[{names!r}]")
    if names is not None and not isinstance(names, Iterable):
        raise InvalidInputError(f"{what} is a list of names, got {names!r}")
    return () if names is None else names


def _integer(name: str, value: object) -> int:
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInputError(f"{name} is a whole number, got {value!r}") from None
    if not -(2**63) <= found < 2**63:
        raise InvalidInputError(f"{name} is a 64-bit number, got {found}")
    return found


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value or not is_encodable(value):
        raise InvalidInputError(f"{name} is text without NUL or lone surrogates, got {value!r}")
    return value


def _number(name: str, value: object) -> float:
    try:
        # float() of a tensor that requires a gradient warns; a loss often is one.
        return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"metric {name!r} is a number, got {value!r}") from error
