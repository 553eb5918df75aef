"""Tensors to safetensors bytes and back: every dtype, shape and layout, to the last bit."""

from __future__ import annotations

import gc
import json
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import safetensors
import safetensors.torch
import torch
from blake3 import blake3
from hypothesis import given
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paramstore.errors import CorruptError, UnsupportedTensorError
from paramstore.header import DTYPES
from paramstore.tensors import (
    CHUNK,
    Encoded,
    Filler,
    check_storable,
    decode,
    dtype_name,
    empty,
    encode,
    from_data,
    outside_modes,
    parse_header,
    torch_dtype,
)
from paramstore.testing.bits import bits, same_bits
from paramstore.testing.strategies import tensors


def joined(encoded: Encoded) -> bytes:
    return b"".join((encoded.header, *encoded.chunks()))


def blob_of(tensor: Tensor) -> bytes:
    return joined(encode(tensor, name="value"))


def fill(target: Tensor, blob: bytes, step: int = 7) -> None:
    _, _, offset = parse_header(blob)
    filler = Filler(target)
    filler.write(blob[: offset + step])
    for start in range(offset + step, len(blob), step):
        filler.write(blob[start : start + step])
    filler.close()


# -- there and back ------------------------------------------------------------------------------


@given(tensors())
def test_every_tensor_comes_back_bit_for_bit(tensor: Tensor) -> None:
    encoded = encode(tensor, name="value")
    blob = joined(encoded)
    assert len(blob) == encoded.nbytes
    assert encoded.digest() == blake3(blob).digest()
    found = decode(blob)
    assert same_bits(found, tensor)
    assert not found.requires_grad
    assert encode(found, name="value").fingerprint() == encoded.fingerprint()


@given(tensors())
def test_the_bytes_are_a_safetensors_file(tensor: Tensor) -> None:
    blob = blob_of(tensor)
    assert int.from_bytes(blob[:8], "little") % 8 == 0
    name = dtype_name(tensor.dtype)
    # The names of these two are in the format, but not in what safetensors.torch.load knows.
    if name in ("F4", "F8_E8M0"):
        return
    found = safetensors.torch.load(blob)["value"]
    if name == "C128":
        assert found.dtype == torch.float64
        found = torch.view_as_complex(found)
    assert same_bits(found, tensor)


@pytest.mark.parametrize("name", [*DTYPES])
def test_safetensors_reads_every_dtype_from_a_file(name: str, tmp_path: Path) -> None:
    tensor = empty(name, (2, 4))
    tensor.view(torch.uint8).fill_(1)
    (tmp_path / "value.safetensors").write_bytes(blob_of(tensor))
    with safetensors.safe_open(tmp_path / "value.safetensors", framework="pt") as file:
        found = file.get_tensor("value")
        metadata = file.metadata()
    if name == "C128":
        assert metadata == {"dtype": "C128"}
        found = torch.view_as_complex(found)
    assert same_bits(found, tensor)


@pytest.mark.parametrize("name", sorted({*DTYPES} - {"C128"}))
def test_the_bytes_are_what_safetensors_writes(name: str) -> None:
    tensor = empty(name, (2, 4))
    tensor.view(torch.uint8).fill_(1)
    assert blob_of(tensor) == safetensors.torch.save({"value": tensor})


@given(tensors(), st.integers(1, 40))
def test_a_tensor_is_filled_in_place(tensor: Tensor, step: int) -> None:
    blob = blob_of(tensor)
    target = torch.empty_like(tensor, requires_grad=tensor.requires_grad)
    version = target._version
    fill(target, blob, step)
    assert same_bits(target, tensor)
    assert target._version == version + 1
    assert target.requires_grad == tensor.requires_grad


def test_dtype_names_go_both_ways() -> None:
    for name, dtype in DTYPES.items():
        assert dtype_name(dtype) == name
        assert torch_dtype(name) == dtype
    with pytest.raises(UnsupportedTensorError, match="complex32"):
        dtype_name(torch.complex32)
    with pytest.raises(CorruptError, match="F31"):
        torch_dtype("F31")


# -- memory --------------------------------------------------------------------------------------


def test_a_contiguous_tensor_is_not_copied() -> None:
    tensor = torch.zeros(3)
    encoded = encode(tensor, name="value")
    tensor[1] = 1.0
    assert bytes(encoded.data) == bits(tensor)
    assert encoded.owner is tensor


def test_a_strided_tensor_is_copied_once() -> None:
    tensor = torch.zeros(3, 2).t()
    encoded = encode(tensor, name="value")
    tensor[1] = 1.0
    assert bytes(encoded.data) == bytes(24)
    assert encoded.owner is not tensor


def test_a_chunk_keeps_the_memory_of_a_copy_alive() -> None:
    chunk = [*encode(torch.ones(CHUNK, 2).t(), name="value").chunks()][-1]
    gc.collect()
    torch.zeros(CHUNK, 2)  # would take the memory, were it free
    assert bytes(chunk[-4:]) == bits(torch.ones(1))


def test_chunks_are_of_one_mebibyte() -> None:
    encoded = encode(torch.ones(CHUNK, dtype=torch.float16), name="value")
    assert [len(chunk) for chunk in encoded.chunks()] == [CHUNK, CHUNK]
    assert len([*encode(torch.ones(CHUNK, dtype=torch.uint8), name="value").chunks()]) == 1
    assert len([*encode(torch.ones(0), name="value").chunks()]) == 1


def test_the_fingerprint_covers_dtype_and_shape() -> None:
    tensor = torch.zeros(6)
    others = [tensor.reshape(2, 3), tensor.view(torch.int32), tensor[:5]]
    prints = {encode(t, name="value").fingerprint() for t in [tensor, *others]}
    assert len(prints) == 4


# -- tensors without a stored form ---------------------------------------------------------------


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(2)


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def nested(layout: torch.layout) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [torch.ones(2), torch.ones(3)]
        return torch.nested.nested_tensor(parts, layout=layout)


def sparse_csr() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(2).to_sparse_csr()


def emptied() -> Tensor:
    tensor = torch.ones(2)
    tensor.untyped_storage().resize_(0)
    return tensor


def half_complex() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.zeros(2, dtype=torch.complex32)


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "to_dense"),
    "sparse csr": (sparse_csr, "to_dense"),
    "mkldnn": (lambda: torch.ones(2).to_mkldnn(), "to_dense"),
    "quantised": (quantised, "dequantize"),
    "meta": (lambda: torch.ones(2, device="meta"), "to_empty"),
    "fake": (fake, "FakeTensorMode"),
    "nested": (lambda: nested(torch.strided), "to_padded_tensor"),
    "jagged": (lambda: nested(torch.jagged), "to_padded_tensor"),
    "lazy": (lambda: nn.LazyLinear(2).weight, "run one batch through its module"),
    "emptied": (emptied, "storage is empty"),
    "complex32": (half_complex, r"tensor\.to"),
}


@pytest.mark.parametrize("kind", [*REFUSED])
def test_an_odd_tensor_is_refused_by_name_with_advice(kind: str) -> None:
    make, advice = REFUSED[kind]
    with pytest.raises(UnsupportedTensorError, match=f"'net.scale' cannot.*{advice}"):
        encode(make(), name="net.scale")
    with pytest.raises(UnsupportedTensorError, match=advice):
        Filler(make())
    with pytest.raises(UnsupportedTensorError, match=f"extras.*{advice}"):
        check_storable(make(), "extras['x']")


def test_a_sharded_tensor_is_refused_by_name_with_advice(tmp_path: Path) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    init = f"file://{tmp_path}/rendezvous"
    distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    try:
        sharded = distribute_tensor(torch.ones(2), init_device_mesh("cpu", (1,)), [Shard(0)])
        for tensor in (sharded, nn.Parameter(sharded)):
            with pytest.raises(UnsupportedTensorError, match=r"'w' cannot.*full_tensor"):
                encode(tensor, name="w")
    finally:
        distributed.destroy_process_group()


def test_a_tensor_inside_a_function_transform_is_refused() -> None:
    def stored(tensor: Tensor) -> Tensor:
        encode(tensor, name="scale")
        return tensor.sum()

    for transform in (torch.func.vmap, torch.func.grad):
        with pytest.raises(UnsupportedTensorError, match="'scale' cannot be stored"):
            transform(stored)(torch.ones(3))


def test_a_subclass_that_only_adds_methods_is_stored() -> None:
    class Named(Tensor):
        pass

    tensor = torch.arange(6.0).reshape(2, 3).as_subclass(Named)
    encoded = encode(tensor, name="value")
    assert bytes(encoded.data) == bits(tensor.as_subclass(Tensor))
    assert encoded.owner is tensor
    assert same_bits(decode(blob_of(tensor.t())), tensor.as_subclass(Tensor).t())


# -- filling -------------------------------------------------------------------------------------


def test_a_filled_tensor_keeps_its_identity_and_memory() -> None:
    target = nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    pointer, strides = target.data_ptr(), target.stride()
    wanted = torch.rand(2, 3, 4, 4)
    fill(target, blob_of(wanted))
    assert torch.equal(target, wanted)
    assert (target.data_ptr(), target.stride()) == (pointer, strides)
    assert target.is_leaf
    assert target.requires_grad


def test_autograd_notices_that_a_tensor_was_filled() -> None:
    target = torch.ones(3, requires_grad=True)
    loss = (target * target).sum()
    fill(target, blob_of(torch.zeros(3)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_tensor_made_in_inference_mode_is_filled_outside() -> None:
    with torch.inference_mode():
        targets = [torch.zeros(2, 3), torch.zeros(3, 2).t()]
    for target in targets:
        fill(target, blob_of(torch.ones(2, 3)))
        assert bits(target) == bits(torch.ones(2, 3))


def test_an_expanded_tensor_cannot_be_filled() -> None:
    with pytest.raises(UnsupportedTensorError, match=r"expanded.*clone"):
        Filler(torch.ones(1).expand(3))


@pytest.mark.parametrize("other", [torch.zeros(4), torch.zeros(1, 3), torch.zeros(3).double()])
def test_a_blob_of_another_dtype_or_shape_changes_nothing(other: Tensor) -> None:
    target = torch.ones(3)
    with pytest.raises(CorruptError, match=r"the one to fill is F32 of shape \(3,\)"):
        fill(target, blob_of(other))
    assert bits(target) == bits(torch.ones(3))
    assert target._version == 0


def test_too_many_and_too_few_bytes_are_refused() -> None:
    blob = blob_of(torch.ones(3))
    filler = Filler(torch.zeros(3))
    filler.write(blob[:-1])
    with pytest.raises(CorruptError, match="11 bytes, not 12"):
        filler.close()
    with pytest.raises(CorruptError, match="at least 13 bytes, not 12"):
        filler.write(b"ab")
    with pytest.raises(CorruptError, match="0 bytes, not 12"):
        Filler(torch.zeros(3)).close()


# -- altered bytes -------------------------------------------------------------------------------


def header(**fields: object) -> bytes:
    text = json.dumps({"value": fields}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


HOSTILE = {
    "empty": b"",
    "short": b"\x08\0\0",
    "length beyond the end": (2**63).to_bytes(8, "little") + b"{}",
    "no length": bytes(16),
    "not JSON": (8).to_bytes(8, "little") + b"nonsense",
    "not UTF-8": (8).to_bytes(8, "little") + b"\xff" * 8,
    "deep": (4096).to_bytes(8, "little") + b"[" * 4096,
    "a list": (8).to_bytes(8, "little") + b"[1,2,3] ",
    "no value": (8).to_bytes(8, "little") + b"{}      ",
    "huge": header(dtype="F32", shape=[2**62], data_offsets=[0, 2**64]),
    "negative": header(dtype="F32", shape=[-1, -3], data_offsets=[0, 12]),
    "not a number": header(dtype="F32", shape=["3"], data_offsets=[0, 12]),
    "a boolean": header(dtype="F32", shape=[True], data_offsets=[0, 4]),
    "unknown dtype": header(dtype="O64", shape=[3], data_offsets=[0, 24]),
    "unhashable dtype": header(dtype=[], shape=[3], data_offsets=[0, 24]),
    "offsets": header(dtype="F32", shape=[3], data_offsets=[4, 16]),
    "impossible": header(dtype="F32", shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
    "beyond an int": header(dtype="F32", shape=[10**30, 0], data_offsets=[0, 0]),
    "another key": header(dtype="F32", shape=[3], data_offsets=[0, 12], more=1),
    "no dimension": header(dtype="F4", shape=[], data_offsets=[0, 1]),
}


@pytest.mark.parametrize("kind", [*HOSTILE])
def test_a_hostile_header_is_refused(kind: str) -> None:
    for read in (parse_header, decode):
        with pytest.raises(CorruptError):
            read(HOSTILE[kind] + bytes(64 if len(HOSTILE[kind]) > 16 else 0))


@given(tensors(), st.data())
def test_altered_bytes_are_refused_or_only_another_value(
    tensor: Tensor, data: st.DataObject
) -> None:
    altered = bytearray(blob_of(tensor))
    _, _, offset = parse_header(bytes(altered))
    where = data.draw(st.integers(0, len(altered) - 1))
    altered[where] ^= 1 << data.draw(st.integers(0, 7))
    blob = bytes(altered)
    try:
        found = decode(blob)
    except CorruptError:
        assert where < offset
    else:  # in the header too: an empty tensor of another shape, or of another dtype
        assert found.nbytes == tensor.nbytes
    with pytest.raises(CorruptError):
        decode(blob[:-1])
    with pytest.raises(CorruptError):
        decode(blob + b"\0")


def test_data_of_another_length_is_refused() -> None:
    assert torch.equal(from_data("F32", (2,), bytes(8)), torch.zeros(2))
    with pytest.raises(CorruptError, match="8 bytes, found 7"):
        from_data("F32", (2,), bytes(7))
    with pytest.raises(CorruptError, match="shape"):
        from_data("F32", (-1, -2), bytes(8))
    with pytest.raises(CorruptError, match="F31"):
        from_data("F31", (2,), bytes(8))


# -- modes ---------------------------------------------------------------------------------------


def test_a_strided_tensor_is_stored_in_any_mode() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    wanted = blob_of(tensor)
    with FakeTensorMode():
        assert blob_of(tensor) == wanted
    with torch.inference_mode(), torch.device("meta"):
        assert blob_of(tensor) == wanted


def test_no_mode_reaches_what_runs_outside() -> None:
    seen = []

    def make() -> Tensor:
        tensor = torch.ones(2)
        seen.append((type(tensor), tensor.device.type, tensor.is_inference()))
        return tensor

    def mapped(_: Tensor) -> Tensor:
        return outside_modes(make)

    with FakeTensorMode():
        outside_modes(make)
    with torch.device("meta"):
        outside_modes(make)
    with torch.inference_mode():
        outside_modes(make)
    torch.func.vmap(mapped, out_dims=None)(torch.ones(3))
    outside_modes(make)
    assert seen == [(Tensor, "cpu", False)] * 5


def test_an_error_outside_modes_reaches_the_caller() -> None:
    def fail() -> None:
        raise KeyError("gone")

    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, pytest.raises(KeyError, match="gone"):
            outside_modes(fail)


def test_without_a_mode_no_thread_is_started() -> None:
    assert outside_modes(threading.get_ident) == threading.get_ident()
    with torch.inference_mode():
        assert outside_modes(threading.get_ident) != threading.get_ident()
