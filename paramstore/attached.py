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

from paramstore.errors import InvalidInputError, MismatchError

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


def check_attachable(objects: Mapping[str, object]) -> None:
    """Refuse objects without a state.

    Raises:
        InvalidInputError: names the first of them.
    """
    for name, obj in objects.items():
        if not _is_attachable(obj):
            raise InvalidInputError(f"attached {name!r}: {_no_state(obj)}")


def check_states(
    attached: Mapping[str, object], states: Iterable[str], *, rng: bool, where: str
) -> None:
    """Compare what is attached with what a snapshot holds.

    Raises:
        MismatchError: either lacks something that the other has.
    """
    live = {*attached, *([RNG] if rng else [])}
    stored = set(states)
    problems = [f"{name!r} is attached, and has no state there" for name in sorted(live - stored)]
    problems += [
        f"{name!r} has a state there, and is not attached" for name in sorted(stored - live)
    ]
    if problems:
        raise MismatchError(
            f"{where} does not fit what is attached: {'; '.join(problems)}. Nothing has been "
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
    states = {}
    for name, obj in attached.items():
        with _naming(name):
            states[name] = capture(obj)
    if rng:
        states[RNG] = capture_generators()
    return states


@contextmanager
def applied(attached: Mapping[str, object], states: Mapping[str, object]) -> Iterator[None]:
    """Put states into live objects; if that, or the block, fails, put the old ones back."""
    before: dict[str, object] = {}
    try:
        for name, obj in attached.items():
            if name in states:
                # What state_dict hands out may be the object's own containers, and its own tensors,
                # into which load_state_dict copies; only optimisers are known to replace theirs.
                keeps_tensors = isinstance(obj, torch.optim.Optimizer)
                before[name] = _copied(capture(obj), tensors=not keeps_tensors)
                with _naming(name):
                    apply(obj, states[name])
        yield
        for name in before:
            settle(attached[name], states[name])
    except BaseException:
        for name, state in before.items():
            _put_back(name, attached[name], state)
        raise


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
def _naming(name: str) -> Iterator[None]:
    """Say which attached object an error is about."""
    try:
        yield
    except InvalidInputError as error:
        raise type(error)(f"attached {name!r}: {error}") from error
    except Exception as error:
        raise MismatchError(
            f"attached {name!r} refused its state: {error}. Nothing has been changed; attach the "
            f"object it was stored from, or pass strict=False without it"
        ) from error


# -- generators ----------------------------------------------------------------------------------


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
