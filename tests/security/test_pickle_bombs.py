"""Small pickles that ask for much: refused before torch reads them, in little memory and time."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from paramstore import CorruptError, UnsupportedFileError
from paramstore.archive import load_file
from paramstore.header import DTYPES
from paramstore.testing.bits import same_bits

# -- a pickle, piece by piece ----------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


FLOATS = name("torch", "FloatStorage")
NO_HOOKS = name("collections", "OrderedDict") + b")R"
REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def storage(numel: bytes, key: str = "0", kind: bytes = FLOATS, view: bytes = b"N") -> bytes:
    return tuple_of(text("storage"), kind, text(key), text("cpu"), numel, view) + b"Q"


def tensor(size: bytes, stride: bytes, *, of: bytes, offset: bytes = b"K\0") -> bytes:
    return call(REBUILD, of, offset, size, stride, b"\x89", NO_HOOKS)


def legacy(state: bytes) -> bytes:
    """A file in the form of before torch 1.6, with a storage of one float."""
    start = [number(torch.serialization.MAGIC_NUMBER), number(1001), b"}"]
    pickles = [*start, state, b"]" + text("0") + b"a"]
    data = (1).to_bytes(8, "little") + b"\0\0\x80?"
    return b"".join(b"\x80\x02" + part + b"." for part in pickles) + data


def state_of(value: bytes) -> bytes:
    real = name("torch.distributions.constraints", "_Real") + b")\x81"
    return (
        b"}("
        + text("params")
        + b"}"
        + text("a")
        + value
        + b"s"
        + text("constraints")
        + (b"}" + text("a") + real + b"su")
    )


ONE, HUGE = storage(b"K\x01"), number(10**10)
GOOD = tensor(tuple_of(b"K\x01"), tuple_of(b"K\x01"), of=ONE)
NESTED = b")q\1" + b"h\1h\1\x86q\1" * 60  # (((), ()), ((), ())) … 2^60 of them
BOMBS = {
    "a storage of 40 GB": tensor(tuple_of(HUGE), tuple_of(b"K\1"), of=storage(HUGE)),
    "storages that are too large together": tuple_of(
        *(storage(number(30), str(i)) for i in range(90))
    ),
    "a tensor that leaves its storage": tensor(tuple_of(HUGE), tuple_of(b"K\1"), of=ONE),
    "an offset that leaves it": tensor(tuple_of(b"K\1"), tuple_of(b"K\1"), of=ONE, offset=HUGE),
    "an offset that is negative": tensor(
        tuple_of(b"K\1"), tuple_of(b"K\1"), of=ONE, offset=number(-1)
    ),
    "a stride that is negative": tensor(tuple_of(b"K\2"), tuple_of(number(-1)), of=ONE),
    "a tensor expanded to 40 GB": tensor(tuple_of(HUGE), tuple_of(b"K\0"), of=ONE),
    "a product that overflows": tensor(
        tuple_of(number(2**62), number(2**62)), tuple_of(b"K\0", b"K\0"), of=ONE
    ),
    "a view that leaves its storage": storage(
        b"K\1", view=tuple_of(text("v"), b"K\0", number(10**9))
    ),
    "a tensor whose attribute is huge": GOOD + tuple_of(ONE, b"K\0", tuple_of(HUGE), b")") + b"b",
    "a tensor whose data is another": call(
        name("torch._tensor", "_rebuild_from_type_v2"),
        REBUILD,
        name("torch", "Tensor"),
        tuple_of(ONE, b"K\0", tuple_of(b"K\1"), tuple_of(b"K\1"), b"\x89", NO_HOOKS),
        b"}" + text("data") + GOOD + b"s",
    ),
    "hooks": call(
        REBUILD, ONE, b"K\0", tuple_of(b"K\1"), tuple_of(b"K\1"), b"\x89",
        b"}" + text("x") + FLOATS + b"s",
    ),
    "a key that takes years to hash": b"}" + NESTED + b"Ns",
    "a list that takes years to walk": b"]" + NESTED + b"a",
    "a constraint that takes years to walk": (
        name("torch.distributions.constraints", "_Cat") + b")\x81q\2"
        + b"".join(
            name("torch.distributions.constraints", "_Cat") + b")\x81}" + text("cseq")
            + b"](h\2h\2esbq\2" for _ in range(60)
        )
    ),
    "bytearray": call(name("builtins", "bytearray"), HUGE),
    "Tensor": call(name("torch", "Tensor"), HUGE),
    "UntypedStorage": call(name("torch.storage", "UntypedStorage"), HUGE),
    "_rebuild_sparse_tensor": call(name("torch._utils", "_rebuild_sparse_tensor"), HUGE),
    "_codecs.encode": call(name("_codecs", "encode"), text("x"), text("idna")),
    "text of 4 GB": b"X\xff\xff\xff\xff",
    "text of 16 EB": b"\x8d" + b"\xff" * 8,
    "a memo of many": b"r\xff\xff\xff\x7f",
    "an empty stack": b"\x86" * 3,
    "a memo that was never put": b"h\x07",
    "two lines": name("torch._utils", "x" * 100_000),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", [True, False], ids=["as a parameter", "alone"])
def test_a_small_pickle_that_asks_for_much_is_refused_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, zipped: bool, inside: bool
) -> None:
    state = state_of(BOMBS[what]) if inside else BOMBS[what]
    file = tmp_path / "bomb"
    if zipped:
        file.write_bytes(in_zip({"data.pkl": b"\x80\x02" + state + b".", "data/0": b"\0\0\x80?"}))
    else:
        file.write_bytes(legacy(state))
    monkeypatch.setattr(torch, "load", None)
    tracemalloc.start()
    try:
        with pytest.raises((CorruptError, UnsupportedFileError), match="bomb") as caught:
            load_file(file)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert "NoneType" not in str(caught.value)


def in_zip(parts: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for part, data in ({"version": b"3\n", "byteorder": b"little"} | parts).items():
            archive.writestr(f"archive/{part}", data)
    return made.getvalue()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_pieces_make_a_file_that_loads(tmp_path: Path, zipped: bool) -> None:
    file, state = tmp_path / "good", state_of(GOOD)
    zip_state = state.replace(b"N" + b"tQ", b"tQ")  # views are of the older form
    parts = {"data.pkl": b"\x80\x02" + zip_state + b".", "data/0": b"\0\0\x80?"}
    file.write_bytes(in_zip(parts) if zipped else legacy(state))
    [(found, value, constraint)] = load_file(file)
    assert (found, value.tolist(), constraint) == ("a", [1.0], constraints.real)


def test_tuples_in_tuples_are_no_parameters(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(legacy(b")" + b"\x85" * 100_000))
    with pytest.raises((UnsupportedFileError, CorruptError)):
        load_file(tmp_path / "f")


def test_a_zip_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    size = 64 << 20
    state = state_of(
        tensor(tuple_of(number(size // 4)), tuple_of(b"K\1"), of=storage(number(size // 4)))
    ).replace(b"NtQ", b"tQ")
    parts = {"data.pkl": b"\x80\x02" + state + b".", "data/0": bytes(size)}
    (tmp_path / "bomb").write_bytes(in_zip(parts, zipfile.ZIP_DEFLATED))
    with pytest.raises(CorruptError, match="larger than the file"):
        load_file(tmp_path / "bomb")
    parts = {"data.pkl": bytes(size)}
    (tmp_path / "bomb").write_bytes(in_zip(parts, zipfile.ZIP_DEFLATED))
    with pytest.raises(CorruptError, match="larger than the file"):
        load_file(tmp_path / "bomb")


def test_what_the_program_allows_elsewhere_is_not_allowed_here(tmp_path: Path) -> None:
    torch.save({"params": {"a": nn.Linear(1, 1)}, "constraints": {}}, tmp_path / "f")
    allowed: list[Any] = [nn.Linear]
    with (
        torch.serialization.safe_globals(allowed),
        pytest.raises(UnsupportedFileError, match=r"torch\.nn\.modules\.linear\.Linear"),
    ):
        load_file(tmp_path / "f")


# -- what torch.save writes for good reasons -------------------------------------------------------


def _tensors() -> dict[str, Tensor]:
    base, whole = torch.arange(12.0), torch.ones(2, dtype=torch.complex64)
    shared = torch.arange(3.0).expand(4, 3)
    named = torch.ones(2)
    named.note = "mine"  # type: ignore[attr-defined]
    return {
        **{dtype: torch.ones(4).to(kind) for dtype, kind in DTYPES.items() if dtype != "F4"},
        "view": base[4:8],
        "strided": base.view(3, 4).T,
        "again": base,
        "expanded": shared,
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(2.0),
        "conjugate": whole.conj(),
        "parameter": nn.Parameter(torch.ones(3)),
        "channels last": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "with an attribute": named,
        "leaf": torch.ones(2, requires_grad=True),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_kind_of_tensor_that_torch_saves_is_read(tmp_path: Path, zipped: bool) -> None:
    tensors = _tensors()
    if not zipped:  # the older form cannot hold the newer dtypes
        newer = ("U16", "U32", "U64", "F8")
        tensors = {n: t for n, t in tensors.items() if not n.startswith(newer)}
    state = {"params": tensors, "constraints": OrderedDict.fromkeys(tensors, constraints.positive)}
    torch.save(state, tmp_path / "f", _use_new_zipfile_serialization=zipped)
    found = {name: value for name, value, _ in load_file(tmp_path / "f")}
    assert list(found) == list(tensors)
    for key, value in tensors.items():
        assert same_bits(found[key], value), key
        assert found[key].stride() == value.stride()
