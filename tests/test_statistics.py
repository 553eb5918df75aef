from __future__ import annotations

import math
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor
from torch.distributions import constraints, transform_to, transforms
from torch.distributions.transforms import Transform

from paramstore.moments import LONGEST
from paramstore.snapshot import Statistics, parse_value
from paramstore.statistics import BLOCK, WHOLE, describe

INF, NAN = math.inf, math.nan


def one(tensor: Tensor, transform: Transform | None = None) -> Statistics:
    (found,) = describe([(tensor, transform)])
    return found


def expected(values: Any) -> dict[str, float | int | None]:
    """The definitions, in extended precision."""
    flat = np.asarray(values).ravel().astype(np.longdouble)
    finite = flat[np.isfinite(flat)]
    odd = {"nan_count": int(np.isnan(flat).sum()), "inf_count": int(np.isinf(flat).sum())}
    if not finite.size:
        return {**dict.fromkeys(("norm", "mean", "std", "min", "max")), **odd}
    mean = finite.mean()
    return {
        "norm": float(np.sqrt((finite * finite).sum())),
        "mean": float(mean),
        "std": float(np.sqrt(((finite - mean) ** 2).mean())),
        "min": float(finite.min()),
        "max": float(finite.max()),
        **odd,
    }


def check(found: Statistics, values: Any) -> None:
    wanted = expected(values)
    for name in ("min", "max", "nan_count", "inf_count"):
        assert getattr(found, name) == wanted[name], name
    if wanted["norm"] is None:
        assert (found.norm, found.mean, found.std) == (None, None, None)
        return
    tiny = 5e-324
    assert found.norm == pytest.approx(wanted["norm"], rel=1e-6, abs=tiny)
    assert found.std == pytest.approx(wanted["std"], rel=1e-6, abs=tiny)
    assert isinstance(wanted["mean"], float)
    assert isinstance(wanted["std"], float)
    # A mean near zero is the difference of large numbers: its error is measured by the spread.
    spread = max(abs(wanted["mean"]), wanted["std"])
    assert found.mean == pytest.approx(wanted["mean"], rel=0, abs=1e-6 * spread + tiny)


floats32 = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, 1.0, 1e3, 1000.01, 3e38, -3e38, 1e-40, 1e-45, INF, -INF, NAN]),
)
floats64 = st.one_of(st.floats(), st.sampled_from([1e300, -1.7e308, 5e-324, 1e-200, 1.0]))


@given(arrays(np.float32, array_shapes(min_dims=0, max_dims=3, min_side=0), elements=floats32))
def test_float32_statistics_follow_the_definitions(array: Any) -> None:
    check(one(torch.from_numpy(array)), array)


@given(arrays(np.float64, array_shapes(min_dims=0, max_dims=3, min_side=0), elements=floats64))
def test_float64_statistics_follow_the_definitions(array: Any) -> None:
    found = one(torch.from_numpy(array))
    wanted = expected(array)
    if wanted["norm"] is not None and wanted["norm"] > 1.797e308:  # where float64 ends
        assert found.norm is not None
        assert found.norm > 1.797e308
        return
    check(found, array)


@settings(max_examples=40)
@given(
    st.sampled_from([LONGEST - 1, LONGEST, LONGEST + 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77]),
    st.floats(-1e4, 1e4),
    st.floats(1e-3, 1e6),
    st.integers(0, 2**32 - 1),
    st.dictionaries(st.integers(0, LONGEST - 2), floats32, max_size=3),
)
def test_large_tensors_are_merged_from_blocks(
    size: int, centre: float, spread: float, seed: int, odd: dict[int, float]
) -> None:
    random = np.random.default_rng(seed)
    array = (centre + spread * random.standard_normal(size)).astype(np.float32)
    for place, value in odd.items():
        array[place] = value
    check(one(torch.from_numpy(array)), array)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([(), (0,), (1,), (3,), (2, 2), (4,), (40,), (300, 40)]),
            st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]),
            st.sampled_from([None, "positive", "interval"]),
        ),
        max_size=12,
    )
)
def test_a_batch_gives_what_each_tensor_gives_alone(
    recipes: list[tuple[tuple[int, ...], torch.dtype, str | None]],
) -> None:
    kinds = {"positive": constraints.positive, "interval": constraints.interval(-1.0, 3.0)}
    items = []
    for number, (shape, dtype, kind) in enumerate(recipes):
        tensor = torch.linspace(-2, 2 + number, math.prod(shape)).view(shape).to(dtype)
        items.append((tensor, transform_to(kinds[kind]) if kind else None))
    together = describe(items)
    alone = [one(*item) for item in items]
    for left, right in zip(together, alone, strict=True):
        for name in ("norm", "mean", "std", "min", "max"):
            wanted = getattr(right, name)
            close = wanted if wanted is None else pytest.approx(wanted, rel=1e-6, abs=1e-12)
            assert getattr(left, name) == close
        assert (left.value, left.unconstrained) == (right.value, right.unconstrained)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "tensor",
    [
        1000 + 0.01 * random(3 * BLOCK),
        1000 + 0.01 * random(40),
        3e38 * torch.sign(random(BLOCK)),
        torch.full((BLOCK,), 3e38),
        random(BLOCK) * 1e-42,
        random(BLOCK) * 1e-30,
        random(BLOCK).double() * 1e300,
        random(BLOCK).double() * 1e-300,
        torch.cat([torch.tensor([1e6]), random(LONGEST - 1)]),
        torch.cat([torch.full((8, 1), 1e6), random(8, LONGEST - 1)], dim=1),
        torch.arange(3 * BLOCK, dtype=torch.float32),
        torch.cat([torch.zeros(BLOCK), random(BLOCK) + 1e5]),
        torch.cat([random(BLOCK) + 1e5, torch.zeros(BLOCK)]),
        torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()]),
        torch.full((BLOCK,), NAN),
        torch.tensor([INF, -INF, NAN, 2.0]),
    ],
)
def test_float32_is_right_to_a_millionth_where_it_is_hard(tensor: Tensor) -> None:
    check(one(tensor), tensor)
    check(one(tensor.flip(0)), tensor)


@pytest.mark.parametrize("size", [3, 40, LONGEST])
def test_stacked_tensors_do_not_disturb_each_other(size: int) -> None:
    tensors = [
        centre + spread * random(size).roll(number)
        for number, (centre, spread) in enumerate(
            (centre, spread)
            for centre in (0.0, 1.0, -1e5, 1e20, 3e-39)
            for spread in (1e-42, 1e-3, 0.25, 40.0, 1e19)
        )
    ]
    for index in (3, 7):
        tensors[index][0] = NAN
    for found, tensor in zip(describe([(t, None) for t in tensors]), tensors, strict=True):
        check(found, tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_tensor_gives_what_its_copy_gives() -> None:
    items: list[tuple[Tensor, Transform | None]] = [
        (random(3 * BLOCK + 5), None),
        (random(40), transforms.ExpTransform()),
        (random(40), transforms.ExpTransform()),
        (random(1), transforms.SigmoidTransform()),
        (random(50, 50).bfloat16(), None),
        (random(50, 50), transform_to(constraints.simplex)),
    ]
    here = describe(items)
    there = describe([(tensor.cuda(), transform) for tensor, transform in items])
    for left, right in zip(here, there, strict=True):
        for name in ("norm", "mean", "std", "min", "max"):
            assert getattr(right, name) == pytest.approx(getattr(left, name), rel=1e-6)


@pytest.mark.parametrize("size", [3, 1000, 100_000])
def test_a_constant_has_no_spread_and_its_own_mean(size: int) -> None:
    found = one(torch.full((size,), 0.1))
    value = torch.tensor(0.1).item()
    assert (found.std, found.mean, found.min, found.max) == (0.0, value, value, value)


REALS = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("size", [1, 5, LONGEST + 5])
def test_every_real_dtype_is_described(dtype: torch.dtype, size: int) -> None:
    tensor = (random(size).abs() * 3).to(dtype)
    check(one(tensor), tensor.double().numpy())
    check(describe([(tensor, None), (tensor, None)])[1], tensor.double().numpy())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", [5, LONGEST // 2 + 5, LONGEST + 5])
def test_a_complex_tensor_has_norm_and_counts_only(dtype: torch.dtype, size: int) -> None:
    tensor = torch.complex(random(size), random(size)).to(dtype)
    torch.view_as_real(tensor)[:2] = torch.tensor([[NAN, INF], [3, -INF]])
    for view in (tensor, tensor.conj(), tensor.clone().requires_grad_()):
        found = one(view)
        assert found.norm == pytest.approx(torch.linalg.vector_norm(tensor[2:]).item(), rel=1e-6)
        assert (found.mean, found.std, found.min, found.max) == (None, None, None, None)
        assert (found.nan_count, found.inf_count) == (1, 1)


@pytest.mark.parametrize("side", [4, 40])
@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t,
        lambda t: t.permute(3, 0, 1, 2),
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t[:, 1:, ::2],
        lambda t: t[:1].expand(7, *t.shape[1:]),
        lambda t: t.requires_grad_(),
        lambda t: torch.nn.Parameter(t),
        lambda t: torch._neg_view(t),
        lambda t: t.to_sparse(),
        lambda t: t.flatten()[:0],
        lambda t: t.flatten()[0],
    ],
)
def test_any_layout_is_described_and_left_alone(
    side: int, layout: Callable[[Tensor], Tensor]
) -> None:
    tensor = layout(random(4, 3, side, side))
    before, version = tensor.detach().to_dense().clone(), tensor._version
    check(one(tensor), before.numpy())
    assert tensor._version == version
    assert torch.equal(tensor.detach().to_dense(), before)


def test_an_empty_tensor_and_an_empty_batch_have_nothing() -> None:
    assert one(torch.empty(0, 3)) == Statistics()
    assert describe([]) == []


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.tensor(0.1), "0.10000000149011612"),
        (torch.tensor([[0.1]], dtype=torch.float64), "0.1"),
        (torch.tensor(-0.0), "-0.0"),
        (torch.tensor(1e30, dtype=torch.float64), "1e+30"),
        (torch.tensor(NAN), '"NaN"'),
        (torch.tensor([INF]), '"Infinity"'),
        (torch.tensor(-INF), '"-Infinity"'),
        (torch.tensor(True), "true"),
        (torch.tensor(False), "false"),
        (torch.tensor(2**63 - 1), "9223372036854775807"),
        (torch.tensor(1.5, dtype=torch.bfloat16), "1.5"),
        (torch.tensor(1.5).to(torch.float8_e5m2), "1.5"),
        (torch.tensor(complex(1, NAN)), '[1.0, "NaN"]'),
        (torch.tensor(complex(1, 2)).conj(), "[1.0, -2.0]"),
        (torch.tensor([1.0, 2.0]), None),
    ],
)
def test_the_value_of_one_element_is_json(tensor: Tensor, text: str | None) -> None:
    assert one(tensor).value == text


@given(st.floats(width=32), st.sampled_from(["real", "positive", "unit_interval"]))
def test_the_value_is_the_constrained_one_bit_by_bit(number: float, kind: str) -> None:
    tensor = torch.tensor([number])
    transform = None if kind == "real" else transform_to(getattr(constraints, kind))
    found = describe([(torch.zeros(1), transform), (tensor, transform)])[1]
    wanted = (tensor if transform is None else transform(tensor)).item()
    value = parse_value(found.value)
    assert value == wanted or (value != value and wanted != wanted)


AFFINE = transforms.AffineTransform(2.0, -3.0)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.ExpTransform(),
        transforms.SigmoidTransform(),
        transforms.SoftplusTransform(),
        transforms.TanhTransform(),
        AFFINE,
        transforms.AffineTransform(torch.tensor(2.0), torch.tensor(3.0)),
        transforms.ComposeTransform([transforms.SigmoidTransform(), AFFINE]),
        transforms.ComposeTransform([]),
        transforms.IndependentTransform(transforms.ExpTransform(), 1),
        transform_to(constraints.interval(-1.0, 3.0)),
        transform_to(constraints.greater_than(1000.0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3, 4), (300, 400)])
def test_element_wise_transforms_are_applied_at_any_size(
    transform: Transform, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = random(*shape).to(dtype)
    found = one(tensor, transform)
    assert not found.unconstrained
    check(found, transform(tensor).double().numpy())


def test_pyros_softplus_is_applied_at_any_size() -> None:
    pyro = pytest.importorskip("pyro.distributions.transforms")
    tensor = random(2 * WHOLE)
    found = one(tensor, pyro.SoftplusTransform())
    assert not found.unconstrained
    check(found, pyro.SoftplusTransform()(tensor))


@pytest.mark.parametrize("kind", [constraints.simplex, constraints.lower_cholesky])
def test_other_transforms_are_applied_to_small_tensors_only(kind: Any) -> None:
    small, large = random(50, 50), random(300, 300)
    transform = transform_to(kind)
    found = describe([(small, transform), (large, transform)])
    assert [row.unconstrained for row in found] == [False, True]
    check(found[0], transform(small))
    check(found[1], large)


def test_a_transform_that_adds_elements_gives_them_all() -> None:
    transform = transforms.StickBreakingTransform()
    found = one(torch.tensor([0.3]), transform)
    check(found, transform(torch.tensor([0.3])))
    assert found.value is None


class _Failing(Transform):
    domain = codomain = constraints.real

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def _call(self, x: Tensor) -> object:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    "transform",
    [
        _Failing(ValueError("odd value")),
        _Failing(None),
        _Failing("text"),
        transforms.AffineTransform(torch.zeros(1, 1, 1), 1.0),
        transforms.AffineTransform(torch.zeros(3), 1.0),
        transforms.AffineTransform("a", 1.0),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("size", [2, 5, 2 * BLOCK])
def test_a_transform_that_fails_costs_no_commit(transform: Transform, size: int) -> None:
    tensor = random(size)
    good, found = describe([(tensor, transforms.ExpTransform()), (tensor, transform)])
    check(good, tensor.exp())
    assert found.unconstrained
    check(found, tensor)


def threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def in_a_fresh_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_no_other_thread_is_started_and_no_setting_changed() -> None:
    large = random(4 * BLOCK)
    items: list[tuple[Tensor, Transform | None]] = [
        (large, None),
        (large.bfloat16(), None),
        (large, transforms.ExpTransform()),
        (large, transform_to(constraints.interval(0.0, 1.0))),
        (large[: 200 * 200].view(200, 200), transform_to(constraints.lower_cholesky)),
        (large[:50_000], transform_to(constraints.simplex)),
        *((torch.randn(256), transforms.ExpTransform()) for _ in range(300)),
    ]
    before = torch.get_num_threads()
    seen = []

    def work() -> None:
        known, setting = threads(), torch.get_num_threads()
        describe(items)
        # A thread's OpenMP and MKL make their helpers at the first parallel operation; they stay.
        seen.append(threads() - known)
        seen.append(torch.get_num_threads() - setting)

    try:
        torch.set_num_threads(4)
        in_a_fresh_thread(work)
        assert torch.get_num_threads() == 4
        in_a_fresh_thread(lambda: seen.append(torch.get_num_threads() - 4))
    finally:
        torch.set_num_threads(before)
    assert seen == [0, 0, 0]


def test_no_memory_is_needed_that_grows_with_the_tensors() -> None:
    tensor = random(64 * BLOCK)
    one(tensor)
    tracemalloc.start()
    try:
        describe([(tensor, None), (tensor.view(2048, -1).T, None)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < tensor.nbytes / 8


def test_results_are_ordinary_frozen_statistics() -> None:
    found = one(torch.tensor([3.0, 4.0]))
    wanted = Statistics(norm=5.0, mean=3.5, std=0.5, min=3.0, max=4.0)
    assert found == wanted
    assert hash(found) == hash(wanted)
    with pytest.raises(AttributeError):
        found.norm = 1.0  # type: ignore[misc]
