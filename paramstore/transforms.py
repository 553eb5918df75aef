"""What a constraint does to a parameter: its transform, and the way back with validation.

Knows torch's registry of transforms and nothing else; must never import Pyro.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to, transforms
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from paramstore.errors import InvalidValueError, UnknownConstraintError

# Whose value at one element depends on that element alone, provided that the arguments do not
# vary from element to element. Pyro's softplus is a class of its own.
_ELEMENTWISE = (
    transforms.AbsTransform,
    transforms.AffineTransform,
    transforms.CumulativeDistributionTransform,
    transforms.ExpTransform,
    transforms.PowerTransform,
    transforms.SigmoidTransform,
    transforms.SoftplusTransform,
    transforms.TanhTransform,
)
_ELEMENTWISE_NAMES = {(t.__module__, t.__name__) for t in _ELEMENTWISE} | {
    ("pyro.distributions.transforms.softplus", "SoftplusTransform")
}

_FEW = 64  # elements, of which Python's own numbers are compared faster than tensors

# What torch raises for bounds, shapes and dtypes that do not fit together; LinAlgError, of a matrix
# that is not positive definite, is a RuntimeError.
_UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    RuntimeError,
    TypeError,
    ValueError,
)


def is_identity(constraint: Constraint) -> bool:
    """Tell whether the constrained and the unconstrained value are the same."""
    while type(constraint) is constraints.independent:
        constraint = constraint.base_constraint
    return type(constraint) is type(constraints.real)


def transform_of(constraint: Constraint) -> Transform:
    """Return the transform from the real numbers to what the constraint admits.

    Raises:
        UnknownConstraintError: it has none, so that it cannot be the constraint of a parameter.
        InvalidValueError: its arguments do not fit together.
    """
    try:
        transform: Transform = transform_to(constraint)
    except NotImplementedError as error:
        raise UnknownConstraintError(
            f"{shown(constraint)} cannot constrain a parameter: it has no transform from the real "
            f"numbers, it is a spec only. Give it one with "
            f"torch.distributions.transform_to.register({type(constraint).__name__}, …)"
        ) from error
    except _UNFIT as error:
        raise InvalidValueError(
            f"the arguments of {shown(constraint)} do not fit together: {error}"
        ) from error
    return transform


def is_elementwise(transform: Transform) -> bool:
    """Tell whether the transform may be applied to the elements in blocks of any shape."""
    if isinstance(transform, transforms.ComposeTransform):
        return all(map(is_elementwise, transform.parts))
    if isinstance(transform, transforms.IndependentTransform):
        return is_elementwise(transform.base_transform)
    kind = type(transform)
    if (kind.__module__, kind.__name__) not in _ELEMENTWISE_NAMES:
        return False
    # An argument with several elements, a lower bound of each say, cannot be cut into blocks.
    return all(
        not isinstance(value, (Tensor, Distribution))
        or (isinstance(value, Tensor) and value.numel() == 1)
        for value in vars(transform).values()
    )


def unconstrain(
    constraint: Constraint,
    value: Tensor,
    *,
    name: str,
    validate: bool | None = None,
    inverse: Transform | None = None,
) -> Tensor:
    """Return the unconstrained value of a parameter; of an identity, the value itself.

    A value is refused if the constraint's own check says no **and** it does not survive the way
    to the real numbers and back: float32 softmax over 100,000 elements fails ``simplex.check``.

    Args:
        constraint: Has a transform.
        value: The constrained value.
        name: What errors call the parameter.
        validate: None follows the default of ``torch.distributions``.
        inverse: The inverse of its transform, where the caller has it already.

    Raises:
        InvalidValueError: a value that the constraint does not admit, or of a shape to which it
            does not apply.
        UnknownConstraintError: a constraint without a transform.
    """
    if inverse is None:
        if is_identity(constraint):
            return value
        inverse = transform_of(constraint).inv
    # Detached here and behind, where needed: to enter no_grad takes as long as a logarithm.
    plain = value.detach() if value.requires_grad else value
    try:
        unconstrained: Tensor = inverse(plain)
        if unconstrained.requires_grad:  # the bounds may
            unconstrained = unconstrained.detach()
        if validate is None:
            validate = validates_by_default()
        if not validate or _lies_inside(constraint, plain) or _check(constraint, plain).all():
            return value if unconstrained is plain else unconstrained
        if _survives(plain, unconstrained, inverse.inv(unconstrained)):
            return value if unconstrained is plain else unconstrained
    except _UNFIT as error:
        raise InvalidValueError(
            f"{name!r}, of shape {tuple(value.shape)} and dtype {value.dtype}, cannot have "
            f"the constraint {shown(constraint)}: {error}"
        ) from error
    raise InvalidValueError(_refusal(constraint, plain, name))


def validates_by_default() -> bool:
    """Return the default of ``torch.distributions``, as ``set_default_validate_args`` left it."""
    return bool(Distribution._validate_args)


def shown(constraint: Constraint) -> str:
    """Return the constraint as error texts show it, on one short line."""
    text = " ".join(repr(constraint).split())
    return text if len(text) <= 100 else text[:99] + "…"


def _lies_inside(constraint: Constraint, value: Tensor) -> bool:
    """Tell of the most frequent constraints that they admit a value; False says nothing.

    Their own checks make up to six tensors, each of which takes as long as the transform.
    """
    if constraint is constraints.positive:
        return value.numel() > 0 and bool(value.min().item() > 0)  # of a NaN it is NaN
    if constraint is constraints.simplex and value.dim() == 1 and 0 < value.numel() <= _FEW:
        numbers = value.tolist()
        # A NaN may hide from Python's min, and not from its sum.
        return bool(min(numbers) > 0 and abs(sum(numbers) - 1) < 1e-6)
    return False


def _check(constraint: Constraint, value: Tensor) -> Tensor:
    admitted: Tensor = constraint.check(value)
    return admitted


def _survives(value: Tensor, unconstrained: Tensor, back: Tensor) -> bool:
    if not (unconstrained.isfinite().all() and back.isfinite().all()):
        return False
    eps = torch.finfo(value.dtype).eps
    # The absolute part is for the zeros of a matrix, which come back as rounding errors of the
    # other elements.
    close = torch.isclose(back, value, rtol=eps**0.5, atol=16 * eps * float(value.abs().max()))
    return bool(close.all())


def _refusal(constraint: Constraint, value: Tensor, name: str) -> str:
    admitted = _check(constraint, value)
    bad = f"{int((~admitted).sum())} of {admitted.numel()}"
    if admitted.shape == value.shape:
        first = value[~admitted].flatten()[0].item()
        bad += f" elements are outside, the first is {first!r}"
    else:
        bad += " events are outside"
    return (
        f"{name!r} does not satisfy its constraint {shown(constraint)}: {bad}. Pass a value inside "
        f"it or another constraint, or open the store with validate=False"
    )
