"""The conditions of ``--where``: comparisons of numbers about one version, such as ``nan > 0``.

A small grammar of its own; must never evaluate text as Python.

    condition  = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" condition ")" | term compared term
    term       = number | column
    compared   = "<" | "<=" | ">" | ">=" | "=" | "==" | "!="
"""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Callable
from typing import Final

from paramstore.errors import InvalidInputError
from paramstore.refs import suggest
from paramstore.snapshot import ParamVersion

Condition = Callable[[ParamVersion], bool]
_Term = Callable[[ParamVersion], float | None]

COLUMNS: Final[dict[str, _Term]] = {
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
_COMPARED: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)|(?P<word>[a-z_]+)"
    r"|(?P<sign><=|>=|==|!=|[<>=()]))",
    re.IGNORECASE | re.ASCII,
)
_DEEPEST: Final = 50

_quoted = reprlib.Repr()
_quoted.maxstring = 200  # of a condition that somebody pasted by accident


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
        return lambda row: any(part(row) for part in parts)

    def _all_of(self, depth: int) -> Condition:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return lambda row: all(part(row) for part in parts)

    def _one(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            self.refuse(f"more than {_DEEPEST} parentheses deep")
        if self._take("not"):
            inner = self._one(depth + 1)
            return lambda row: not inner(row)
        if self._take("("):
            inner = self.any_of(depth + 1)
            if not self._take(")"):
                self.refuse("expected ')'")
            return inner
        return self._comparison()

    def _comparison(self) -> Condition:
        left = self._term()
        sign = self._take(*_COMPARED)
        if sign is None:
            self.refuse("expected a comparison such as '>'")
        right, holds = self._term(), _COMPARED[str(sign)]

        def compare(row: ParamVersion) -> bool:
            a, b = left(row), right(row)
            return a is not None and b is not None and holds(a, b)

        return compare

    def _term(self) -> _Term:
        kind, text = self.left.pop(0) if self.left else ("", "")
        if kind == "number":
            number = float(text)
            return lambda _: number
        if text in COLUMNS:
            return COLUMNS[text]
        self.left.insert(0, (kind, text))
        hint = suggest(text, COLUMNS) if kind == "word" else ""
        self.refuse(f"expected a number or one of {', '.join(COLUMNS)}{hint},")
        raise AssertionError
