"""What a backend has to bring to be tested.

Types only; must never open anything itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from paramstore.store import ParamStoreDict


class MakeStore(Protocol):
    """The fixture ``make_store``: opens a store on the one database of this test.

    The fixture also closes what it opened, once the test is over.
    """

    def __call__(self, **options: Any) -> ParamStoreDict:
        """Open a store; ``options`` are those of :func:`paramstore.open`."""
