"""Extras and attached state: the exact type of everything, or a refusal that names the place."""

from __future__ import annotations

import enum
import json
import math
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils

from paramstore import tensors
from paramstore.errors import CorruptError, UnsupportedExtraError
from paramstore.extras import INLINE, MAX_DEPTH, Encoder, decode
from paramstore.testing import strategies
from paramstore.testing.exact import exactly_equal


def there_and_back(value: object) -> Any:
    """As a store does it: large tensors as blobs."""
    encoder = Encoder()
    skeleton = encoder.encode(value, "extras['x']")
    encoded = [tensors.encode(tensor, name="x") for tensor in encoder.tensors]
    blobs = [b"".join((blob.header, *blob.chunks())) for blob in encoded]
    return decode(skeleton, lambda number: tensors.decode(blobs[number]))


def skeleton_of(value: object) -> str:
    return Encoder().encode(value, "extras['x']")


def never(number: int) -> Tensor:
    raise AssertionError(number)


# -- there and back ------------------------------------------------------------------------------


@given(strategies.extras())
def test_every_value_comes_back_with_its_exact_type(value: object) -> None:
    assert exactly_equal(there_and_back(value), value)


@given(strategies.extras())
def test_a_skeleton_is_ascii_json_and_the_same_again(value: object) -> None:
    skeleton = skeleton_of(value)
    json.loads(skeleton, parse_constant=pytest.fail)
    assert skeleton.isascii()
    assert skeleton_of(there_and_back(value)) == skeleton


def test_plain_values_read_as_plain_json() -> None:
    value = {"epoch": 3, "loss": [0.5, None], "who": "Ärger", "done": True}
    assert json.loads(skeleton_of(value)) == value


@pytest.mark.parametrize(
    ("value", "skeleton"),
    [
        ({0: "a"}, '{"$dict":[[0,"a"]]}'),
        ({"$tuple": 1}, '{"$dict":[["$tuple",1]]}'),
        ((1, -0.0), '{"$tuple":[1,-0.0]}'),
        (math.nan, '{"$float":"nan"}'),
        (2**63, '{"$int":"0x8000000000000000"}'),
        (-1j, '{"$complex":[-0.0,-1.0]}'),
        (b"\xff", '{"$bytes":"/w=="}'),
        (OrderedDict(a=1), '{"$odict":[[["a",1]]]}'),
        (Counter("aa"), '{"$counter":[["a",2]]}'),
        (torch.Size([2]), '{"$size":[2]}'),
        (torch.float16, '{"$dtype":"torch.float16"}'),
        (torch.device("cuda:1"), '{"$device":"cuda:1"}'),
        (
            torch.ones(1, requires_grad=True),
            '{"$tensor":{"dtype":"F32","shape":[1],"requires_grad":true,"data":"AACAPw=="}}',
        ),
        (np.int8(5), '{"$scalar":{"dtype":"|i1","data":"BQ=="}}'),
        (np.zeros(1, np.int8), '{"$array":{"dtype":"|i1","shape":[1],"data":"AA=="}}'),
    ],
    ids=str,
)
def test_the_text_of_a_skeleton_is_stable(value: object, skeleton: str) -> None:
    assert skeleton_of(value) == skeleton


def test_large_data_goes_into_tensors_beside_the_skeleton() -> None:
    encoder = Encoder()
    large = torch.zeros(INLINE + 1, dtype=torch.uint8)
    array = np.zeros(INLINE + 1, np.int8)
    value = [torch.zeros(INLINE, dtype=torch.uint8), large, bytes(INLINE + 1), large, array]
    skeleton = encoder.encode(value, "extras['x']")
    assert len(skeleton) < 2 * INLINE
    assert len(encoder.tensors) == 3
    assert encoder.tensors[0] is large
    assert encoder.tensors[2].data_ptr() == array.ctypes.data
    # The numbers go on: one encoder serves all extras of a snapshot.
    assert encoder.encode([large, torch.ones(5000)], "extras['y']").endswith('"data":3}}]')
    assert exactly_equal(there_and_back(value), value)


def test_a_tensor_keeps_its_memory_layout() -> None:
    # Moments in another layout than their parameter take other kernels, which round differently.
    for shape in ((2, 3, 4, 5), (8, 16, 3, 5)):
        value = torch.rand(shape).to(memory_format=torch.channels_last)
        assert there_and_back(value).stride() == value.stride()
        assert there_and_back(value.transpose(0, 3)).stride() == value.transpose(0, 3).stride()
    assert there_and_back(torch.rand(4, 4)[:, :2]).is_contiguous()
    assert there_and_back(torch.rand(4).expand(3, 4)).is_contiguous()
    assert np.isfortran(there_and_back(np.ones((2, 3), order="F")))


def test_a_value_with_a_graph_comes_back_without() -> None:
    loss = torch.ones(1, requires_grad=True) * 2
    found = there_and_back({"loss": loss})["loss"]
    assert not found.requires_grad
    assert found == 2


def test_a_parameter_comes_back_as_one() -> None:
    for trained in (True, False):
        found = there_and_back(nn.Parameter(torch.ones(2), requires_grad=trained))
        assert type(found) is nn.Parameter
        assert found.requires_grad is trained


def test_the_versions_of_a_module_travel_with_its_state() -> None:
    state = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    found = there_and_back(state)
    assert exactly_equal(found, state)
    assert found._metadata["1"] == {"version": 2}


def test_arrays_can_be_written_to() -> None:
    for array in (np.zeros(3), np.zeros(3000), np.frombuffer(b"ab", np.uint8)):
        found = there_and_back(array)
        found[0] = 1
        assert found[0] == 1


def test_the_state_of_generators_comes_back() -> None:
    state = np.random.get_state(legacy=False)
    assert exactly_equal(there_and_back(state), state)
    bits = np.random.default_rng(3).bit_generator.state
    assert exactly_equal(there_and_back(bits), bits)
    assert exactly_equal(there_and_back(torch.get_rng_state()), torch.get_rng_state())


# -- optimisers and schedulers -------------------------------------------------------------------


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(40, 50))]


def groups(live: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": live[:1], "lr": 0.1}, {"params": live[1:]}]


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "Adagrad": torch.optim.Adagrad,
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(groups(p)),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=torch.tensor(0.1), foreach=False),
    "ASGD": torch.optim.ASGD,
    "LBFGS": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"),
    "Muon": torch.optim.Muon,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Rprop": torch.optim.Rprop,
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SparseAdam": torch.optim.SparseAdam,
}


def train(optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    live = [p for group in optimizer.param_groups for p in group["params"]]

    def closure() -> float:
        for p in live:
            gradient = 2 * p.detach() + 0.1
            sparse = type(optimizer) is torch.optim.SparseAdam
            p.grad = gradient.to_sparse(1) if sparse else gradient
        return float(sum((p.detach() ** 2).sum() for p in live))

    for _ in range(steps):
        optimizer.step(closure)


def test_the_table_names_every_optimizer_of_torch() -> None:
    found = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    assert found - {"Optimizer"} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_the_state_of_every_optimizer_comes_back_exactly(name: str) -> None:
    optimizer = OPTIMIZERS[name](parameters())
    for steps in (0, 3):
        train(optimizer, steps)
        state = optimizer.state_dict()
        assert exactly_equal(there_and_back(state), state)


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_every_optimizer_goes_on_from_the_state_that_came_back(name: str) -> None:
    whole, halves = parameters(), parameters()
    first, second = OPTIMIZERS[name](whole), OPTIMIZERS[name](halves)
    train(first, 2)
    train(second, 2)
    state = there_and_back(second.state_dict())
    second = OPTIMIZERS[name](halves)
    second.load_state_dict(state)
    train(first, 2)
    train(second, 2)
    assert exactly_equal(halves, whole)
    assert exactly_equal(second.state_dict(), first.state_dict())


class Warmup:
    """A factor with a state of its own, which LambdaLR stores."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)


Schedule = Callable[[torch.optim.Optimizer], Any]
SCHEDULERS: dict[str, Schedule] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
    "ConstantLR": lr_scheduler.ConstantLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, mode="exp_range"),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, Warmup(5)),
    "LinearLR": lr_scheduler.LinearLR,
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 3]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.95),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, 3),
}


def test_the_table_names_every_scheduler_of_torch() -> None:
    found = {
        name
        for name, cls in {**vars(lr_scheduler), **vars(swa_utils)}.items()
        if isinstance(cls, type) and issubclass(cls, lr_scheduler.LRScheduler)
    }
    assert found - {"LRScheduler", "_LRScheduler"} == set(SCHEDULERS)


@pytest.mark.parametrize("tensor_rate", [False, True])
@pytest.mark.parametrize("name", [*SCHEDULERS])
def test_the_state_of_every_scheduler_comes_back_exactly(name: str, tensor_rate: bool) -> None:
    rate = torch.tensor(0.1) if tensor_rate else 0.1
    optimizer = torch.optim.SGD(parameters(), rate, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    for loss in (3.0, 2.0, 2.5, 2.6):
        train(optimizer, 1)
        scheduler.step(*([loss] if name == "ReduceLROnPlateau" else []))
        for stateful in (scheduler, optimizer):
            state = stateful.state_dict()
            assert exactly_equal(there_and_back(state), state)
    scheduler.load_state_dict(there_and_back(scheduler.state_dict()))


def test_an_averaged_model_comes_back() -> None:
    model = swa_utils.AveragedModel(nn.Linear(2, 2), use_buffers=True)
    model.update_parameters(nn.Linear(2, 2))
    state = model.state_dict()
    assert exactly_equal(there_and_back(state), state)


# -- refusals ------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Small(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


class Own(dict[str, int]):
    pass


Point = namedtuple("Point", "x y")

REFUSED = {
    "enum": Colour.RED,
    "int enum": Small.ONE,
    "text subclass": Text("a"),
    "dict subclass": Own(),
    "named tuple": Point(1, 2),
    "defaultdict": defaultdict(int),
    "deque": deque([1]),
    "set": {1},
    "frozenset": frozenset(),
    "bytearray": bytearray(b"a"),
    "range": range(3),
    "fraction": Fraction(1, 3),
    "function": len,
    "class": int,
    "module": nn.Linear(1, 1),
    "surrogate": "a\ud800",
    "array of objects": np.array([object()]),
    "array with fields": np.zeros(2, [("a", "i4")]),
    "array subclass": np.ma.array([1]),
    "text scalar": np.str_("a"),
    "longlong": np.longlong(3),
    "sparse tensor": torch.eye(2).to_sparse(),
    "meta tensor": torch.ones(2, device="meta"),
    "large meta tensor": torch.ones(2000, device="meta"),
    "tensor subclass": torch.ones(2).as_subclass(type("Named", (Tensor,), {})),
    "layout": torch.strided,
    "generator": torch.Generator(),
    "NotImplemented": NotImplemented,
}


@pytest.mark.parametrize("kind", [*REFUSED])
def test_anything_else_is_refused_with_its_path(kind: str) -> None:
    value = {"a": [0, {"b": (None, REFUSED[kind])}]}
    with pytest.raises(UnsupportedExtraError) as caught:
        skeleton_of(value)
    assert str(caught.value).startswith("extras['x']['a'][1]['b'][1] ")


@pytest.mark.parametrize(
    "key", [b"a", 1j, Small.ONE, torch.float32, (1, b"a"), "\ud800", Text("a")]
)
def test_a_key_of_another_type_is_refused_with_its_path(key: object) -> None:
    for make in (dict, OrderedDict, Counter):
        with pytest.raises(UnsupportedExtraError, match=r"extras\['x'\]\[1\]\[.+\]"):
            skeleton_of([0, make({key: 1})])


def test_a_cycle_is_refused_with_its_path_and_shared_values_are_not() -> None:
    inner: list[object] = [1]
    assert there_and_back([inner, inner]) == [[1], [1]]
    inner.append({"again": inner})
    with pytest.raises(
        UnsupportedExtraError, match=r"extras\['x'\]\[0\]\[1\]\['again'\] contains itself"
    ):
        skeleton_of([inner])
    inner.pop()
    assert skeleton_of([inner]) == "[[1]]"


def test_deep_nesting_has_a_limit() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = (value,)
    assert exactly_equal(there_and_back(value), value)
    with pytest.raises(UnsupportedExtraError, match="nested deeper than 100"):
        skeleton_of([value])


def test_an_encoder_goes_on_after_a_refusal() -> None:
    encoder = Encoder()
    inner = [len]
    for _ in range(2):
        with pytest.raises(UnsupportedExtraError, match=r"^extras\['x'\]\['a'\]\[0\] is of type"):
            encoder.encode({"a": inner}, "extras['x']")
    assert encoder.encode([1], "extras['x']") == "[1]"


@pytest.mark.parametrize(
    "skeleton",
    [
        "",
        "{",
        '{"$pickle":"gASVBQ=="}',
        '{"$tuple":1}',
        '{"$tuple":[1],"x":2}',
        '{"x":2,"$tuple":[1]}',
        '{"$dict":[[[],1]]}',
        '{"$dict":[["a",1],["a",2]]}',
        '{"$dict":[1]}',
        '{"$odict":[[],3]}',
        '{"$odict":[[],{"a":1},{"b":2},3]}',
        '{"$counter":[["a"]]}',
        '{"$int":3}',
        '{"$int":"0xg"}',
        '{"$float":"1.5"}',
        '{"$float":5}',
        '{"$float":"nan:00"}',
        '{"$float":"nan:3ff0000000000000"}',
        '{"$complex":[1]}',
        '{"$complex":["a","b"]}',
        '{"$bytes":"?"}',
        '{"$bytes":null}',
        '{"$size":["a"]}',
        '{"$dtype":"os"}',
        '{"$device":"moon:3"}',
        '{"$tensor":{}}',
        '{"$tensor":{"dtype":"F32","shape":[1000000000000],"data":""}}',
        '{"$tensor":{"dtype":"F32","shape":[1.0],"data":"AACAPw=="}}',
        '{"$tensor":{"dtype":"I32","shape":[1],"requires_grad":true,"data":"AACAPw=="}}',
        '{"$tensor":{"dtype":"F32","shape":[1,1],"strides":[1],"data":"AACAPw=="}}',
        '{"$tensor":{"dtype":"U8","shape":[2],"strides":[1000000000000],"data":"AAA="}}',
        '{"$tensor":{"dtype":"F32","shape":[9],"data":0}}',
        '{"$array":{"dtype":"|O","shape":[1],"data":"AAAAAAAAAAA="}}',
        '{"$array":{"dtype":"i4,i4","shape":[1],"data":"AAAAAAAAAAA="}}',
        '{"$array":{"dtype":"<f8","shape":[-1],"data":"AAAAAAAAAAA="}}',
        '{"$array":{"dtype":"<f8","shape":[1000000000000],"data":""}}',
        '{"$array":{"dtype":"<f8","shape":[1],"order":"K","data":"AAAAAAAAAAA="}}',
        '{"$array":{"dtype":"<f8","shape":[1],"data":0}}',
        '{"$scalar":{"dtype":"<U1","data":"AAAAAA=="}}',
        '{"$scalar":{"dtype":"<f8","data":"AAAA"}}',
        "[" * 100_000,
        "[" * 900 + "]" * 900,
    ],
    ids=lambda text: text[:60],
)
def test_altered_text_is_refused(skeleton: str) -> None:
    with pytest.raises(CorruptError):
        decode(skeleton, lambda _: torch.zeros(3, 3))


def test_it_works_without_numpy() -> None:
    program = """
import sys
sys.modules["numpy"] = None  # as if it were not installed
import torch
from paramstore.extras import Encoder, decode
from paramstore.errors import UnsupportedExtraError
value = {"a": (1, 2.5, torch.ones(2).tolist())}
assert decode(Encoder().encode(value, "x"), None) == value
try:
    decode('{"$array":{"dtype":"<f8","shape":[0],"data":""}}', None)
except UnsupportedExtraError as error:
    assert "pip install numpy" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_nothing_is_fetched_before_it_is_needed() -> None:
    assert decode(skeleton_of([torch.ones(3), b"abc"]), never) is not None
