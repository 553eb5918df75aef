"""Hypothesis strategies for everything that goes into a store, the hostile cases first.

They make only what a store accepts; what it must refuse is spelled out by the tests themselves.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from importlib.util import find_spec
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints as torch_constraints
from torch.distributions.constraints import Constraint

from paramstore.header import DTYPES
from paramstore.kinds import PYRO_SINGLETONS, TORCH_SINGLETONS

# -- names ---------------------------------------------------------------------------------------

_HOSTILE = (
    "'; DROP TABLE params; --",
    '"',
    "%",
    "_",
    "\\",
    "../../etc/passwd",
    "a b",
    "AutoNormal.locs.weight",
    "net$$$layers.0.weight",
    "$$$",
    "{}",
    "%s",
    "None",
    "0",
    "-1",
    "\u00e9",  # é in one character and in two: different names
    "e\u0301",
    "\u202egnp.exe",  # right to left
    "\U0001f9ea",
    "\uffff",
)
_CONTROL = ("\n", "\x1b[2J", " ", "\t scale ", "main@1", "x" * 3000)


def param_names() -> st.SearchStrategy[str]:
    """Parameter names: anything but empty, NUL and lone surrogates."""
    anything = st.text(_characters(st.characters(exclude_characters="\0")), min_size=1, max_size=20)
    return st.one_of(st.sampled_from("abc"), st.sampled_from(_HOSTILE + _CONTROL), anything)


def scope_names() -> st.SearchStrategy[str]:
    """Scope names: 1 to 200 characters without ``@``, control characters and outer spaces."""
    letters = st.characters(exclude_characters="@", exclude_categories=["Cc", "Cs"])
    anything = st.text(letters, min_size=1, max_size=20).filter(lambda name: name == name.strip())
    return st.one_of(
        st.sampled_from(["main", "guide-a"]), st.sampled_from((*_HOSTILE, "y" * 200)), anything
    )


def tag_names() -> st.SearchStrategy[str]:
    """Tag names: a scope name's rules; no ``=``, not only digits, not ``latest``."""
    return scope_names().filter(
        lambda name: "=" not in name and not name.isdigit() and name != "latest"
    )


def _characters(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return characters.filter(lambda character: not "\ud800" <= character <= "\udfff")


# -- tensors -------------------------------------------------------------------------------------

_SHAPES = ((), (0,), (1,), (3,), (2, 3), (1, 4), (4, 1), (3, 0, 2), (2, 1, 3), (2, 2, 3, 2), (33,))

# Bit patterns that arithmetic does not keep: -0.0, infinities, NaNs with a payload, subnormals.
_ODD = {
    torch.float16: (0x8000, 0x7C00, 0xFE01, 0x7D55, 0x0001),
    torch.bfloat16: (0x8000, 0x7F80, 0xFFC1, 0x7FA5, 0x0001),
    torch.float32: (0x80000000, 0xFF800000, 0xFFC00001, 0x7FA55555, 0x00000001),
    torch.float64: (1 << 63, 0x7FF0 << 48, (0xFFF8 << 48) + 1, (0x7FF4 << 48) + 5, 1),
}


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of few elements: scalars, empty ones, dimensions of one."""
    return st.sampled_from(_SHAPES)


@st.composite
def tensors(draw: st.DrawFn, *, dtypes: tuple[str, ...] = tuple(DTYPES)) -> Tensor:
    """Tensors of every dtype, shape and layout that can be stored, with any bits inside.

    Args:
        draw: Given by hypothesis.
        dtypes: safetensors' names of the dtypes to choose from, and ``C128``.
    """
    name = draw(st.sampled_from(dtypes))
    shape = draw(shapes() if name != "F4" else shapes().filter(len))
    tensor = draw(_of_bits(DTYPES[name], shape))
    layout = draw(st.sampled_from(_LAYOUTS))
    return _differentiable(layout(tensor), draw(st.sampled_from(("", "leaf", "parameter"))))


@st.composite
def _of_bits(draw: st.DrawFn, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    elements = int(np.prod(shape))
    if dtype == torch.bool:
        flat = torch.tensor(draw(_exactly(st.booleans(), elements)), dtype=dtype)
    elif dtype in _ODD:
        size = dtype.itemsize
        patterns = st.sampled_from(_ODD[dtype]) | st.integers(0, 256**size - 1)
        numbers = draw(_exactly(patterns, elements))
        flat = _from_bytes(b"".join(n.to_bytes(size, "little") for n in numbers), dtype)
    else:
        length = elements * dtype.itemsize
        flat = _from_bytes(draw(st.binary(min_size=length, max_size=length)), dtype)
    return flat.reshape(shape)


def _exactly(elements: st.SearchStrategy[Any], count: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=count, max_size=count)


def _from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    # torch.frombuffer refuses empty ones.
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _differentiable(tensor: Tensor, how: str) -> Tensor:
    able = tensor.is_floating_point() or tensor.is_complex()
    if how == "parameter":
        return torch.nn.Parameter(tensor, requires_grad=able)
    return tensor.requires_grad_() if how == "leaf" and able else tensor


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1) if tensor.dim() > 1 else tensor


def _offset(tensor: Tensor) -> Tensor:
    return tensor[1:] if tensor.dim() else tensor


def _every_second(tensor: Tensor) -> Tensor:
    return tensor[..., ::2] if tensor.dim() else tensor


def _expanded(tensor: Tensor) -> Tensor:
    return tensor.expand(2, *tensor.shape)


def _channels_last(tensor: Tensor) -> Tensor:
    # F4 has no copy kernel, so it cannot be laid out anew.
    if tensor.dim() != 4 or tensor.dtype == DTYPES["F4"]:
        return tensor
    return tensor.to(memory_format=torch.channels_last)


def _conjugate(tensor: Tensor) -> Tensor:
    return tensor.conj() if tensor.is_complex() else tensor


def _negative(tensor: Tensor) -> Tensor:
    return tensor.conj().imag if tensor.is_complex() else tensor


_LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    _as_it_is,
    _transposed,
    _offset,
    _every_second,
    _expanded,
    _channels_last,
    _conjugate,
    _negative,
)


# -- constraints ---------------------------------------------------------------------------------


def constraints(*, pyro: bool | None = None) -> st.SearchStrategy[Constraint]:
    """Constraints of every kind, nested in each other, with numbers and tensors as arguments.

    Not all of them can be satisfied, or have a transform: they are for specs.

    Args:
        pyro: Whether Pyro's are among them; None asks whether it is installed.
    """
    return st.recursive(_simple_constraints(pyro), _nested_constraints, max_leaves=6)


def singletons(*, pyro: bool | None = None) -> list[Constraint]:
    """Return the constraint objects that torch, and Pyro unless told otherwise, have by name."""
    found: list[Constraint] = [getattr(torch_constraints, name) for name in TORCH_SINGLETONS]
    if pyro or (pyro is None and find_spec("pyro")):
        import pyro.distributions.constraints as pyro_constraints

        found += [getattr(pyro_constraints, name) for name in PYRO_SINGLETONS]
    return found


def _bounds() -> st.SearchStrategy[Any]:
    numbers = st.floats() | st.integers(-(2**70), 2**70) | st.booleans()
    large = st.integers(0, 3).map(lambda n: torch.arange(n, n + 2000, dtype=torch.float32))
    small = tensors(dtypes=("F32", "F64", "I64", "BF16")).map(Tensor.detach)
    return st.one_of(numbers, small, large)


def _simple_constraints(pyro: bool | None) -> st.SearchStrategy[Constraint]:
    c, bound = torch_constraints, _bounds()
    unknown = st.just(NotImplemented)
    return st.one_of(
        st.sampled_from(singletons(pyro=pyro)),
        st.builds(c.greater_than, bound),
        st.builds(c.greater_than_eq, bound),
        st.builds(c.less_than, bound),
        st.builds(c.multinomial, bound),
        st.builds(c._IntegerGreaterThan, bound),
        st.builds(c._IntegerLessThan, bound),
        st.builds(c.interval, bound, bound),
        st.builds(c.half_open_interval, bound, bound),
        st.builds(c.integer_interval, bound, bound),
        st.builds(
            c.dependent,
            is_discrete=unknown | st.booleans(),
            event_dim=unknown | st.integers(0, 3),
        ),
    )


def _nested_constraints(inner: st.SearchStrategy[Constraint]) -> st.SearchStrategy[Constraint]:
    c, dim = torch_constraints, st.integers(-3, 3)
    parts = st.lists(inner, min_size=1, max_size=3)
    pairs = st.lists(st.tuples(inner, st.integers(1, 5)), min_size=1, max_size=3)
    return st.one_of(
        st.builds(c.independent, inner, st.integers(0, 3)),
        st.builds(c.MixtureSameFamilyConstraint, inner),
        st.builds(c.stack, parts, dim),
        st.builds(lambda pairs, dim: c.cat(*_unzipped(pairs, dim)), pairs, dim),
    )


def _unzipped(pairs: list[tuple[Constraint, int]], dim: int) -> tuple[Any, ...]:
    parts, lengths = zip(*pairs, strict=True)
    return parts, dim, lengths


# -- extras --------------------------------------------------------------------------------------

_NAN_WITH_PAYLOAD = struct.unpack("<d", struct.pack("<Q", (0x7FF8 << 48) + 7))[0]


def extras() -> st.SearchStrategy[object]:
    """Values that extras and attached state can hold, nested in each other."""
    return st.recursive(_extra_leaves(), _extra_containers, max_leaves=12)


def _text() -> st.SearchStrategy[str]:
    return st.text(_characters(st.characters()), max_size=10) | st.sampled_from(
        ["$dict", "$tensor", "$", "\0", "\u2028"]
    )


def _floats() -> st.SearchStrategy[float]:
    return st.floats() | st.sampled_from([-0.0, _NAN_WITH_PAYLOAD, 5e-324])


def _extra_leaves() -> st.SearchStrategy[object]:
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(2**62, 2**70).map(lambda n: -n),
        _floats(),
        st.builds(complex, _floats(), _floats()),
        _text(),
        st.binary(max_size=20),
        st.just(bytes(range(256)) * 20),
        tensors(),
        st.integers(0, 3).map(lambda n: torch.arange(n, n + 1200).reshape(30, 40).t()),
        st.lists(st.integers(0, 9), max_size=3).map(torch.Size),
        st.sampled_from([torch.float32, torch.bfloat16, torch.bool, torch.qint8]),
        st.sampled_from([torch.device("cpu"), torch.device("cuda", 1)]),
        _arrays(),
        st.sampled_from([np.float32(0.1), np.int8(-3), np.bool_(True), np.complex64(1j)]),
        st.sampled_from([np.float64("nan"), np.datetime64("NaT"), np.timedelta64(3, "ms")]),
    )


def _arrays() -> st.SearchStrategy[object]:
    made = [
        np.array(3.5, ">f8"),
        np.empty((0, 2), np.uint16),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.arange(12)[::-2],
        np.array([True, False]),
        np.array(["a", "bc"]),
        np.array([-0.0, np.nan], np.float16),
        np.arange(1000, dtype=np.complex128).reshape(20, 50).T,
        np.frombuffer(b"read-only" * 1000, np.uint8),
    ]
    return st.sampled_from(made)


def _keys() -> st.SearchStrategy[Hashable]:
    plain = st.one_of(_text(), st.integers(), st.booleans(), st.none(), _floats())
    return plain | st.lists(plain, max_size=2).map(tuple)


def _extra_containers(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(_text(), inner, max_size=3),
        st.dictionaries(_keys(), inner, max_size=3),
        st.dictionaries(_keys(), inner, max_size=3).map(OrderedDict),
        st.dictionaries(_keys(), st.integers(), max_size=3).map(Counter),
    )
