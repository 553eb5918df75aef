"""References to snapshots and the rules for names.

Parses and checks text; must never look anything up.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from paramstore.errors import InvalidInputError, InvalidNameError, InvalidReferenceError
from paramstore.snapshot import Snapshot

_MAX_NAME = 200
_STEP = re.compile(r"step=([+-]?\d{1,19})", re.ASCII)
_DIGITS = re.compile(r"\d{1,19}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed reference: at most one of version, tag and step; none of them means the latest."""

    scope: str | None = None
    """Scope name; None is the current one."""
    version: int | None = None
    """Version within the scope, from 1."""
    tag: str | None = None
    """A tag of the scope."""
    step: int | None = None
    """The newest snapshot of the scope with this step."""

    def __str__(self) -> str:
        scope = self.scope or ""
        if self.version is not None:
            return f"{scope}@{self.version}"
        if self.step is not None:
            return f"{scope}@step={self.step}"
        return f"{scope}@{self.tag or 'latest'}"


def parse_ref(reference: Snapshot | int | str) -> Ref:
    """Parse a reference: a snapshot, a version number, or text such as ``main@warm``.

    Text is ``scope``, ``scope@latest``, ``scope@12``, ``scope@tag`` or ``scope@step=1000``;
    without the scope (``@12``) the current one is meant.

    Raises:
        InvalidReferenceError: anything else.
    """
    if isinstance(reference, Snapshot):
        return Ref(scope=reference.scope, version=reference.version)
    if isinstance(reference, int) and not isinstance(reference, bool):
        return Ref(version=_version(reference, reference))
    if not isinstance(reference, str):
        raise InvalidReferenceError(
            f"a snapshot reference is a Snapshot, an int or text, got {type(reference).__name__}"
        )
    scope, at, point = reference.partition("@")
    try:
        if scope or not at:
            check_scope_name(scope)
        if not at or point == "latest":
            return Ref(scope=scope or None)
        if _DIGITS.fullmatch(point):
            return Ref(scope=scope or None, version=_version(int(point), reference))
        if step := _STEP.fullmatch(point):
            return Ref(scope=scope or None, step=_step(int(step[1]), reference))
        check_tag_name(point)
    except InvalidNameError as error:
        raise InvalidReferenceError(
            f"{reference!r} is not a snapshot reference ({error}); write 'scope', 'scope@12', "
            f"'scope@tag', 'scope@step=1000', or '@…' for the current scope"
        ) from error
    return Ref(scope=scope or None, tag=point)


def check_scope_name(name: str) -> str:
    """Return ``name`` if it can name a scope.

    Raises:
        InvalidNameError: not 1–200 characters, or with ``@``, NUL, control characters, lone
            surrogates or outer spaces.
    """
    return _check(name, "scope")


def check_tag_name(name: str) -> str:
    """Return ``name`` if it can name a tag: a scope name's rules; no ``=``, all digits, ``latest``.

    Raises:
        InvalidNameError: otherwise.
    """
    _check(name, "tag")
    if "=" in name or name.isdigit() or name == "latest":
        raise InvalidNameError(
            f"{name!r} cannot be a tag: no '=', not only digits, and not 'latest' (they mean a "
            f"step, a version and the newest snapshot in a reference)"
        )
    return name


def check_param_name(name: str, what: str = "parameter") -> str:
    """Return ``name`` if it can name a parameter, or something else that errors call ``what``.

    Raises:
        InvalidNameError: not text, empty, or with NUL or a lone surrogate.
    """
    a = "an" if what.startswith(tuple("aeiou")) else "a"
    if not isinstance(name, str):
        raise InvalidNameError(f"{a} {what} name is text, got {type(name).__name__}: {name!r}")
    if not name or "\0" in name or not is_encodable(name):
        raise InvalidNameError(
            f"{name!r} cannot name {a} {what}: a name is not empty and has no NUL character "
            f"and no lone surrogate"
        )
    return name


def to_pattern(text: str) -> re.Pattern[str]:
    """Compile a regular expression for names.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise InvalidInputError(f"{text!r} is not a regular expression: {error}") from error


def suggest(name: object, existing: Iterable[str]) -> str:
    """Return `` (did you mean 'a' or 'b'?)`` for an error text; empty where nothing is close.

    What somebody looked for may be no text, which the error then says.
    """
    if not isinstance(name, str):
        return f" (names are text, this is {type(name).__name__})"
    close = difflib.get_close_matches(name, list(existing), n=3)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def _check(name: str, what: str) -> str:
    if not isinstance(name, str):
        raise InvalidNameError(f"a {what} name is text, got {type(name).__name__}: {name!r}")
    bad = (
        not 1 <= len(name) <= _MAX_NAME
        or name != name.strip()
        or "@" in name
        or not is_encodable(name)
        or (not name.isprintable() and any(unicodedata.category(c) == "Cc" for c in name))
    )
    if bad:
        shown = name if len(name) <= 60 else name[:60] + "…"
        raise InvalidNameError(
            f"{shown!r} cannot name a {what}: 1 to {_MAX_NAME} characters without '@', control "
            f"characters and outer spaces"
        )
    return name


def is_encodable(name: str) -> bool:
    """Whether text can be stored: it has no lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version(number: int, shown: object) -> int:
    if not 1 <= number < 2**63:
        raise InvalidReferenceError(f"{shown!r} is not a version: versions count from 1")
    return number


def _step(number: int, shown: object) -> int:
    if not -(2**63) <= number < 2**63:
        raise InvalidReferenceError(f"{shown!r} is not a step: a step fits into 64 bits")
    return number
