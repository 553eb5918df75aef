"""Pyro's own constraints, for the files and stores that carry them where Pyro is not installed.

Classes, names and bits as in ``pyro.distributions.constraints`` (pyro-ppl 1.8 and 1.9); must never
import Pyro, nor take the place of its classes where it is there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to, transforms
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

# -- the constraints ---------------------------------------------------------------------------


class _Integer(Constraint):
    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        whole: Tensor = value % 1 == 0
        return whole


class _Sphere(Constraint):
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        error = (torch.linalg.norm(value, dim=-1) - 1).abs()
        near: Tensor = error < 10 * torch.finfo(value.dtype).eps * value.size(-1) ** 0.5
        return near


class _CorrMatrix(Constraint):
    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        unit: Tensor = ((value.diagonal(dim1=-2, dim2=-1) - 1).abs() < 1e-6).all(-1)
        unit &= constraints.positive_definite.check(value)
        return unit


class _OrderedVector(Constraint):
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        if value.ndim == 0:
            return torch.tensor(data=False, device=value.device)
        return (value[..., 1:] > value[..., :-1]).all(-1)


class _PositiveOrderedVector(Constraint):
    def check(self, value: Tensor) -> Tensor:
        positive: Tensor = constraints.independent(constraints.positive, 1).check(value)
        return positive & ordered_vector.check(value)


class _SoftplusPositive(type(constraints.positive)):  # type: ignore[misc]  # torch hides the class
    def __init__(self) -> None:
        super().__init__(lower_bound=0.0)


class _SoftplusLowerCholesky(type(constraints.lower_cholesky)):  # type: ignore[misc]
    pass


class _UnitLowerCholesky(Constraint):
    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        ones: Tensor = (value.diagonal(dim1=-2, dim2=-1) == 1).all(-1)
        ones &= constraints.lower_triangular.check(value)
        return ones


corr_matrix = _CorrMatrix()
integer = _Integer()
ordered_vector = _OrderedVector()
positive_ordered_vector = _PositiveOrderedVector()
softplus_lower_cholesky = _SoftplusLowerCholesky()
softplus_positive = _SoftplusPositive()
sphere = _Sphere()
unit_lower_cholesky = _UnitLowerCholesky()


# -- their transforms, operation by operation as Pyro's ----------------------------------------


class _Normalize(Transform):
    domain = constraints.real_vector
    codomain = sphere

    def _call(self, x: Tensor) -> Tensor:
        norm = torch.linalg.norm(x, dim=-1, ord=2, keepdim=True)
        x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)
        x.data[..., 0][x.data.eq(0).all(dim=-1)] = 1  # zero goes to (1, 0, 0, …)
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        return y


class _Ordered(Transform):
    domain = constraints.real_vector
    codomain = ordered_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x[..., 1:].exp()], dim=-1).cumsum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., :1], (y[..., 1:] - y[..., :-1]).log()], dim=-1)


class _Gram(Transform):
    domain = constraints.corr_cholesky
    codomain = corr_matrix
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return torch.matmul(x, x.transpose(-2, -1))

    def _inverse(self, y: Tensor) -> Tensor:
        lower: Tensor = torch.linalg.cholesky(y)
        return lower


class _SoftplusDiagonal(Transform):
    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + softplus(x.diagonal(dim1=-2, dim2=-1)).diag_embed()

    def _inverse(self, y: Tensor) -> Tensor:
        diagonal = y.diagonal(dim1=-2, dim2=-1)
        return y.tril(-1) + (diagonal + diagonal.neg().expm1().neg().log()).diag_embed()


class _UnitDiagonal(Transform):
    domain = constraints.independent(constraints.real, 2)
    codomain = unit_lower_cholesky

    def _call(self, x: Tensor) -> Tensor:
        return x.tril(-1) + torch.eye(x.size(-1), device=x.device, dtype=x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return y


_TRANSFORMS = {
    sphere: lambda _: _Normalize(),
    corr_matrix: lambda _: transforms.ComposeTransform(
        [transforms.CorrCholeskyTransform(), _Gram()]
    ),
    ordered_vector: lambda _: _Ordered(),
    positive_ordered_vector: lambda _: transforms.ComposeTransform(
        [_Ordered(), transforms.ExpTransform()]
    ),
    softplus_positive: lambda _: transforms.SoftplusTransform(),
    softplus_lower_cholesky: lambda _: _SoftplusDiagonal(),
    unit_lower_cholesky: lambda _: _UnitDiagonal(),
}
for _constraint, _make in _TRANSFORMS.items():
    transform_to.register(_constraint, _make)
