"""Copies are exact, whole when they are handed out, and made in memory that is used again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paramstore import tensors
from paramstore.errors import UnsupportedTensorError
from paramstore.staging import Staging

ODD = {
    "transposed": torch.arange(6.0).view(2, 3).T,
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": torch.ones(1, 3).expand(4, 3),
    "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
    "scalar": torch.tensor(-0.0),
    "empty": torch.empty(0, 3),
    "NaN payload": torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32),
    "bf16": torch.randn(5).bfloat16(),
    "fp8": torch.randn(5).to(torch.float8_e4m3fn),
    "bool": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.randn(3)),
    "fp4": torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}


def digest(tensor: torch.Tensor) -> bytes:
    return tensors.encode(tensor, name="it").digest()


def test_copies_have_the_bits_of_every_kind_of_tensor() -> None:
    copies = Staging().copy(ODD)
    for name, tensor in ODD.items():
        copy = copies.tensors[name]
        assert copy.is_contiguous()
        assert not copy.requires_grad
        assert digest(copy) == digest(tensor), name


@pytest.mark.parametrize("numel", [(16 << 20) - 1, (24 << 20) + 3])
def test_a_large_tensor_is_copied_in_pieces(numel: int) -> None:
    tensor = torch.arange(numel, dtype=torch.uint8)
    copies = Staging().copy({"it": tensor, "and": torch.ones(3)})
    assert torch.equal(copies.tensors["it"], tensor)
    assert torch.equal(copies.tensors["and"], torch.ones(3))


def test_a_subclass_has_no_say_in_how_its_bytes_are_copied() -> None:
    class Odd(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, *others: Any) -> Any:
            if func is torch._foreach_copy_:
                raise TypeError
            return super().__torch_function__(func, *others)  # type: ignore[no-untyped-call]

    tensor = torch.arange(3.0).as_subclass(Odd)
    assert torch.equal(Staging().copy({"it": tensor}).tensors["it"], torch.arange(3.0))


def test_copies_do_not_follow_what_happens_to_the_tensors() -> None:
    tensor = torch.zeros(1000)
    copies = Staging().copy({"it": tensor})
    tensor.fill_(1)
    assert torch.equal(copies.tensors["it"], torch.zeros(1000))


def test_released_memory_is_filled_again() -> None:
    staging = Staging()
    first = staging.copy({"it": torch.zeros(10)})
    memory = first.tensors["it"].data_ptr()
    staging.release(first)
    assert staging.copy({"it": torch.ones(10)}).tensors["it"].data_ptr() == memory
    assert staging.nbytes == 40


def test_copies_that_are_held_keep_their_memory() -> None:
    staging = Staging()
    first = staging.copy({"it": torch.zeros(10)})
    second = staging.copy({"it": torch.ones(10)})
    assert torch.equal(first.tensors["it"], torch.zeros(10))
    assert torch.equal(second.tensors["it"], torch.ones(10))
    assert staging.nbytes == 80


def test_memory_of_what_is_not_copied_any_more_is_given_up() -> None:
    staging = Staging()
    staging.release(staging.copy({"base": torch.zeros(1000), "head": torch.zeros(10)}))
    staging.release(staging.copy({"head": torch.zeros(10)}))
    assert staging.nbytes == 40


def test_another_shape_or_dtype_gets_memory_of_its_own() -> None:
    staging = Staging()
    for tensor in (torch.zeros(10), torch.zeros(5, 2), torch.zeros(10, dtype=torch.float64)):
        copies = staging.copy({"it": tensor})
        assert copies.tensors["it"].dtype == tensor.dtype
        assert copies.tensors["it"].shape == tensor.shape
        staging.release(copies)


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.eye(2).to_sparse(), id="sparse"),
        pytest.param(torch.empty(2, device="meta"), id="meta"),
        pytest.param(torch.nn.UninitializedParameter(), id="uninitialised"),
    ],
)
def test_a_tensor_without_a_stored_form_is_named_and_costs_no_memory(tensor: torch.Tensor) -> None:
    staging = Staging()
    kept = staging.copy({"odd": torch.zeros(2)})
    staging.release(kept)
    with pytest.raises(UnsupportedTensorError, match="'odd'"):
        staging.copy({"odd": tensor})
    assert staging.nbytes <= 8
    copies = staging.copy({"odd": torch.ones(2)})
    assert torch.equal(copies.tensors["odd"], torch.ones(2))


def test_a_freed_storage_is_refused_and_not_read() -> None:
    tensor = torch.zeros(10)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(UnsupportedTensorError, match="its storage is empty"):
        Staging().copy({"freed": tensor})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_a_gpu_are_copied_as_of_the_call() -> None:
    staging = Staging()
    live = torch.zeros(1 << 22, device="cuda")
    for step in range(100):
        live.fill_(step)
        copies = staging.copy({"it": live})
        live.fill_(-1)
        assert bool((copies.tensors["it"] == step).all())
        assert copies.tensors["it"].is_pinned()
        staging.release(copies)
