"""Exchanges Pyro's global parameter store for one of ours, and gives Pyro its own back.

Pyro keeps one store per process, bound to names in several of its modules. Must never leave Pyro
between two stores: every name is rebound, or none.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import GeneratorType, ModuleType, TracebackType
from typing import Any

import pyro
import pyro.nn.module
import pyro.params.param_store
import pyro.poutine.runtime
import pyro.primitives

from paramstore.errors import InvalidInputError, ParamStoreError, UsageError
from paramstore.integrations.pyro.carrying import Prefer, carry_over, check_prefer
from paramstore.integrations.pyro.optimisers import hand_over
from paramstore.modes import outside_modes
from paramstore.session import Session
from paramstore.store import ParamStoreDict

logger = logging.getLogger("paramstore")

_PLACES: list[tuple[ModuleType, str]] = [
    (pyro.poutine.runtime, "_PYRO_PARAM_STORE"),
    (pyro.primitives, "_PYRO_PARAM_STORE"),
    (pyro.nn.module, "_PYRO_PARAM_STORE"),
    (pyro.primitives, "_param"),  # what pyro.param calls: a method of the store, with effects
]
"""Pyro's modules that hold its store, and by which name (pyro-ppl 1.9)."""

_TABLES = {"_params", "_param_to_name", "_constraints"}

_lock = threading.RLock()
_installed: Installation | None = None


class Installation(AbstractContextManager[ParamStoreDict]):
    """A store that is installed in Pyro. Leaving a ``with`` block on it uninstalls it."""

    def __init__(self, store: ParamStoreDict, own: Any) -> None:
        self.store = store
        """The store that Pyro uses."""
        self._own = own
        self._own_class: type = type(own)
        self._own_tables: dict[str, Any] = own.__dict__
        self._before = [getattr(module, name) for module, name in _PLACES]

    def __enter__(self) -> ParamStoreDict:
        return self.store

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _lock:
            if _installed is self:  # unless the block did it
                uninstall()

    def bind(self) -> None:
        """Make every name in Pyro lead to the store."""
        # Modules that did `from pyro.poutine.runtime import _PYRO_PARAM_STORE` keep this object:
        # from here on a second face of the store.
        self._own.__class__ = type(self.store)
        self._own.__dict__ = self.store.__dict__
        param = pyro.poutine.runtime.effectful(self.store.get_param, type="param")
        _rebind([self.store] * (len(_PLACES) - 1) + [param])

    def unbind(self) -> None:
        """Make every name in Pyro lead to Pyro's own store, as it was."""
        self._own.__dict__ = self._own_tables  # the store's tables are left as they are
        self._own.__class__ = self._own_class
        _rebind(self._before)

    def give_back(self) -> None:
        """Let Pyro's own store hold the tensors that the store has now."""
        live, constraints = _current(self.store)
        # Not self._own: it is the store's second face until it is unbound.
        state = pyro.params.param_store.ParamStoreDict()
        state.set_state({"params": live, "constraints": constraints})
        self._own_tables.update(vars(state))


def install(store: ParamStoreDict, *, prefer: Prefer = None) -> Installation:
    """Make ``store`` the parameter store of Pyro, for this process.

    What Pyro's store holds goes into ``store``, the same tensors. ``uninstall()`` ends it, or a
    ``with`` block: ``with install(store): …``. Install before other threads use Pyro.

    Args:
        store: An open, writable store.
        prefer: Whose values to go on with where both hold a name. ``"store"`` copies the stored
            values into Pyro's tensors, which become the store's; ``"pyro"`` takes Pyro's value and
            constraint. By default such names are refused.

    Raises:
        MismatchError: names that both hold; with ``prefer="store"`` also a shape, dtype or
            constraint that differs. As with the others, nothing has been changed.
        UsageError: a store is installed already, Pyro is inside ``scope(…)`` of its own store, or
            is not laid out as in pyro-ppl 1.9.
        StoreClosedError, ReadOnlyError: it could not be written to.
    """
    global _installed
    with _lock:
        _check(store)
        check_prefer(prefer)
        own = _own_store()
        state = {"params": own._params, "constraints": own._constraints}
        installation = Installation(store, own)
        undo = outside_modes(_carried_over, store._session, state, prefer)
        try:
            installation.bind()
        except BaseException as error:
            installation.unbind()
            undo()
            if isinstance(error, AttributeError | TypeError):
                raise _another_pyro(str(error)) from error
            raise
        _installed = installation
    return installation


def uninstall() -> None:
    """Give Pyro its own store back, with the current tensors; does nothing if none is installed.

    The store that was installed keeps its tensors as well, and stays open. Stored values that
    nobody has read are read for that; if that is not possible any more, Pyro does without them.
    """
    global _installed
    with _lock:
        if _installed is None:
            return
        _installed.give_back()
        try:
            _installed.unbind()
        except BaseException:
            _installed.bind()
            raise
        hand_over(_installed.store)
        _installed = None


def _check(store: object) -> None:
    if not isinstance(store, ParamStoreDict):
        raise InvalidInputError(
            f"install takes a store from paramstore.open(…) or ParamStoreDict(), got {store!r}"
        )
    if _installed is not None:
        which = "this store" if _installed.store is store else "another store"
        raise UsageError(f"{which} is installed in Pyro already; call uninstall() first")
    store._session.check_writable()


def _own_store() -> Any:
    """Pyro's own store.

    Raises:
        UsageError: it is not where, or not what, it is in the releases that this was written for.
    """
    missing = [f"{m.__name__}.{name}" for m, name in _PLACES if not hasattr(m, name)]
    if missing:
        raise _another_pyro(f"{', '.join(missing)} is missing")
    own, *others, param = (getattr(module, name) for module, name in _PLACES)
    if not callable(param):
        raise _another_pyro("pyro.primitives._param is no function")
    if any(other is not own for other in others):
        raise _another_pyro("its modules hold different stores")
    if _TABLES - getattr(own, "__dict__", {}).keys():
        raise _another_pyro(f"its store, a {type(own).__qualname__}, has no {sorted(_TABLES)}")
    if _in_scope(own):
        raise UsageError(
            "Pyro's store is inside scope(…), which would put its outer parameters into the one "
            "that is installed; leave it before install(store)"
        )
    return own


def _carried_over(session: Session, state: Mapping[str, Any], prefer: Prefer) -> Callable[[], None]:
    with session.lock:
        return carry_over(session.current, session.reader, state, prefer)


def _in_scope(own: Any) -> bool:
    """Whether somebody has entered ``own.scope()`` and not left it: a generator holds ``own``."""
    scope = getattr(type(own), "scope", None)
    code = getattr(getattr(scope, "__wrapped__", None), "__code__", None)
    found = (each for each in gc.get_referrers(own) if isinstance(each, GeneratorType))
    return any(each.gi_code is code and each.gi_suspended for each in found)


def _another_pyro(what: str) -> UsageError:
    return UsageError(
        f"pyro-ppl {pyro.__version__} is not laid out as this integration expects: {what}. Pyro "
        f"has been left as it was; install pyro-ppl 1.9"
    )


def _rebind(objects: Iterable[Any]) -> None:
    for (module, name), value in zip(_PLACES, objects, strict=True):
        setattr(module, name, value)


def _current(store: ParamStoreDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and constraints of a store, which may have been closed."""
    try:
        store.load_all()
    except ParamStoreError as error:
        unread = store._params.unread()
        logger.warning("uninstall leaves Pyro without %d stored values: %s", len(unread), error)
    live = dict(store._params.live())
    return live, {name: store._constraints[name] for name in live}
