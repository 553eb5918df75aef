"""What is fuzzed: hostile inputs for everything that reads what anybody may have written.

Each target makes its input from a seed alone, so that a number names it, and reads it. Must never
decide whether an outcome is good, apart from a value that is wrong.
"""

from __future__ import annotations

import io
import json
import random
import re
import sqlite3
import string
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing, suppress
from functools import lru_cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from blake3 import blake3
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict, tensors
from paramstore.archive import load_file
from paramstore.constraints import from_spec, to_spec
from paramstore.db import reading
from paramstore.db.engine import Database
from paramstore.errors import CorruptError, ParamStoreError
from paramstore.extras import Encoder
from paramstore.refs import Ref, parse_ref
from paramstore.skeletons import decode
from paramstore.testing.bits import same_bits

Random = random.Random
MOST = 100_000  # characters of a text, so that memory is never the fuzzing's own
FOLDER = Path(mkdtemp(prefix="paramstore-fuzz-"))

NUMBERS: tuple[int, ...] = (
    0, 1, -1, 2, 3, 127, 255, 256, 4096, 2**31 - 1, 2**31, 2**32, 10**10, 2**53, 2**62, 2**63 - 1,
    2**63, 2**64 - 1, 2**64, -(2**63), 10**30, 10**400,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    0.5,
    -0.0,
    1e308,
    1e400,
    float("nan"),
    "",
    "x",
    [],
    {},
)
WORDS: tuple[str, ...] = (
    "real", "positive", "cat", "kind", "base", "$tensor", "$dict", "F32", "C128", "I64", "cpu", "O",
    "\x1b[2J", "\u202e", "\0", "../../x", "__class__", "torch.float32", "float32", "<f8", "AAAA",
    "nan", "nan:7ff8000000000001", "0x" + "f" * 5000, "9" * 5000, "=1+1", "[red]x", "%",
)  # fmt: skip


# -- damage ----------------------------------------------------------------------------------------


def damaged(data: bytes, rng: Random, *, most: int = 4) -> bytes:
    """Change some bytes, as an accident or a stranger would."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        rng.choice(_DAMAGES)(changed, rng)
    return bytes(changed)


def _flip(data: bytearray, rng: Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: Random) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(data: bytearray, rng: Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.choice((1, 2, 8, 100))]


def _repeat(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.choice((1, 8, 64))] * rng.choice((1, 2, 50))


def _number(data: bytearray, rng: Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) % (1 << 8 * width)
    start = rng.randrange(len(data) + 1)
    data[start : start + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _digits(data: bytearray, rng: Random) -> None:
    found = [match.span() for match in re.finditer(rb"\d+", bytes(data[:4096]))]
    if found:
        start, end = rng.choice(found)
        data[start:end] = str(rng.choice((*NUMBERS, "1e400", "-1", "1.5", "9" * 5000))).encode()


def _word(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data) + 1)
    word = rng.choice(WORDS).encode()
    data[start : start + rng.choice((0, len(word)))] = word


_DAMAGES = (_flip, _byte, _byte, _cut, _remove, _repeat, _number, _digits, _word)


def other_json(node: Any, rng: Random) -> Any:
    """Put something else in the place of a node of a JSON tree, or of several."""
    if rng.random() < 0.3 or not isinstance(node, dict | list) or not node:
        return _anything(node, rng)
    if isinstance(node, list):
        place = rng.randrange(len(node))
        return [*node[:place], other_json(node[place], rng), *node[place + 1 :]]
    key = rng.choice(list(node))
    changed = {k: other_json(v, rng) if k == key else v for k, v in node.items()}
    if rng.random() < 0.2:
        changed[rng.choice(WORDS)] = changed.pop(key)
    return changed


def _anything(node: Any, rng: Random) -> Any:
    return rng.choice(
        (
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(OTHERS),
            lambda: rng.choice(WORDS),
            lambda: [node] * rng.choice((0, 1, 2) if isinstance(node, dict | list) else (50,)),
            lambda: {rng.choice(WORDS): node, rng.choice(WORDS): rng.choice(NUMBERS)},
            lambda: _deep(node, rng),
        )
    )()


def _deep(node: Any, rng: Random) -> Any:
    for _ in range(rng.choice((3, 60, 400))):
        node = [node] if rng.random() < 0.5 else {rng.choice(WORDS): node}
    return node


def json_text(text: str, rng: Random) -> str:
    """Change a JSON text as a tree, or as bytes."""
    if rng.random() < 0.02:  # deeper than json.dumps goes
        open_, close = rng.choice((("[", "]"), ('{"a":', "}"), ('{"$tuple":[', "]}")))
        depth = rng.choice((900, 1100, 20_000))
        return open_ * depth + "1" * rng.choice((0, 1)) + close * rng.choice((0, depth))
    if rng.random() < 0.4:
        return damaged(text.encode(), rng).decode(errors="replace")
    try:
        tree = json.loads(text)
    except ValueError:  # changed before
        return damaged(text.encode(), rng).decode(errors="replace")
    for _ in range(rng.randint(1, 3)):
        tree = other_json(tree, rng)
    try:
        return json.dumps(tree)[:MOST]
    except (ValueError, RecursionError):  # a number of too many digits, or nested too deep
        return rng.choice(("9" * 5000, "[" * 1000 + "]" * 1000))


# -- one tensor ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _blobs() -> list[bytes]:
    made = [torch.arange(6.0).view(2, 3), torch.ones(3, dtype=torch.complex128), torch.zeros(0, 4)]
    made += [
        torch.tensor(True),
        torch.ones(5, dtype=torch.bfloat16),
        torch.ones(2, 2).to(torch.int8),
    ]
    return [e.header + bytes(e.data) for e in (tensors.encode(t, name="x") for t in made)]


def headers(rng: Random) -> None:
    blob = rng.choice(_blobs())
    if rng.random() < 0.5:
        size = int.from_bytes(blob[:8], "little")
        text = json_text(blob[8 : 8 + size].decode(), rng).encode()
        blob = len(text).to_bytes(8, "little") + text + blob[8 + size :]
    else:
        blob = damaged(blob, rng)
    found = tensors.decode(blob)
    again = tensors.encode(found, name="x")
    assert again.header + bytes(again.data) == blob


# -- text ------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _specs() -> list[str]:
    bound = torch.tensor([0.5, 2.0])
    made = [constraints.positive, constraints.simplex, constraints.interval(0.0, bound)]
    made += [constraints.independent(constraints.greater_than(bound), 1)]
    made += [constraints.cat([constraints.positive, constraints.real], 0, [1, 2])]
    made += [constraints.stack([constraints.less_than(2), constraints.unit_interval], -1)]
    made += [constraints.multinomial(4), constraints.integer_interval(0, 5)]
    names = ("sphere", "corr_matrix", "softplus_positive")
    of_pyro = [f'{{"kind":"{name}"}}' for name in names]
    from_spec(of_pyro[0])  # imports Pyro, if it is there
    return [to_spec(c).text for c in made] + of_pyro


def specs(rng: Random) -> None:
    text = rng.choice(_specs())
    for _ in range(rng.choice((0, 0, 1, 2))):
        text = f'{{"base":{text},"kind":"independent","reinterpreted_batch_ndims":1}}'
    found = from_spec(json_text(text, rng), _no_tensor)
    assert repr(found) is not None


def _no_tensor(number: object) -> torch.Tensor:
    raise CorruptError(f"there is no tensor {number!r:.100}")


@lru_cache(maxsize=1)
def _skeletons() -> list[str]:
    import numpy as np

    made: list[object] = [
        {"a": [1, 2.5, None], ("k", 1): b"bytes"},
        OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2).T),
        (float("nan"), complex(1, float("inf")), 2**80, torch.Size([2]), torch.float32),
        {"arr": np.arange(4.0), "text": np.array(["ab", "c"]), "s": np.float32(2)},
        torch.optim.Adam([torch.ones(2, requires_grad=True)]).state_dict(),
        {"big": torch.ones(2000)},
    ]
    encoder = Encoder()
    return [encoder.encode(value, "x") for value in made]


def skeletons(rng: Random) -> None:
    decode(json_text(rng.choice(_skeletons()), rng), _some_tensor)


def _some_tensor(number: Any) -> torch.Tensor:
    if number not in (0, 1):
        return _no_tensor(number)
    return torch.ones(2000) if number == 0 else torch.ones(5000, dtype=torch.uint8)


def references(rng: Random) -> None:
    seeds = ("main@12", "main", "@warm", "main@step=1000", "@latest", "a-b/c@-1", "@step=-9", "x@")
    text = rng.choice(seeds)
    if rng.random() < 0.5:
        text = damaged(text.encode(), rng).decode(errors="replace")
    else:
        letters = string.printable + "@@@===0123456789\u202e\x1b\0é٣²\ud800"
        text = "".join(rng.choice(letters) for _ in range(rng.choice((0, 1, 5, 20, 300))))
    found = parse_ref(text)
    assert found.scope is None or parse_ref(str(found)) == found or found == Ref(scope=found.scope)


# -- files -----------------------------------------------------------------------------------------


def _state() -> dict[str, Any]:
    base = torch.arange(8.0)
    params = {"a": torch.ones(2, requires_grad=True), "b": base[2:6], "c": torch.nn.Parameter(base)}
    bounds = constraints.interval(torch.zeros(2), 3.0)
    kept = {"a": constraints.positive, "b": constraints.real, "c": bounds}
    return {"params": params, "constraints": kept}


@lru_cache(maxsize=1)
def _pickles() -> list[bytes]:
    made = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(_state(), file, _use_new_zipfile_serialization=zipped)
        made.append(file.getvalue())
    return made


def pickles(rng: Random) -> None:
    data = rng.choice(_pickles())
    if data.startswith(b"PK") and rng.random() < 0.7:
        data = _other_zip(data, rng)
    else:
        data = data[:2] + damaged(data[2:], rng)
    _load(data)


def _other_zip(data: bytes, rng: Random) -> bytes:
    """Change one part of an archive, which stays whole."""
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        chosen = rng.choice((rng.choice(names), next(n for n in names if n.endswith("data.pkl"))))
        for name in names:
            content = damaged(old.read(name), rng) if name == chosen else old.read(name)
            new.writestr(name, content, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return made.getvalue()


@lru_cache(maxsize=1)
def _archive() -> bytes:
    store = ParamStoreDict()
    store.setdefault("a", torch.ones(2), constraint=constraints.positive)
    store["b"] = torch.arange(6.0).view(2, 3)
    store["z"] = torch.ones(2, dtype=torch.complex128)
    store.setdefault("c", torch.ones(2000), constraint=constraints.greater_than(torch.zeros(2000)))
    store.save(str(FOLDER / "seed"))
    return (FOLDER / "seed").read_bytes()


def archives(rng: Random) -> None:
    data = _archive()
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.7:
        fields = json.loads(data[8 : 8 + size])
        if rng.random() < 0.6:
            ours = json_text(fields["__metadata__"]["paramstore"], rng)
            fields["__metadata__"]["paramstore"] = ours
            text = json.dumps(fields).encode()
        else:
            text = json_text(json.dumps(fields), rng).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + size :]
    else:
        data = damaged(data[: size + 8], rng) + data[size + 8 :]
    _load(data)


def _load(data: bytes) -> None:
    file = FOLDER / "file"
    file.write_bytes(data)
    for name, value, constraint in load_file(file):
        assert isinstance(name, str)
        assert value.untyped_storage().nbytes() <= max(len(data), 1 << 20)
        assert repr(constraint) is not None


# -- databases -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _database() -> tuple[bytes, dict[int, dict[str, torch.Tensor]]]:
    path = FOLDER / "seed.db"
    values: dict[int, dict[str, torch.Tensor]] = {}
    with paramstore.open(path) as store:
        store.setdefault("scale", torch.ones(3), constraint=constraints.positive)
        store["w"] = torch.arange(12.0).view(3, 4)
        store["large"] = torch.ones(20_000)
        for step in range(3):
            store["w"] = torch.arange(12.0).view(3, 4) + step
            store.commit(
                step=step,
                metrics={"elbo": float(step)},
                tags=[f"t{step}"],
                message="m",
                extras={"epoch": step, "t": torch.ones(3000), "d": {1: (2.5, None)}},
            )
            view = store.at(step + 1)
            values[step + 1] = {name: view[name] for name in view}
        store.fork("other")
        store.commit()
    return path.read_bytes(), values


def database_bytes(rng: Random) -> None:
    """Bytes of the file changed: what is read is right, or an error."""
    data, values = _database()
    changed = bytearray(data)
    if rng.random() < 0.1:
        changed = changed[: rng.randrange(len(changed))]
    else:
        for _ in range(rng.choice((1, 1, 3, 20))):
            _damage_page(changed, rng)
    path = _fresh(bytes(changed))
    for name, version, value in _read(path):
        known = values.get(version, {}).get(name)
        assert known is not None, name
        assert same_bits(value, known), f"{name} of version {version} is wrong"
    _commit(path)


def _damage_page(data: bytearray, rng: Random) -> None:
    # Where there is something: the head of the file and of a page, or bytes that are not zero.
    page = rng.randrange(len(data) // 65536) * 65536
    start = page + rng.choice((rng.randrange(100), 65536 - rng.randrange(1, 3000)))
    if rng.random() < 0.5:
        data[start] ^= 1 << rng.randrange(8)
    else:
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice(NUMBERS) % (1 << 8 * width)
        data[start : start + width] = value.to_bytes(width, "big")


def database_rows(rng: Random) -> None:
    """Cells of the tables replaced, and the digests made to fit: a stranger can do that."""
    data, _ = _database()
    path = _fresh(data)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        for _ in range(rng.choice((1, 1, 2, 5))):
            _change_cell(connection, rng)
        connection.commit()
    if rng.random() < 0.8:
        _sign(path)
    list(_read(path))
    _commit(path)


_CELLS = {
    "scopes": "name head_version created_at",
    "snapshots": "scope_id version parent_id step created_at message kind params changed nbytes "
    "added_nbytes origin",
    "metrics": "name value snapshot_id",
    "tags": "name snapshot_id",
    "params": "name scope_id",
    "param_versions": "param_id version blob_id constraint_id kind requires_grad shape norm mean "
    "nan_count value unconstrained",
    "snapshot_params": "param_version_id param_id",
    "constraints": "spec digest",
    "blobs": "digest nbytes dtype shape",
    "chunks": "data id",
    "extras": "kind name skeleton",
    "extra_blobs": "seq blob_id",
    "sqlite_sequence": "seq",
    "paramstore_alembic_version": "version_num",
}


def _change_cell(connection: sqlite3.Connection, rng: Random) -> None:
    table = rng.choice(list(_CELLS))
    column = rng.choice(_CELLS[table].split())
    found = connection.execute(f"SELECT {column} FROM {table} ORDER BY random()").fetchall()
    old = rng.choice(found)[0] if found else None
    new = _other_cell(old, rng)
    # Not where it is a key that is there already, no number, or a NULL that must not be.
    with suppress(sqlite3.IntegrityError):
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} IS ?", (new, old))


def _other_cell(old: Any, rng: Random) -> Any:
    if isinstance(old, str) and old[:1] in "{[" and rng.random() < 0.7:
        return json_text(old, rng).encode(errors="replace").decode()
    if isinstance(old, bytes) and rng.random() < 0.7:
        return damaged(old[:5000], rng)
    number = rng.choice([n for n in NUMBERS if -(2**63) <= n < 2**63])
    word = rng.choice([w for w in WORDS if "\0" not in w])
    huge = f"[{number},{number}]"
    return rng.choice((None, number, number, 0.5, 1e308, word, huge, b"\xff\xfe", b"", word * 100))


def _sign(path: Path) -> None:
    """Give snapshots and specs the digests of what they are now, where there are any."""
    try:
        database = Database.open(path)
    except ParamStoreError:
        return
    with closing(sqlite3.connect(path)) as connection:
        for (row,) in connection.execute("SELECT id FROM snapshots").fetchall():
            try:
                rows = reading.read_rows(database.fetch, row)
                entries = [reading.entry_of(rows.header.id, it) for it in rows.entries]  # type: ignore[union-attr]
                digest = rows.digest(sorted(entries))  # type: ignore[union-attr]
            except Exception:  # noqa: BLE001  # then it cannot be signed
                continue
            sizes: list[Any] = [entry.nbytes for entry in entries]
            total = sum(size for size in sizes if isinstance(size, int))
            connection.execute(
                "UPDATE snapshots SET digest = ?, params = ?, nbytes = ? WHERE id = ?",
                (digest, len(entries), max(min(total, 2**63 - 1), 0), row),
            )
        for row, spec in connection.execute("SELECT id, spec FROM constraints").fetchall():
            if isinstance(spec, str):
                digest = blake3(spec.encode(errors="replace")).digest()
                connection.execute(
                    "UPDATE OR IGNORE constraints SET digest = ? WHERE id = ?", (digest, row)
                )
        connection.commit()
    database.close()


def _fresh(data: bytes) -> Path:
    for left in FOLDER.glob("case.db*"):
        left.unlink()
    path = FOLDER / "case.db"
    path.write_bytes(data)
    return path


def _read(path: Path) -> list[tuple[str, int, torch.Tensor]]:
    """Look at everything that a store shows; return the values of its snapshots."""
    found: list[tuple[str, int, torch.Tensor]] = []
    with paramstore.open(path, readonly=True) as store:
        _try(lambda: repr(store))
        _try(lambda: str(store.scopes()))
        _try(lambda: str(store.log()) + repr(list(store.log())))
        _try(store.load_all)
        _try(lambda: str(store.diff(1, 3)))
        for name in _try(lambda: list(store)) or []:
            _try(partial(_history, store, name))
        for version in (1, 2, 3):
            view = _try(partial(store.at, version))
            _try(partial(_extras, view))
            for name in view or ():
                value = _try(partial(view.__getitem__, name))
                if value is not None:
                    found.append((name, version, value))
    return found


def _history(store: ParamStoreDict, name: str) -> None:
    assert str(store.history(name))
    assert repr(list(store.history(name)))


def _extras(view: Any) -> None:
    assert view is None or repr(dict(view.extras))


def _commit(path: Path) -> None:
    def commit() -> None:
        with paramstore.open(path, timeout=1) as store:
            store.attach(rng=True)
            _try(store.resume)
            store["new"] = torch.ones(2)
            store.commit(tags=["t0"])

    _try(commit)


def _try(call: Callable[[], Any]) -> Any:
    """Call, and go on where the library says that something is wrong."""
    try:
        return call()
    except ParamStoreError as error:
        if not str(error).isprintable():
            raise AssertionError(repr(str(error))) from error
        return None


TARGETS: dict[str, tuple[Callable[[Random], None], int, int]] = {
    "headers": (headers, 3000, 30_000),
    "specs": (specs, 2000, 20_000),
    "skeletons": (skeletons, 2000, 20_000),
    "references": (references, 3000, 20_000),
    "archives": (archives, 400, 8000),
    "pickles": (pickles, 250, 6000),
    "database bytes": (database_bytes, 40, 2000),
    "database rows": (database_rows, 40, 2000),
}
"""What reads an input of that seed; how many are read in a quick and in a full run."""
