"""Live objects whose state travels with every commit: optimisers, schedulers, generators.

Knows ``state_dict`` and ``load_state_dict``; integrations teach it more through ``capture`` and
``apply``. Never stores anything itself.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from paramstore.errors import CorruptError, InvalidInputError, MismatchError, UsageError
from paramstore.listing import some

logger = logging.getLogger("paramstore")

RNG = "rng"
"""The name under which the generators' state is stored."""


@singledispatch
def capture(obj: Any) -> object:
    """Return the state of a live object, as ``extras`` can store it.

    An integration registers a function for a type without ``state_dict``.

    Raises:
        InvalidInputError: an object without a state that anybody knows.
    """
    if not _is_attachable(obj):
        raise InvalidInputError(_no_state(obj))
    return obj.state_dict()


@singledispatch
def apply(obj: Any, state: Any) -> None:
    """Put a captured state back into a live object."""
    obj.load_state_dict(state)


@singledispatch
def settle(obj: Any, state: Any) -> None:
    """Finish :func:`apply` once the parameters hold the snapshot's values, too; must not fail.

    For an integration whose state hangs on the tensors themselves, which may have been replaced
    and have lost their gradients since ``apply``.
    """


@singledispatch
def rename(obj: object, home: object, old: str, new: str) -> None:
    """Follow a parameter that has another name now in ``home``, the working set.

    For an integration that keeps states by the names of parameters.
    """


@singledispatch
def misplaced(obj: object, home: object) -> str | None:  # noqa: ARG001 - by type
    """Say why the state of an object cannot be stored with ``home``, and what to do; else None.

    For an integration whose states go by the names of one working set.
    """
    return None


def check_places(attached: Mapping[str, object], home: object) -> None:
    """Refuse what is attached to the working set ``home`` and belongs to another one.

    Raises:
        UsageError: names the first of them.
    """
    for name, obj in attached.items():
        if why := misplaced(obj, home):
            raise UsageError(f"attached {name!r}: {why}")


def check_attachable(objects: Mapping[str, object], *, rng: object) -> None:
    """Refuse objects without a state, and an object by the name of the generators.

    Raises:
        InvalidInputError: names the first of them.
    """
    if rng is not None and not isinstance(rng, bool):
        raise InvalidInputError(
            f"attach(rng=…) says whether the random generators are attached: True or False, got "
            f"{type(rng).__qualname__}; attach an object under another name"
        )
    for name, obj in objects.items():
        if not _is_attachable(obj):
            raise InvalidInputError(f"attached {name!r}: {_no_state(obj)}")


def check_states(
    attached: Mapping[str, object], states: Iterable[str], *, rng: bool, extra: bool, where: str
) -> None:
    """Compare what is attached with what a snapshot holds.

    Raises:
        MismatchError: the snapshot lacks the state of something attached or, with ``extra``, has
            one that nothing is attached for.
    """
    live = {*attached, *([RNG] if rng else [])}
    stored = set(states)
    problems = [f"{name!r} is attached, and has no state there" for name in sorted(live - stored)]
    problems += [
        f"{name!r} has a state there, and is not attached"
        for name in sorted(stored - live)
        if extra
    ]
    if problems:
        raise MismatchError(
            f"{where} does not fit what is attached: {some(problems, '; ')}. Nothing has been "
            f"changed; attach(…) the same objects before, or pass strict=False"
        )


def _is_attachable(obj: object) -> bool:
    if capture.dispatch(type(obj)) is not capture.dispatch(object):
        return True
    methods = ("state_dict", "load_state_dict")
    return all(callable(getattr(obj, method, None)) for method in methods)


def _no_state(obj: object) -> str:
    return (
        f"{type(obj).__qualname__} has no state_dict and load_state_dict, and no integration that "
        f"was imported knows it; for Pyro's objects import paramstore.integrations.pyro"
    )


def capture_all(attached: Mapping[str, object], *, rng: bool) -> dict[str, object]:
    """Return the state of everything attached, the generators' last."""
    return {name: _captured(name, obj) for name, obj in _everything(attached, rng=rng).items()}


def _everything(attached: Mapping[str, object], *, rng: bool) -> dict[str, object]:
    """What is attached, the generators last: whatever comes before may draw from them."""
    return {**attached, RNG: _Generators()} if rng else dict(attached)


def _captured(name: str, obj: object) -> object:
    with naming(name, "does not give its state"):
        return capture(obj)


@contextmanager
def applied(
    attached: Mapping[str, object], states: Mapping[str, object], *, rng: bool
) -> Iterator[None]:
    """Put states into live objects; if that, or the block, fails, put the old ones back."""
    objects = {n: obj for n, obj in _everything(attached, rng=rng).items() if n in states}
    before = {name: _state_to_keep(name, obj) for name, obj in objects.items()}
    begun = {RNG}
    try:
        for name, obj in objects.items():
            begun.add(name)
            with naming(name, "refused its state"):
                apply(obj, states[name])
        yield
        for name, obj in objects.items():
            settle(obj, states[name])
    except BaseException:
        for name, state in before.items():
            if name in begun:
                _put_back(name, objects[name], state)
        raise


def _state_to_keep(name: str, obj: object) -> object:
    """Capture a state so that it outlives what is going to be applied to the object.

    What ``state_dict`` hands out may be the object's own containers, and its own tensors, into
    which ``load_state_dict`` copies; only optimisers are known to replace theirs.
    """
    keeps_tensors = isinstance(obj, torch.optim.Optimizer)
    return _copied(_captured(name, obj), tensors=not keeps_tensors)


def _put_back(name: str, obj: object, state: object) -> None:
    try:
        apply(obj, state)
    except Exception:  # what went wrong first is what the caller has to hear of
        logger.exception("attached %r does not take back the state that it had", name)


def _copied(state: object, *, tensors: bool) -> object:
    """Copy the containers of a state, and its tensors where asked to."""
    if isinstance(state, dict):
        made = copy(state)  # a Counter, a defaultdict: their constructors differ
        for key, value in state.items():
            made[key] = _copied(value, tensors=tensors)
        return made
    if isinstance(state, list | tuple) and type(state) in (list, tuple):
        return type(state)(_copied(value, tensors=tensors) for value in state)
    return state.detach().clone() if tensors and isinstance(state, Tensor) else state


@contextmanager
def naming(name: str, what: str) -> Iterator[None]:
    """Say which attached object an error is about."""
    try:
        yield
    except (InvalidInputError, CorruptError) as error:
        raise type(error)(f"attached {name!r}: {error}") from error
    except Exception as error:
        raise MismatchError(
            f"attached {name!r} {what}: {error}. Nothing has been changed; attach the object that "
            f"its state was stored from, or leave it out and pass strict=False"
        ) from error


# -- generators ----------------------------------------------------------------------------------


class _Generators:
    """The random generators of this process, as an object that is attached."""

    def state_dict(self) -> dict[str, object]:
        return capture_generators()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        apply_generators(state)


@settle.register
def _settle_generators(_generators: _Generators, state: Any) -> None:
    apply_generators(state)  # once more: filling and settling may have drawn from them


def capture_generators() -> dict[str, object]:
    """Return the state of the generators of Python, NumPy (where imported), torch and CUDA."""
    version, internal, gauss = random.getstate()
    state: dict[str, object] = {
        "python": (version, torch.tensor(internal, dtype=torch.int64), gauss),
        "torch": torch.get_rng_state(),
    }
    if numpy := sys.modules.get("numpy"):
        state["numpy"] = numpy.random.get_state(legacy=False)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def apply_generators(state: Mapping[str, Any]) -> None:
    """Put the generators back to a captured state; what this machine lacks is left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    if "numpy" in state:
        import numpy

        numpy.random.set_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        saved: list[Tensor] = state["cuda"]
        for device, generator in enumerate(saved[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator, device)
    torch.set_rng_state(state["torch"])
