"""A dictionary of tensors that holds every name and reads a tensor when it is first touched.

Knows no database and no scope; must never let its placeholder out.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, ValuesView
from typing import Any, Final

from torch import Tensor


class _Unread:
    """The placeholder of a stored tensor that nobody has touched yet."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNREAD"


UNREAD: Final[Any] = _Unread()

_get = dict.__getitem__
_put = dict.__setitem__


class Params(dict[str, Tensor]):
    """Unconstrained tensors by name; ``read`` turns placeholders into tensors in place.

    Whatever needs more than one value reads everything first, in one go. ``__iter__`` is
    overridden although it does the same as dict's: without it ``dict(params)`` copies the slots
    in C and the placeholders with them.
    """

    __slots__ = ("any_unread", "_read")

    def __init__(self, read: Callable[[Iterable[str]], None]) -> None:
        super().__init__()
        self._read = read
        self.any_unread = False
        """Whether a look at every value may find a placeholder."""

    def expect(self, names: Iterable[str]) -> None:
        """Hold ``names`` unread."""
        self.any_unread = True
        for name in names:
            _put(self, name, UNREAD)

    def is_unread(self, name: str) -> bool:
        """Whether ``name`` is held and has not been read."""
        return super().get(name) is UNREAD

    def unread(self) -> list[str]:
        """The names that have not been read."""
        if not self.any_unread:
            return []
        # Before the look, and not after: another thread may expect more meanwhile.
        self.any_unread = False
        found = [name for name, value in super().items() if value is UNREAD]
        if found:
            self.any_unread = True
        return found

    def live(self) -> list[tuple[str, Tensor]]:
        """The names and tensors that are in memory."""
        return [(name, value) for name, value in super().items() if value is not UNREAD]

    def load(self) -> None:
        """Read everything that is still unread."""
        if self.any_unread and (names := self.unread()):
            self._read(names)

    def discard(self, name: str) -> Tensor | None:
        """Remove ``name`` without reading it; its tensor if it was in memory."""
        value = super().pop(name, None)
        return None if value is UNREAD else value

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
        return super().items()

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        """As dict's, unread tensors read first."""
        self.load()
        return super().values()

    def pop(self, name: str, *default: Any) -> Any:
        """As dict's, unread tensors read first."""
        if name in self:
            self[name]
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Tensor]:
        """As dict's, unread tensors read first."""
        self.load()
        return super().popitem()

    def setdefault(self, name: str, default: Any = None) -> Any:
        """As dict's, unread tensors read first."""
        return self[name] if name in self else super().setdefault(name, default)

    def copy(self) -> dict[str, Tensor]:
        """A plain dictionary of every tensor."""
        self.load()
        return dict(super().items())

    __copy__ = copy

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        self.load()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # as dict

    def __repr__(self) -> str:
        return repr(self.copy())
