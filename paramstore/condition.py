"""Conditions on the versions of a parameter: comparisons of numbers, such as ``nan > 0``.

A small grammar of its own; must never evaluate text as Python, and knows no SQL.

    condition  = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" condition ")" | term compared term
    term       = number | column
    compared   = "<" | "<=" | ">" | ">=" | "=" | "==" | "!="

Of two columns that are compared, neither is ``nan`` or ``inf``: these count elements.
"""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from paramstore.errors import InvalidInputError
from paramstore.refs import suggest
from paramstore.snapshot import ParamVersion

COLUMNS: Final[dict[str, Callable[[ParamVersion], float | None]]] = {
    "version": lambda row: row.version,
    "step": lambda row: row.step,
    "norm": lambda row: row.norm,
    "mean": lambda row: row.mean,
    "std": lambda row: row.std,
    "min": lambda row: row.min,
    "max": lambda row: row.max,
    "nan": lambda row: row.nan_count,
    "inf": lambda row: row.inf_count,
    "value": lambda row: None if isinstance(row.value, complex) else row.value,
    "nbytes": lambda row: row.nbytes,
}
"""What a condition may speak of. One that is unknown (null) makes its comparison false."""
COUNTS: Final = ("nan", "inf")
"""The columns that read like numbers and count elements; they are compared with numbers only."""
SIGNS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
"""What the signs of comparisons mean, of numbers as of what stands for them in a query."""
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)|(?P<word>[a-z_]+)"
    r"|(?P<sign><=|>=|==|!=|[<>=()]))",
    re.IGNORECASE | re.ASCII,
)
_DEEPEST: Final = 50

_quoted = reprlib.Repr()
_quoted.maxstring = 200  # of a condition that somebody pasted by accident


class Comparison(NamedTuple):
    """Two terms, each the name of a column or a number; false where a column is unknown."""

    left: str | float
    sign: str
    right: str | float

    def __call__(self, row: ParamVersion) -> bool:
        """Whether it holds for a version."""
        left, right = _value(self.left, row), _value(self.right, row)
        return left is not None and right is not None and bool(SIGNS[self.sign](left, right))


class Junction(NamedTuple):
    """All of the parts, or any of them."""

    word: Literal["and", "or"]
    parts: tuple[Condition, ...]

    def __call__(self, row: ParamVersion) -> bool:
        """Whether it holds for a version."""
        return (all if self.word == "and" else any)(part(row) for part in self.parts)


class Negation(NamedTuple):
    """What holds where the part does not."""

    part: Condition

    def __call__(self, row: ParamVersion) -> bool:
        """Whether it holds for a version."""
        return not self.part(row)


Condition = Comparison | Junction | Negation


def _value(term: str | float, row: ParamVersion) -> float | None:
    return COLUMNS[term](row) if isinstance(term, str) else term


def parse_condition(text: str) -> Condition:
    """Parse a condition.

    Raises:
        InvalidInputError: it is none; the message says where.
    """
    parser = _Parser(text)
    condition = parser.any_of(0)
    if parser.left:
        parser.refuse("expected 'and', 'or' or the end")
    return condition


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self.left = self._tokens()
        """Kind and text of the tokens that are still to be read."""

    def _tokens(self) -> list[tuple[str, str]]:
        found, at = [], 0
        text = self._text.rstrip()
        while at < len(text):
            token = _TOKEN.match(text, at)
            if token is None:
                raise InvalidInputError(
                    f"{_quoted.repr(self._text)} is not a condition: "
                    f"{_quoted.repr(text[at:].strip())} is neither a number, a word nor a "
                    f"comparison; write 'nan > 0 and step < 1000'"
                )
            found.append((str(token.lastgroup), token[str(token.lastgroup)].lower()))
            at = token.end()
        return found

    def refuse(self, why: str) -> None:
        rest = " ".join(text for _, text in self.left)
        before = f"before {_quoted.repr(rest)}" if rest else "at its end"
        raise InvalidInputError(f"{_quoted.repr(self._text)} is not a condition: {why} {before}")

    def _take(self, *wanted: str) -> str | None:
        if self.left and self.left[0][1] in wanted:
            return self.left.pop(0)[1]
        return None

    def any_of(self, depth: int) -> Condition:
        parts = [self._all_of(depth)]
        while self._take("or"):
            parts.append(self._all_of(depth))
        return Junction("or", tuple(parts)) if len(parts) > 1 else parts[0]

    def _all_of(self, depth: int) -> Condition:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return Junction("and", tuple(parts)) if len(parts) > 1 else parts[0]

    def _one(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            self.refuse(f"more than {_DEEPEST} parentheses deep")
        if self._take("not"):
            return Negation(self._one(depth + 1))
        if self._take("("):
            inner = self.any_of(depth + 1)
            if not self._take(")"):
                self.refuse("expected ')'")
            return inner
        return self._comparison()

    def _comparison(self) -> Condition:
        left = self._term()
        sign = self._take(*SIGNS)
        if sign is None:
            self.refuse("expected a comparison such as '>'")
        right = self._term()
        self._check_counts(left, right)
        return Comparison(left, str(sign), right)

    def _check_counts(self, left: str | float, right: str | float) -> None:
        """Refuse 'value == nan', which would hold wherever the value and the count are 0."""
        count = next((term for term in (right, left) if term in COUNTS), None)
        if count and isinstance(left, str) and isinstance(right, str):
            raise InvalidInputError(
                f"{_quoted.repr(self._text)} is not a condition: {count} counts elements: write "
                f"'{count} > 0'"
            )

    def _term(self) -> str | float:
        kind, text = self.left.pop(0) if self.left else ("", "")
        if kind == "number":
            return float(text)
        if text in COLUMNS:
            return text
        self.left.insert(0, (kind, text))
        hint = suggest(text, COLUMNS) if kind == "word" else ""
        self.refuse(f"expected a number or one of {', '.join(COLUMNS)}{hint},")
        raise AssertionError
