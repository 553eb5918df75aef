"""Parameter files: ours, plain safetensors, Pyro's pickles, and everything that is none of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

import paramstore
from paramstore import (
    CorruptError,
    StorageError,
    UnsupportedFileError,
    UnsupportedTensorError,
)
from paramstore.archive import Item, load_file, save_file
from paramstore.constraints import to_spec
from paramstore.header import DTYPES
from paramstore.testing.bits import same_bits


def leaf(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def write(path: Path, **tensors: Tensor) -> Path:
    save_file(path, [(name, tensor, constraints.real) for name, tensor in tensors.items()])
    return path


# -- our own files -----------------------------------------------------------------------------

TENSORS = {
    "vector": torch.tensor([1.0, -0.0, float("nan"), float("inf")]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0, 3),
    "half": torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
    "fp8": torch.tensor([1.0, 2.0, 3.0]).to(torch.float8_e4m3fn),
    "complex": torch.tensor([1 + 2j, -3j], dtype=torch.complex64),
    "wide complex": torch.tensor([[1 + 2j], [-3j]], dtype=torch.complex128),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "expanded": torch.tensor([7.0]).expand(4),
    "counter": torch.tensor(3),
    "mask": torch.tensor([True, False, True]),
    "__metadata__": torch.tensor([1.0]),
    "namé\n$$$'\"🙂": torch.tensor([2.0]),
}


def test_every_tensor_comes_back_bit_for_bit_and_in_order(tmp_path: Path) -> None:
    write(tmp_path / "f", **TENSORS)

    found = load_file(tmp_path / "f")

    assert [name for name, _, _ in found] == list(TENSORS)
    for name, tensor, _ in found:
        assert same_bits(tensor, TENSORS[name]), name


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    content = torch.arange(64, dtype=torch.uint8).reshape(4, 16)
    content = content % 2 if dtype == torch.bool else content
    values, empty = content.view(dtype), content[:0].view(dtype)
    write(tmp_path / "f", values=values, empty=empty)

    [(_, first, _), (_, second, _)] = load_file(tmp_path / "f")

    assert same_bits(first, values)
    assert same_bits(second, empty)


def test_parameters_flags_and_singletons_come_back(tmp_path: Path) -> None:
    items: list[Item] = [
        ("tensor", leaf(1.0), constraints.positive),
        ("parameter", nn.Parameter(torch.ones(2)), constraints.real),
        ("frozen", nn.Parameter(torch.ones(2), requires_grad=False), constraints.simplex),
    ]
    save_file(tmp_path / "f", items)

    for (name, before, constraint), found in zip(items, load_file(tmp_path / "f"), strict=True):
        assert found[0] == name
        assert type(found[1]) is type(before)
        assert found[1].requires_grad == before.requires_grad
        assert found[1].is_leaf
        assert found[2] is constraint


def test_nested_constraints_and_large_arguments_come_back(tmp_path: Path) -> None:
    bound = torch.randn(5000)
    wanted = constraints.independent(constraints.interval(bound, bound + 1.0), 1)
    save_file(tmp_path / "f", [("a", leaf(0.0), wanted), ("b", leaf(0.0), wanted)])

    [(_, _, first), (_, _, second)] = load_file(tmp_path / "f")

    assert to_spec(first).text == to_spec(second).text == to_spec(wanted).text
    assert same_bits(first.base_constraint.lower_bound, bound)  # type: ignore[attr-defined]
    assert (tmp_path / "f").stat().st_size < 2.1 * bound.nbytes + 5000  # arguments once


def test_one_tensor_of_two_names_stays_one(tmp_path: Path) -> None:
    tied = nn.Parameter(torch.randn(1000))
    save_file(tmp_path / "f", [("a", tied, constraints.real), ("b", tied, constraints.real)])

    (_, a, _), (_, b, _) = load_file(tmp_path / "f")

    assert a is b
    assert (tmp_path / "f").stat().st_size < 1.5 * tied.nbytes


def test_the_file_is_plain_safetensors_to_others(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != "__metadata__"}
    write(tmp_path / "f", **tensors)

    found = safetensors.torch.load_file(tmp_path / "f")

    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        known = TENSORS[name]
        wanted = torch.view_as_real(known) if name == "wide complex" else known
        assert same_bits(tensor, wanted), name


def test_tensors_lie_aligned_in_the_file(tmp_path: Path) -> None:
    content = write(tmp_path / "f", **TENSORS).read_bytes()

    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    for name, entry in entries.items():
        if name != "__metadata__":
            width = {"F64": 8, "C64": 8, "I64": 8, "F32": 4, "BF16": 2}.get(entry["dtype"], 1)
            assert (8 + length + entry["data_offsets"][0]) % width == 0


def test_what_is_loaded_is_memory_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "f", a=torch.ones(3))
    [(_, tensor, _)] = load_file(path)

    assert str(path) not in Path("/proc/self/maps").read_text()
    with path.open("r+b") as file:
        file.truncate()

    with torch.no_grad():
        assert tensor.add_(1).tolist() == [2.0, 2.0, 2.0]


def test_map_location_takes_every_form_of_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "f", a=torch.ones(3))
    seen = []

    def to_meta(tensor: Tensor, location: str) -> Tensor:
        seen.append(location)
        return tensor.to("meta")

    for where in ("meta", torch.device("meta"), {"cpu": "meta"}, to_meta):
        [(_, tensor, _)] = load_file(path, where)
        assert tensor.device.type == "meta"
    assert seen == ["cpu"]


def test_torch_modes_of_the_caller_do_not_reach_what_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "f", a=torch.ones(3))

    with torch.inference_mode(), torch.device("meta"):
        [(_, tensor, _)] = load_file(path)

    assert not tensor.is_inference()
    assert tensor.tolist() == [1.0, 1.0, 1.0]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "f", a=torch.ones(3))
    before = path.read_bytes()

    with pytest.raises(UnsupportedTensorError, match="'bad'"):
        write(path, fine=torch.ones(2), bad=torch.ones(2).to_sparse())

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_error_while_saving_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write(tmp_path / "f", a=torch.ones(3))
    assert list(tmp_path.iterdir()) == []


def test_saving_syncs_the_file_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name.split(".")[-1])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    write(tmp_path / "f", a=torch.ones(3))
    assert synced == ["tmp", tmp_path.name]


def test_saving_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    write(tmp_path / "f", a=torch.ones(3))
    (tmp_path / "link").symlink_to("f")

    write(tmp_path / "link", b=torch.ones(3))

    assert (tmp_path / "link").is_symlink()
    assert load_file(tmp_path / "f")[0][0] == "b"


def test_a_path_that_is_not_utf_8_works(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff")
    write(path, a=torch.ones(3))
    assert load_file(path)[0][1].tolist() == [1.0, 1.0, 1.0]


def test_a_saved_file_has_the_bytes_and_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    first, second = (write(tmp_path / name, **TENSORS) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize(("view", "allowed"), [("", 8), (".t()", 48)], ids=["plain", "strided"])
def test_saving_takes_no_second_copy(tmp_path: Path, view: str, allowed: int) -> None:
    code = f"""
import resource, torch
from torch.distributions import constraints
from paramstore.archive import save_file
small = torch.zeros(10, 10, requires_grad=True){view}
save_file({str(tmp_path / "warm")!r}, [("a", small, constraints.real)])
big = {{str(i): torch.ones(1 << 10, 8 << 10){view} for i in range(4)}}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_file({str(tmp_path / "f")!r}, [(n, t, constraints.real) for n, t in big.items()])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    assert int(grown) < allowed << 10  # KiB; the tensors have 4 x 32 MiB


# -- files of others ---------------------------------------------------------------------------


def test_a_plain_safetensors_file_loads_as_real_and_trainable(tmp_path: Path) -> None:
    wanted = {"a": torch.randn(3), "n": torch.tensor([1, 2]), "h": torch.ones(2).half()}
    safetensors.torch.save_file(wanted, tmp_path / "f")

    found = {name: (tensor, constraint) for name, tensor, constraint in load_file(tmp_path / "f")}

    assert found.keys() == wanted.keys()
    for name, (tensor, constraint) in found.items():
        assert same_bits(tensor, wanted[name])
        assert constraint is constraints.real
        assert tensor.requires_grad == tensor.is_floating_point()


def test_key_order_and_metadata_of_other_writers_do_not_matter(tmp_path: Path) -> None:
    value = {"data_offsets": [0, 4], "shape": [1], "dtype": "F32"}
    text = json.dumps({"a": value, "__metadata__": {"by": "hand"}}).encode()
    path = tmp_path / "f"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))

    [(name, tensor, _)] = load_file(path)

    assert name == "a"
    assert tensor.tolist() == [0.0]


def test_a_plain_file_keeps_its_order(tmp_path: Path) -> None:
    entries = {name: F32 | {"data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate("cab")}
    (tmp_path / "f").write_bytes(header(entries, 24))
    assert [name for name, _, _ in load_file(tmp_path / "f")] == ["c", "a", "b"]


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content, named in [
        (b"", "empty"),
        (b"SQLite format 3\0" + bytes(100), r"paramstore\.open"),
        (b"hello, world" * 10, "neither safetensors nor"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "neither safetensors nor"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UnsupportedFileError, match=named):
            load_file(path)


def test_a_database_is_neither_loaded_nor_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        store["a"] = torch.ones(1)
        store.commit()
        for _ in range(2):
            with pytest.raises(UnsupportedFileError, match="SQLite database"):
                store.save(path)
            with pytest.raises(UnsupportedFileError, match=r"paramstore\.open"):
                store.load(path)
            (tmp_path / "link").unlink(missing_ok=True)
            (tmp_path / "link").symlink_to("run.db")
            path = tmp_path / "link"
        store.commit(step=2)
    with pytest.raises(UnsupportedFileError, match="SQLite database"):
        write(path, a=torch.ones(1))
    with paramstore.open(path) as store:
        assert len(store.log()) == 2


def test_a_database_that_is_open_is_not_opened_by_anybody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paramstore.open(tmp_path / "run.db") as store:
        monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("its locks are gone now"))
        for call in (store.save, store.load):
            with pytest.raises(UnsupportedFileError):
                call(tmp_path / "run.db")


def test_missing_files_and_folders_are_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        load_file(tmp_path / "missing")
    with pytest.raises(StorageError, match="directory"):
        load_file(tmp_path)
    with pytest.raises(StorageError, match="directory"):
        write(tmp_path, a=torch.ones(1))
    with pytest.raises(StorageError, match="No such file"):
        write(tmp_path / "missing" / "f", a=torch.ones(1))


def files() -> Iterator[tuple[str, bytes]]:
    state = {"params": {"a": leaf(1.0, 2.0)}, "constraints": {"a": constraints.positive}}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        yield ("zip" if zipped else "legacy"), buffer.getvalue()
    yield "safetensors", safetensors.torch.save({"a": torch.ones(2)})


@pytest.mark.parametrize(("kind", "content"), list(files()))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "f"
    for length in range(1, len(content), max(1, len(content) // 97)):
        path.write_bytes(content[:length])
        with pytest.raises((CorruptError, UnsupportedFileError)):
            load_file(path)


def test_our_own_file_cut_or_altered_anywhere_never_crashes(tmp_path: Path) -> None:
    items = [
        ("a", leaf(1.0, 2.0), constraints.interval(0.0, torch.ones(2))),
        ("b", leaf(3.0), constraints.real),
    ]
    save_file(tmp_path / "f", items)
    content = (tmp_path / "f").read_bytes()
    for place in range(len(content)):
        (tmp_path / "g").write_bytes(content[:place])
        with pytest.raises((CorruptError, UnsupportedFileError)):
            load_file(tmp_path / "g")
        for flip in (1, 4, 64):
            altered = bytes([*content[:place], content[place] ^ flip, *content[place + 1 :]])
            (tmp_path / "g").write_bytes(altered)
            with suppress(ValueError, CorruptError):  # a bit of the data is as good as another
                load_file(tmp_path / "g")


def header(entries: object, data: int = 8) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
F64 = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}


def marked(mark: object, entry: Mapping[str, object]) -> bytes:
    params = {"a": {"constraint": {"kind": "real"}, "dtype": mark}}
    ours = json.dumps({"version": 1, "params": params})
    return header({"__metadata__": {"paramstore": ours}, "a": entry})


@pytest.mark.parametrize(
    "content",
    [
        header({"a": F32 | {"shape": [3]}}),
        header({"a": F32 | {"shape": [-1, -2]}}),
        header({"a": F32 | {"shape": [2**62, 2**62]}}),
        header({"a": F32 | {"shape": [0, 2**63], "data_offsets": [0, 0]}}, 0),
        header({"a": F32 | {"shape": "x"}}),
        header({"a": F32 | {"shape": [2.0]}}),
        header({"a": F32 | {"data_offsets": [0, 2**60]}}),
        header({"a": F32 | {"data_offsets": [8, 0]}}),
        header({"a": F32 | {"data_offsets": [0, 8, 9]}}),
        header({"a": F32 | {"data_offsets": ["0", "8"]}}),
        header({"a": F32, "b": F32}),
        header({"a": F32}, 16),
        header({"a": {"dtype": "F32"}}),
        header({"a": 1}),
        header(b'{"a": [[[['),
        header(b"{" + b"[" * 100_000, 0),
        header({"__metadata__": 3, "a": F32}),
        header({"__metadata__": {"paramstore": "{}"}, "a": F32}),
        header({"__metadata__": {"paramstore": "[]"}, "a": F32}),
        header({"__metadata__": {"paramstore": '{"version":1,"params":{"a":{}}}'}, "a": F32}),
        header({"__metadata__": {"paramstore": '{"version":1,"params":{"b":{}}}'}, "a": F32}),
        header({"__metadata__": {"paramstore": '{"version":1,"params":{"a":1}}'}, "a": F32}),
        header({"__metadata__": {"paramstore": "[" * 100_000}, "a": F32}),
        header({"a": F32 | {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, 0),
        header({"a": {"dtype": "F4", "shape": [2, 1], "data_offsets": [0, 1]}}, 1),
        marked("C128", F64),
        marked("C128", F32),
        marked("F32", F32),
        marked([1], F32),
        (2**40).to_bytes(8, "little") + b"{}",
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CorruptError):
        load_file(tmp_path / "f")


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F999"])
def test_dtypes_that_torch_lacks_are_named(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "f").write_bytes(
        header({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 3]}}, 3)
    )
    with pytest.raises(UnsupportedFileError, match=dtype):
        load_file(tmp_path / "f")


def test_a_file_of_a_newer_version_says_what_to_do(tmp_path: Path) -> None:
    newer = {"paramstore": '{"version":99,"params":{}}'}
    (tmp_path / "f").write_bytes(header({"__metadata__": newer, "a": F32}))
    with pytest.raises(UnsupportedFileError, match="pip install -U paramstore"):
        load_file(tmp_path / "f")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises((CorruptError, UnsupportedFileError)):
        load_file(tmp_path / "f")
