"""Every kind of constraint that has a stored form, by class and by name.

torch's and Pyro's stand in tables here, a user's own are registered. A name is only ever looked up;
this module must never import what a text names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore.errors import InvalidInputError, UnknownConstraintError


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of constraints, or one object of it, and where its arguments are."""

    name: str
    """What a spec calls it."""
    cls: type[Constraint]
    """Its class, exactly."""
    build: Callable[..., Constraint]
    """Makes one from its arguments by keyword."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Key in the spec: attribute of the constraint, which is also the keyword of ``build``."""


TORCH_SINGLETONS: Final = (
    "boolean",
    "corr_cholesky",
    "dependent",
    "lower_cholesky",
    "lower_triangular",
    "nonnegative",
    "nonnegative_integer",
    "one_hot",
    "positive",
    "positive_definite",
    "positive_integer",
    "positive_semidefinite",
    "real",
    "real_vector",
    "simplex",
    "square",
    "symmetric",
    "unit_interval",
)
PYRO_SINGLETONS: Final = (
    "corr_matrix",
    "integer",
    "ordered_vector",
    "positive_ordered_vector",
    "softplus_lower_cholesky",
    "softplus_positive",
    "sphere",
    "unit_lower_cholesky",
)
_PYRO: Final = "pyro.distributions.constraints"


_BOUNDS: Final = ("lower_bound", "upper_bound")
_WITH_ARGUMENTS: Final = (
    ("cat", constraints.cat, {"parts": "cseq", "dim": "dim", "lengths": "lengths"}),
    ("greater_than", constraints.greater_than, _BOUNDS[:1]),
    ("greater_than_eq", constraints.greater_than_eq, _BOUNDS[:1]),
    ("half_open_interval", constraints.half_open_interval, _BOUNDS),
    (
        "independent",
        constraints.independent,
        {"base": "base_constraint", "reinterpreted_batch_ndims": "reinterpreted_batch_ndims"},
    ),
    ("integer_greater_than", type(constraints.positive_integer), _BOUNDS[:1]),
    ("integer_interval", constraints.integer_interval, _BOUNDS),
    ("integer_less_than", constraints._IntegerLessThan, _BOUNDS[1:]),
    ("interval", constraints.interval, _BOUNDS),
    ("less_than", constraints.less_than, _BOUNDS[1:]),
    (
        "mixture_same_family",
        constraints.MixtureSameFamilyConstraint,
        {"base": "base_constraint"},
    ),
    ("multinomial", constraints.multinomial, _BOUNDS[1:]),
    ("stack", constraints.stack, {"parts": "cseq", "dim": "dim"}),
)

_by_class: dict[type[Constraint], Kind] = {}
_by_name: dict[str, Kind] = {}


def kind_of(constraint: Constraint) -> Kind:
    """Return the kind of a constraint by its class.

    Raises:
        UnknownConstraintError: a class that is not registered.
    """
    cls = type(constraint)
    if cls not in _by_class and cls.__module__ == _PYRO:
        _add_pyro()
    if cls not in _by_class:
        raise UnknownConstraintError(
            f"{cls.__module__}.{cls.__qualname__} has no stored form; give it a name with "
            f"paramstore.register_constraint({cls.__qualname__}, 'a-name')"
        )
    return _by_class[cls]


def arguments_of(constraint: Constraint) -> tuple[Kind, dict[str, object]]:
    """Return the kind of a constraint, and its arguments by their keys in a spec.

    Raises:
        UnknownConstraintError: a class that is not registered, or that hides an argument.
    """
    kind = kind_of(constraint)
    found = {}
    for key, attribute in kind.arguments.items():
        try:
            found[key] = getattr(constraint, attribute)
        except NotImplementedError:  # how torch says that a dependent's is not known
            continue
        except AttributeError as error:
            raise UnknownConstraintError(
                f"{type(constraint).__qualname__} has no attribute {attribute!r}: a registered "
                f"constraint must keep each argument of its constructor under the same name"
            ) from error
    return kind, found


def kind_named(name: object) -> Kind:
    """Return the kind of that name.

    Raises:
        UnknownConstraintError: a name that is not registered.
    """
    if name in PYRO_SINGLETONS and name not in _by_name:
        _add_pyro()
    if not isinstance(name, str) or name not in _by_name:
        shown = repr(name)[:200]  # a file may say anything here
        raise UnknownConstraintError(
            f"no constraint is registered as {shown}; import the module that defines it, or call "
            f"paramstore.register_constraint(its_class, {shown}) first"
        )
    return _by_name[name]


def known_classes() -> tuple[type[Constraint], ...]:
    """Return the classes that have a stored form: torch's, registered ones, Pyro's once used."""
    return tuple(_by_class)


def register_constraint(cls: type[Constraint], name: str) -> None:
    """Give a constraint class of your own a name in specs, so that it can be stored.

    Every argument of its constructor must be kept as an attribute of the same name: a number,
    text, None, a tensor, a constraint, or a list or tuple of these. Register it before a store
    that uses it is opened; a store without it says so by that name.

    Example:
        >>> class Even(constraints.Constraint):
        ...     def __init__(self, step=2):
        ...         self.step = step
        >>> register_constraint(Even, "even")

    Raises:
        InvalidInputError: not a constraint class, a name that is taken, or a constructor with
            ``*args``, ``**kwargs``, positional-only parameters or one named ``kind``.
    """
    _check_registration(cls, name)
    _add(Kind(name, cls, cls, {key: key for key in _parameters(cls)}))


def _add(kind: Kind) -> None:
    _by_class[kind.cls] = _by_name[kind.name] = kind


def _dependent(**known: Any) -> Constraint:
    return constraints.dependent(**known) if known else constraints.dependent


def _add_singletons(names: tuple[str, ...], home: object) -> None:
    for name in names:
        if name in _by_name:
            continue
        singleton: Constraint = getattr(home, name)
        kind = Kind(name, type(singleton), lambda singleton=singleton: singleton)
        _by_name[name] = kind
        _by_class.setdefault(kind.cls, kind)  # positive is also a greater_than, by its class


def _add_pyro() -> None:
    try:
        # With pyro.distributions, which registers their transforms.
        import pyro.distributions.constraints as home
    except ImportError:  # not installed
        import paramstore.pyro_constraints as home  # type: ignore[no-redef]
    _add_singletons(PYRO_SINGLETONS, home)


def _check_registration(cls: object, name: object) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Constraint)):
        raise InvalidInputError(f"{cls!r} is not a class of constraints; pass the class itself")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InvalidInputError(f"{name!r} cannot name a kind of constraint: use printable text")
    taken = _by_name.get(name)
    # A notebook cell that runs twice makes another class of the same name; the newer one counts.
    if name in PYRO_SINGLETONS or (taken and _full_name(taken.cls) != _full_name(cls)):
        raise InvalidInputError(f"the kind {name!r} is taken; choose another name for {cls}")
    if (known := _by_class.get(cls)) and known.name != name:
        raise InvalidInputError(f"{cls} is already registered as {known.name!r}")


def _full_name(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _parameters(cls: type[Constraint]) -> list[str]:
    if cls.__init__ is object.__init__:
        return []
    _, *parameters = inspect.signature(cls.__init__).parameters.values()  # but for self
    for parameter in parameters:
        by_keyword = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not by_keyword or parameter.name == "kind":
            raise InvalidInputError(
                f"the constructor of {cls} has the parameter '{parameter}', which a spec cannot "
                f"hold: every one must have a name, and not 'kind'"
            )
    return [parameter.name for parameter in parameters]


for _name, _cls, _arguments in _WITH_ARGUMENTS:
    _keys = _arguments if isinstance(_arguments, dict) else {key: key for key in _arguments}
    _add(Kind(_name, _cls, _cls, _keys))
_KNOWN = {"is_discrete": "is_discrete", "event_dim": "event_dim"}
_add(Kind("dependent", type(constraints.dependent), _dependent, _KNOWN))
_add_singletons(TORCH_SINGLETONS, constraints)
