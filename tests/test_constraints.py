"""Constraint specs: every constraint to canonical JSON and back; transforms and validation."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Distribution, constraints, transform_to, transforms
from torch.distributions.constraints import Constraint

from paramstore import kinds
from paramstore.constraints import (
    INLINE,
    Spec,
    from_spec,
    is_elementwise,
    is_identity,
    is_static,
    register_constraint,
    to_spec,
    transform_of,
    unconstrain,
)
from paramstore.errors import (
    CorruptError,
    InvalidInputError,
    InvalidValueError,
    UnknownConstraintError,
    UnsupportedTensorError,
)
from paramstore.testing import strategies
from paramstore.testing.exact import exactly_equal
from paramstore.testing.strategies import singletons
from paramstore.values import to_trained

SINGLETONS = singletons()


def there_and_back(constraint: Constraint) -> Any:
    spec = to_spec(constraint)
    return from_spec(spec.text, dict(spec.tensors).__getitem__)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget afterwards what a test registers."""
    monkeypatch.setattr(kinds, "_by_class", dict(kinds._by_class))
    monkeypatch.setattr(kinds, "_by_name", dict(kinds._by_name))


# -- there and back ------------------------------------------------------------------------------


@given(strategies.constraints())
def test_every_constraint_comes_back_equal(constraint: Constraint) -> None:
    assert exactly_equal(there_and_back(constraint), constraint)


@given(strategies.constraints())
def test_equal_constraints_have_equal_specs(constraint: Constraint) -> None:
    spec = to_spec(constraint)
    assert to_spec(copy.deepcopy(constraint)) == spec
    assert to_spec(there_and_back(constraint)) == spec


@given(strategies.constraints())
def test_a_spec_is_canonical_ascii_json(constraint: Constraint) -> None:
    text = to_spec(constraint).text
    node = json.loads(text, parse_constant=pytest.fail)
    assert text.isascii()
    assert text == json.dumps(node, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("constraint", SINGLETONS, ids=repr)
def test_singletons_come_back_identical(constraint: Constraint) -> None:
    assert there_and_back(constraint) is constraint
    # A constraint out of a pickle is a copy; Pyro compares identity.
    assert there_and_back(copy.deepcopy(constraint)) is constraint


def test_every_public_constraint_of_torch_and_pyro_has_a_spec() -> None:
    pyro_constraints = pytest.importorskip("pyro.distributions.constraints")
    for home in (constraints, pyro_constraints):
        for name in home.__all__:
            value = getattr(home, name)
            if isinstance(value, Constraint):
                assert there_and_back(value) is value
            elif isinstance(value, type) and value not in (
                Constraint,
                constraints._DependentProperty,
            ):
                assert any(kind.cls is value for kind in kinds._by_name.values()), name


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (constraints.positive, '{"kind":"positive"}'),
        (constraints.greater_than(0.5), '{"kind":"greater_than","lower_bound":0.5}'),
        (constraints.greater_than(0), '{"kind":"greater_than","lower_bound":0}'),
        (constraints.greater_than(-0.0), '{"kind":"greater_than","lower_bound":-0.0}'),
        (constraints.less_than(math.inf), '{"kind":"less_than","upper_bound":{"float":"inf"}}'),
        (constraints.real_vector, '{"kind":"real_vector"}'),
        (constraints.dependent, '{"kind":"dependent"}'),
        (constraints.dependent(event_dim=1), '{"event_dim":1,"kind":"dependent"}'),
        (
            constraints.independent(constraints.positive, 2),
            '{"base":{"kind":"positive"},"kind":"independent","reinterpreted_batch_ndims":2}',
        ),
        (
            constraints.stack([constraints.real, constraints.simplex], -1),
            '{"dim":-1,"kind":"stack","parts":[{"kind":"real"},{"kind":"simplex"}]}',
        ),
        (
            constraints.greater_than(torch.tensor([1.0, -2.0])),
            '{"kind":"greater_than","lower_bound":{"tensor":{"data":"AACAPwAAAMA=","dtype":"F32",'
            '"shape":[2]}}}',
        ),
        (constraints.interval(np.float64(0.0), np.int64(1)), None),
    ],
    ids=repr,
)
def test_the_text_of_a_spec_is_stable(constraint: Constraint, text: str | None) -> None:
    assert to_spec(constraint).text == (
        text or '{"kind":"interval","lower_bound":0.0,"upper_bound":1}'
    )


def test_a_large_tensor_argument_is_stored_beside_the_spec() -> None:
    small, large = torch.zeros(INLINE // 4), torch.zeros(INLINE // 4 + 1, requires_grad=True)
    assert not to_spec(constraints.greater_than(small)).tensors
    spec = to_spec(constraints.interval(large, large))
    ((digest, tensor),) = spec.tensors
    assert f'"digest":"{digest}"' in spec.text
    assert len(spec.text) < 500
    assert not tensor.requires_grad

    with pytest.raises(CorruptError):
        from_spec(spec.text)
    with pytest.raises(CorruptError):
        from_spec(spec.text, lambda _: small)
    found: Any = from_spec(spec.text, {digest: large}.__getitem__)
    assert found.upper_bound is large


def test_tensor_arguments_are_put_on_the_device() -> None:
    spec = to_spec(constraints.greater_than(torch.zeros(2)))
    found: Any = from_spec(spec.text, device="meta")
    assert found.lower_bound.is_meta


def test_a_bound_that_is_trained_comes_back_as_a_plain_tensor() -> None:
    bound = torch.nn.Parameter(torch.ones(2))
    found = there_and_back(constraints.greater_than(bound)).lower_bound
    assert exactly_equal(found, bound.detach())


def test_a_tensor_argument_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(UnsupportedTensorError, match=r"'greater_than\.lower_bound'.*sparse"):
        to_spec(constraints.greater_than(torch.eye(2).to_sparse()))


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "argument", [Number.ONE, 1j, np.zeros(2), object(), {}], ids=lambda value: type(value).__name__
)
def test_an_argument_without_a_stored_form_is_refused(argument: object) -> None:
    with pytest.raises(UnknownConstraintError, match=r"argument greater_than\.lower_bound"):
        to_spec(constraints.greater_than(argument))


def test_a_constraint_that_contains_itself_is_refused() -> None:
    stack = constraints.stack([constraints.real])
    stack.cseq[0] = stack
    with pytest.raises(UnknownConstraintError, match="no stored form"):
        to_spec(stack)


def test_specs_compare_by_their_text() -> None:
    assert Spec("{}", (("ab", torch.zeros(2)),)) == Spec("{}")


# -- kinds ---------------------------------------------------------------------------------------


class Even(Constraint):
    def __init__(self, step: Any = 2, *, label: str | None = None) -> None:
        self.step = step
        self.label = label


class Plain(Constraint):
    pass


@pytest.mark.usefixtures("registry")
def test_a_registered_constraint_comes_back() -> None:
    for cls, name in ((Even, "even"), (Plain, "Ebene/1")):
        with pytest.raises(UnknownConstraintError, match=rf"register_constraint\({cls.__name__}"):
            to_spec(cls())
        register_constraint(cls, name)
        register_constraint(cls, name)
    arguments: list[Any] = [3, (1, [2.5, None]), torch.Size([1]), torch.ones(2), constraints.real]
    for step in arguments:
        constraint = constraints.independent(Even(step, label="é\n"), 1)
        found = there_and_back(constraint)
        assert exactly_equal(found, constraint)
    assert to_spec(Even()).text == '{"kind":"even","label":null,"step":2}'
    assert there_and_back(Plain()).__class__ is Plain


@pytest.mark.usefixtures("registry")
def test_a_class_that_is_defined_again_takes_the_place_of_the_old_one() -> None:
    register_constraint(Even, "even")
    again = type("Even", (Even,), {"__module__": Even.__module__, "__qualname__": "Even"})
    register_constraint(again, "even")
    assert type(from_spec('{"kind":"even","label":null,"step":2}')) is again


class Hidden(Constraint):
    def __init__(self, step: int) -> None:
        self._step = step


class Variadic(Constraint):
    def __init__(self, *steps: int) -> None:
        self.steps = steps


class Kindred(Constraint):
    def __init__(self, kind: str) -> None:
        self.kind = kind


@pytest.mark.usefixtures("registry")
def test_what_cannot_be_registered_is_refused() -> None:
    register_constraint(Even, "even")
    refused: list[tuple[Any, Any, str]] = [
        (Even(), "x", "not a class"),
        (int, "x", "not a class"),
        (Plain, "", "printable"),
        (Plain, 3, "printable"),
        (Plain, "positive", "taken"),
        (Plain, "sphere", "taken"),
        (Plain, "even", "taken"),
        (Even, "odd", "already registered as 'even'"),
        (type(constraints.simplex), "mine", "already registered as 'simplex'"),
        (Variadic, "x", r"\*steps"),
        (Kindred, "x", "kind: "),
    ]
    for cls, name, why in refused:
        with pytest.raises(InvalidInputError, match=why):
            register_constraint(cls, name)
    register_constraint(Hidden, "hidden")
    with pytest.raises(UnknownConstraintError, match="no attribute 'step'"):
        to_spec(Hidden(3))


def test_an_unknown_kind_says_how_to_register_it() -> None:
    unknown: list[Any] = ["os.system", "paramstore.errors.CorruptError", "", "_Real", None, [], 3]
    for kind in unknown:
        text = json.dumps({"kind": kind})
        with pytest.raises(UnknownConstraintError, match=r"paramstore\.register_constraint\("):
            from_spec(text)
        with pytest.raises(UnknownConstraintError):
            from_spec(f'{{"base":{text},"kind":"mixture_same_family"}}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '[["kind","real"]]',
        "3",
        "{}",
        '{"kind":"real","lower_bound":3}',
        '{"kind":"greater_than"}',
        '{"kind":"greater_than","lower_bound":{"float":"1"}}',
        '{"kind":"greater_than","lower_bound":{"a":1,"b":2}}',
        '{"kind":"greater_than","lower_bound":{"import":"os"}}',
        '{"kind":"greater_than","lower_bound":{"tensor":3}}',
        '{"kind":"greater_than","lower_bound":{"tensor":{"dtype":"F32","shape":[9],"data":"AA=="}}}',
        '{"kind":"greater_than","lower_bound":{"tensor":{"dtype":"F9","shape":[0],"data":""}}}',
        '{"kind":"greater_than","lower_bound":{"tensor":{"dtype":"F32","shape":["a"],"data":""}}}',
        '{"kind":"greater_than","lower_bound":{"tensor":{"dtype":"F32","shape":[0],"data":"?"}}}',
        '{"kind":"greater_than","lower_bound":{"tensor":{"dtype":"F32","shape":[3],"digest":"00"}}}',
        '{"base":3,"kind":"independent","reinterpreted_batch_ndims":1}',
        '{"base":{"kind":"real"},"kind":"independent","reinterpreted_batch_ndims":-1}',
        '{"base":{"kind":"real"},"kind":"independent","reinterpreted_batch_ndims":"1"}',
        '{"dim":0,"kind":"cat","lengths":[1,2],"parts":[{"kind":"real"}]}',
        '{"dim":0,"kind":"stack","parts":3}',
        '{"kind":"greater_than","lower_bound":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"kind":"greater_than","lower_bound":' + "9" * 10_000 + "}",
    ],
    ids=lambda text: text[:70],
)
def test_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(CorruptError, match=r"not the spec|stored"):
        from_spec(text)


def test_pyro_is_only_imported_for_its_own_constraints() -> None:
    program = """
import sys
from torch.distributions import constraints
from paramstore.constraints import from_spec, to_spec
to_spec(constraints.independent(constraints.positive, 1))
from_spec('{"kind":"simplex"}')
assert "pyro" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# -- transforms ----------------------------------------------------------------------------------

WITHOUT_TRANSFORM = {
    "boolean",
    "dependent",
    "integer",
    "lower_triangular",
    "nonnegative_integer",
    "one_hot",
    "positive_integer",
    "square",
    "symmetric",
}


@pytest.mark.parametrize("constraint", SINGLETONS, ids=repr)
def test_a_constraint_without_a_transform_is_a_spec_only(constraint: Constraint) -> None:
    if to_spec(constraint).text[9:-2] not in WITHOUT_TRANSFORM:
        assert isinstance(transform_of(constraint), transforms.Transform)
        return
    for value in (constraint, constraints.independent(constraint, 1)):
        with pytest.raises(UnknownConstraintError, match=r"spec only.*transform_to\.register"):
            transform_of(value)
        with pytest.raises(UnknownConstraintError, match="spec only"):
            unconstrain(value, torch.ones(2, 2), name="x")


def test_bounds_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(InvalidValueError, match=r"Interval.*do not fit"):
        transform_of(constraints.interval(torch.zeros(2), torch.ones(3)))
    with pytest.raises(InvalidValueError, match=r"Interval.*do not fit"):
        transform_of(constraints.interval("a", 3))


def test_only_real_and_its_vectors_are_identities() -> None:
    real = constraints.real
    identities: list[Constraint] = [real, constraints.real_vector, copy.copy(real)]
    for constraint in identities:
        assert is_identity(constraint)
        assert is_identity(constraints.independent(constraint, 2))
    assert not is_identity(constraints.stack([real]))
    for constraint in SINGLETONS:
        assert is_identity(constraint) == (constraint in (real, constraints.real_vector))


@pytest.mark.usefixtures("registry")
def test_static_means_only_plain_arguments() -> None:
    moving = constraints.interval(0.0, torch.ones(2))
    for constraint in (*SINGLETONS, constraints.interval(0, 1), constraints.independent(Even(), 1)):
        register_constraint(Even, "even")
        assert is_static(constraint)
    assert not is_static(moving)
    assert not is_static(constraints.cat([constraints.real, moving]))
    assert not is_static(constraints.independent(Even(moving), 1))
    assert not is_static(Plain())


def test_elementwise_transforms_can_be_cut_into_blocks() -> None:
    yes = [
        constraints.positive,
        constraints.unit_interval,
        constraints.interval(-1, 3),
        constraints.less_than(torch.tensor(2.0)),
        constraints.independent(constraints.greater_than(1), 1),
    ]
    no: list[Constraint] = [
        constraints.simplex,
        constraints.lower_cholesky,
        constraints.greater_than(torch.zeros(4)),
        constraints.stack([constraints.positive] * 4, -1),
    ]
    if "pyro" in sys.modules:
        yes.append(sys.modules["pyro.distributions.constraints"].softplus_positive)
        no.append(sys.modules["pyro.distributions.constraints"].ordered_vector)
    value = torch.randn(4, 4)
    for constraint in yes:
        transform = transform_of(constraint)
        assert is_elementwise(transform)
        blocks = [transform(block) for block in value.flatten().split(3)]
        assert torch.equal(torch.cat(blocks), transform(value).flatten())
    for constraint in no:
        assert not is_elementwise(transform_of(constraint))
    assert is_elementwise(transforms.ExpTransform().inv.inv)


# -- validation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "value", "why"),
    [
        (constraints.positive, torch.tensor([1.0, -2.0, 0.0]), r"2 of 3 .* first is -2\.0"),
        (constraints.positive, torch.tensor(math.nan), "first is nan"),
        (constraints.unit_interval, torch.tensor(1.5), r"first is 1\.5"),
        (constraints.simplex, torch.tensor([[0.5, 0.6], [0.5, 0.5]]), "1 of 2 events"),
        (constraints.lower_cholesky, torch.ones(2, 2), "1 of 1 events"),
        (constraints.positive_definite, -torch.eye(2), "not positive-definite"),
        (constraints.independent(constraints.positive, 1), torch.tensor(1.0), r"shape \(\)"),
        (constraints.lower_cholesky, torch.ones(2, 3), "LowerCholesky"),
        (constraints.greater_than(torch.zeros(2)), torch.ones(3), r"GreaterThan"),
    ],
    ids=str,
)
def test_a_value_outside_its_constraint_is_refused_by_name(
    constraint: Constraint, value: Tensor, why: str
) -> None:
    with pytest.raises(InvalidValueError, match=rf"(?s)'net\.scale'.*{why}"):
        unconstrain(constraint, value, name="net.scale", validate=True)


def test_a_value_that_survives_the_way_there_and_back_is_accepted() -> None:
    value = torch.softmax(torch.randn(100_000), -1)
    assert not constraints.simplex.check(value / 1.00001)
    unconstrain(constraints.simplex, value / 1.00001, name="x", validate=True)
    # And what the check accepts is not sent there: infinity is positive.
    assert unconstrain(constraints.positive, torch.tensor(math.inf), name="x", validate=True) > 0


def test_nothing_is_validated_for_an_identity() -> None:
    value = torch.tensor([math.nan, math.inf])
    assert unconstrain(constraints.real, value, name="x", validate=True) is value


def test_validation_follows_the_default_of_torch_distributions() -> None:
    before = Distribution._validate_args
    bad = torch.tensor(-1.0)
    try:
        Distribution.set_default_validate_args(True)
        with pytest.raises(InvalidValueError):
            unconstrain(constraints.positive, bad, name="x")
        assert unconstrain(constraints.positive, bad, name="x", validate=False).isnan()
        Distribution.set_default_validate_args(False)
        assert unconstrain(constraints.positive, bad, name="x").isnan()
        with pytest.raises(InvalidValueError):
            unconstrain(constraints.positive, bad, name="x", validate=True)
    finally:
        Distribution.set_default_validate_args(before)


@given(strategies.constraints())
def test_any_constraint_gives_a_value_or_a_named_error(constraint: Constraint) -> None:
    for shape in ((), (3,), (2, 3, 3)):
        try:
            value = unconstrain(constraint, torch.ones(shape), name="scale", validate=True)
        except (InvalidValueError, UnknownConstraintError) as error:
            assert str(error)  # noqa: PT017 - it may also pass
        else:
            assert isinstance(value, Tensor)


@pytest.mark.parametrize("constraint", SINGLETONS, ids=repr)
def test_what_a_transform_gives_is_accepted(constraint: Constraint) -> None:
    try:
        transform = transform_to(constraint)
    except NotImplementedError:
        return
    dimensions = {"CorrCholesky()": (3,), "CorrMatrix()": (3,), "_CorrMatrix": (3,)}
    for dtype in (torch.float32, torch.float64):
        free = torch.randn(dimensions.get(repr(constraint), (3, 3)), dtype=dtype)
        value = transform(free)
        again = transform(unconstrain(constraint, value, name="x", validate=True))
        torch.testing.assert_close(again, value, rtol=1e-3, atol=1e-5)


def test_unconstraining_needs_no_gradient() -> None:
    value = torch.ones(2, requires_grad=True)
    assert not unconstrain(constraints.positive, value, name="x").requires_grad
    bound = torch.zeros(2, requires_grad=True)
    assert not unconstrain(constraints.greater_than(bound), value, name="x").requires_grad


def test_a_value_that_a_transform_hands_through_stays_the_callers() -> None:
    class Anything(Constraint):
        def check(self, value: Tensor) -> Tensor:
            return value == value

    transform_to.register(Anything, lambda _: transforms.identity_transform)
    for value in (torch.ones(2), torch.ones(2, requires_grad=True)):
        trained = to_trained("x", value, Anything(), transform_to(Anything()).inv, validate=True)
        assert trained.data_ptr() != value.data_ptr()


@pytest.mark.parametrize("constraint", [constraints.positive, constraints.simplex], ids=repr)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, -1e-9, 0.25, 0.5, 1.0, 1e-30, math.nan, math.inf])),
    rows=st.sampled_from([None, 1, 2]),
    whole=st.booleans(),
)
def test_the_quick_look_at_a_value_admits_nothing_that_the_check_does_not(
    constraint: Constraint, values: list[float], rows: int | None, whole: bool
) -> None:
    value = torch.tensor(values)
    if whole:
        value = value / value.sum()
    if rows is not None:
        value = value.expand(rows, -1)
    try:
        unconstrain(constraint, value, name="x", validate=True)
    except InvalidValueError:
        assert not constraint.check(value).all()
    else:
        admitted = bool(constraint.check(value).all())
        assert admitted or torch.allclose(value.log().softmax(-1), value, rtol=1e-3)


def test_a_number_that_json_cannot_hold_is_still_exact() -> None:
    found = there_and_back(constraints.interval(-math.inf, math.nan))
    assert found.lower_bound == -math.inf
    assert math.isnan(found.upper_bound)
