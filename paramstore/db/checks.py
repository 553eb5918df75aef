"""Checks of what callers hand to the repository, before anything is written.

Looks at values; must never look at the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from paramstore.db.records import Draft
from paramstore.errors import InvalidInputError, InvalidNameError
from paramstore.refs import check_scope_name, check_tag_name

_INT64: Final = 2**63


def checked(draft: Draft) -> Draft:
    """Return the draft with its metrics as the database gives them back.

    Raises:
        InvalidInputError: a step beyond 64 bits, a metric that is no number, a message that not
            every database can store.
        InvalidNameError: a name of a scope, tag, metric or extra.
    """
    check_scope_name(draft.scope)
    for tag in draft.tags:
        check_tag_name(tag)
    for _, name, _ in draft.extras:
        _check_label(name, "extra")
    if draft.step is not None and not -_INT64 <= draft.step < _INT64:
        raise InvalidInputError(f"a step is an integer of 64 bits, got {draft.step!r}")
    if draft.message is not None and not _is_storable(draft.message):
        raise InvalidInputError(
            f"a message is text without NUL and lone surrogates, got {draft.message!r}"
        )
    return replace(draft, metrics=_metrics(draft.metrics))


def _metrics(given: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in given.items():
        _check_label(name, "metric")
        try:
            # SQLite stores -0.0 as 0.0, and the digest has to be that of what is read back.
            found[name] = float(value) + 0.0
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError(f"metric {name!r} is not a number: {value!r}") from error
    return found


def _check_label(name: object, what: str) -> None:
    if not isinstance(name, str) or not name or not _is_storable(name):
        raise InvalidNameError(
            f"{name!r} cannot name {'an' if what == 'extra' else 'a'} {what}: a name is text, not "
            f"empty, without NUL and lone surrogates"
        )


def _is_storable(text: str) -> bool:
    # PostgreSQL has no NUL in text.
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
