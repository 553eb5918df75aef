"""A dictionary of tensors that holds every name and reads a tensor when it is first touched.

Knows no database and no scope; must never let its placeholder out.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, ValuesView
from typing import Any, ClassVar, Final

from torch import Tensor


class _Unread:
    """The placeholder of a stored tensor that nobody has touched yet."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNREAD"


UNREAD: Final[Any] = _Unread()

_get = dict.__getitem__
_put = dict.__setitem__
_find = dict.get
_take = dict.pop
_pairs = dict.items


class Params(dict[str, Tensor]):
    """Unconstrained tensors by name; ``read`` turns placeholders into tensors in place.

    While a look at a value may find a placeholder its class is :class:`_SomeUnread`; else every
    look is dict's own, and costs what it costs there.
    """

    __slots__ = ("_read",)

    any_unread: ClassVar[bool] = False
    """Whether a look at a value may find a placeholder."""

    def read_with(self, read: Callable[[Iterable[str]], None]) -> None:
        """Let ``read`` turn placeholders into tensors; who expects none needs no such function."""
        self._read = read

    def expect(self, names: Iterable[str]) -> None:
        """Hold ``names`` unread."""
        self.__class__ = _SomeUnread
        for name in names:
            _put(self, name, UNREAD)

    def replace(self, pairs: Iterable[tuple[str, Tensor]]) -> None:
        """Hold ``pairs`` and nothing else, in their order; placeholders among them are unread."""
        held = dict(pairs)
        dict.clear(self)
        dict.update(self, held)
        self.expect(())  # it may have been found read while it was empty, or before
        self.unread()

    def is_unread(self, name: str) -> bool:
        """Whether ``name`` is held and has not been read."""
        return _find(self, name) is UNREAD

    def unread(self) -> list[str]:
        """The names that have not been read."""
        if not self.any_unread:
            return []
        found = self._placeholders()
        if not found:
            self.__class__ = Params
            # Another thread may have expected more after the look.
            found = self._placeholders()
            if found:
                self.__class__ = _SomeUnread
        return found

    def _placeholders(self) -> list[str]:
        return [name for name, value in _pairs(self) if value is UNREAD]

    def live(self) -> list[tuple[str, Tensor]]:
        """The names and tensors that are in memory."""
        return [(name, value) for name, value in _pairs(self) if value is not UNREAD]

    def load(self) -> None:
        """Read everything that is still unread."""
        if self.any_unread and (names := self.unread()):
            self._read(names)
            self.unread()

    def discard(self, name: str) -> Tensor | None:
        """Remove ``name`` without reading it; its tensor if it was in memory."""
        value = _take(self, name, None)
        return None if value is UNREAD else value

    def copy(self) -> dict[str, Tensor]:
        """A plain dictionary of every tensor."""
        self.load()
        return dict(_pairs(self))

    __copy__ = copy

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __repr__(self) -> str:
        return repr(self.copy())


class _SomeUnread(Params):
    """The same, while some of its values are placeholders.

    Whatever needs more than one value reads everything first, in one go. ``__iter__`` is
    overridden although it does the same as dict's: without it ``dict(params)`` copies the slots
    in C and the placeholders with them.
    """

    __slots__ = ()

    any_unread = True

    def __getitem__(self, name: str) -> Tensor:
        value = _get(self, name)
        if value is UNREAD:
            self._read([name])
            value = _get(self, name)
        return value

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """As dict's, unread tensors read first."""
        return self[name] if name in self else default  # noqa: SIM401 - that is this method

    def items(self) -> ItemsView[str, Tensor]:  # type: ignore[override]  # a view, as dict's
        """As dict's, unread tensors read first."""
        self.load()
        return _pairs(self)

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        """As dict's, unread tensors read first."""
        self.load()
        return dict.values(self)

    def pop(self, name: str, *default: Any) -> Any:
        """As dict's, unread tensors read first."""
        if name in self:
            self[name]
        return _take(self, name, *default)

    def popitem(self) -> tuple[str, Tensor]:
        """As dict's, unread tensors read first."""
        self.load()
        return dict.popitem(self)

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As dict's, unread tensors read first."""
        return self[name] if name in self else dict.setdefault(self, name, default)

    def __eq__(self, other: object) -> bool:
        self.load()
        return dict.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # as dict's
