"""export, import, copy, rename and drop: what leaves a store comes back, and others can read it."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shell_runs import Run, process
from torch import nn

import paramstore
from paramstore.testing.bits import same_bits

# Checks headers of safetensors files; written in TypeScript and independent of the Rust package.
HUB = "@huggingface/hub@2.17.5"


def test_a_safetensors_file_has_every_value_and_comes_back(
    run: Run, db: Path, tmp_path: Path
) -> None:
    file = tmp_path / "main.safetensors"
    assert run("export", "main", file).out.startswith(f"{file}: 11 parameters of main@4, ")
    with paramstore.open(db, readonly=True) as store:
        view, found = store.at("main"), load_file(file)
        assert set(found) == set(view)
        assert all(same_bits(found[name], view.unconstrained(name)) for name in view)

    assert run("import", file, "--scope", "back", "--step", 7, "--tag", "in", "--db", db).out == (
        f"back@1: 11 parameters of {file}\n"
    )
    (row,) = run("log", "back", "--db", db, "--json").json
    assert (row["step"], row["tags"], row["message"]) == (7, ["in"], "imported main.safetensors")
    found = run("diff", "main", "back", "--db", db, "--json").json
    assert (found["unchanged"], found["changed"]) == (11, [])


def test_a_file_of_torch_is_what_stock_pyro_loads(
    run: Run, db: Path, tmp_path: Path, stock_pyro: None
) -> None:
    import pyro

    file = tmp_path / "main.pt"
    assert "3 buffers" in run("export", "main", file).out
    store = pyro.get_param_store()
    store.load(str(file))
    with paramstore.open(db, readonly=True) as ours:
        view = ours.at("main")
        assert set(store.keys()) == {name for name in view if "running" not in name
                                     and "num_batches" not in name}  # fmt: skip
        for name in store:
            assert torch.equal(store[name].detach(), view[name].detach())
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    pyro.module("net", net, update_module_params=True)
    assert torch.equal(net.get_parameter("0.weight"), store["net$$$0.weight"])

    assert run("import", file, "--scope", "pyro", "--db", db, "--json").json["params"] == 8
    found = run("diff", "main", "pyro", "--db", db, "--json").json
    assert (found["unchanged"], found["changed"]) == (8, [])


@pytest.mark.parametrize("pyro", ["1.8.6", "1.9.2"])
def test_what_stock_pyro_saved_comes_in(run: Run, tmp_path: Path, pyro: str) -> None:
    file = Path(__file__).parents[1] / "data" / "pyro" / f"pyro-{pyro}.save"
    values = load_file(file.with_suffix(".values"))
    run("import", file, "--scope", "pyro", "--db", tmp_path / "new.db")
    with paramstore.open(tmp_path / "new.db", scope="pyro", readonly=True) as store:
        view = store.at("pyro")
        assert set(view) == {key.split(" ", 1)[1] for key in values}
        assert all(
            torch.equal(view.unconstrained(name), values[f"unconstrained {name}"]) for name in view
        )


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_of_torch_comes_in_as_a_module(
    run: Run, tmp_path: Path, wrapped: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    net.register_buffer("scale", torch.ones(2))
    file = tmp_path / "net.pt"
    state: Any = net.state_dict()
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, file)
    new = tmp_path / "new.db"
    assert "--module NAME" in run("import", file, "--db", new, code=1).err
    run("import", file, "--module", "net", "--buffer", "sc*", "--db", new)
    again = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    again.register_buffer("scale", torch.zeros(2))
    with paramstore.open(new) as store:
        store.module("net", again)
        store.resume()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in state.items())


def test_one_parameter_goes_to_numpy(run: Run, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "mix.npy"
    run("export", "@1", file, "--param", "mix")
    with paramstore.open(trained, readonly=True) as store:
        assert np.array_equal(np.load(file, allow_pickle=False), store.at("@1")["mix"].numpy())
    assert "choose one with --param" in run("export", "@1", tmp_path / "all.npy", code=1).err
    assert "exists already" in run("export", "@1", file, "-p", "mix", code=1).err
    assert "let its name end in" in run("export", "@1", tmp_path / "x.zip", code=1).err


@pytest.mark.parametrize("end", ["safetensors", "pt"])
def test_a_module_goes_out_as_what_its_load_state_dict_takes(
    run: Run, trained: Path, tmp_path: Path, end: str
) -> None:
    file = tmp_path / f"net.{end}"
    assert run("export", "main", file, "--module", "net").out.startswith(f"{file}: 9 parameters of")
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    net.load_state_dict(load_file(file) if end != "pt" else torch.load(file, weights_only=True))
    with paramstore.open(trained, readonly=True) as store:
        view = store.at("main")
        state = net.state_dict()
        assert state["1.num_batches_tracked"] == 40
        assert all(same_bits(value, view[f"net$$${name}"]) for name, value in state.items())

    run("import", file, "--module", "net", "--scope", "back", "--db", tmp_path / "new.db")
    with paramstore.open(tmp_path / "new.db", scope="back", readonly=True) as store:
        assert set(store.at("back")) == {f"net$$${name}" for name in state}


def test_a_module_that_is_not_there_is_named_with_those_that_are(run: Run, tmp_path: Path) -> None:
    told = run("export", "main", tmp_path / "x.pt", "--module", "nett", code=1).err
    assert "main@4 has no module 'nett' (did you mean 'net'?); it has net" in told
    both = ("--module", "net", "--param", "scale")
    assert "--module goes without --param" in run("export", "main", "x.pt", *both, code=2).err


def test_numbers_that_numpy_lacks_are_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "half.db"
    with paramstore.open(path) as store:
        store["w"] = torch.zeros(3, dtype=torch.bfloat16)
        store.commit()
    told = run("export", "main", tmp_path / "w.npy", "-p", "w", "--db", path, code=1).err
    assert "NumPy has no torch.bfloat16" in told


def test_parameters_are_chosen_by_pattern(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    run("export", "main", file, "--param", "net$$$0.*", "--param", "scale")
    with safe_open(file, framework="np") as opened:
        assert set(opened.keys()) == {"net$$$0.bias", "net$$$0.weight", "scale"}
    assert "did you mean 'scale'" in run("export", "main", tmp_path / "x.pt", "-p", "scael",
                                         code=1).err  # fmt: skip


def test_a_file_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    for name, content in (("a.pt", b"\x80\x02]."), ("b.bin", b"no"), ("c.pt", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        told = run("import", tmp_path / name, "--db", tmp_path / "new.db", code=1).err
        assert told.count("\n") == 1
    assert "new.db" not in {path.name for path in tmp_path.iterdir()}


def strangers(net: nn.Module) -> dict[str, tuple[Callable[[Path], object], str]]:
    """Files that people try to import: how each is made, and what is said of it."""
    tensor = torch.ones(3)
    whole = "save the state_dict() of the module"
    return {
        "plain.pkl": (lambda at: at.write_bytes(pickle.dumps({"w": 1.5})), "is a plain pickle"),
        "old.pkl": (lambda at: at.write_bytes(pickle.dumps({"w": tensor}, 2)), "is a plain pickle"),
        "4.pt": (lambda at: torch.save({"w": tensor}, at, pickle_protocol=4), "pickle_protocol=4"),
        "a.npz": (lambda at: np.savez(at, w=np.ones(3)), "safetensors.numpy.save_file(dict("),
        "a.npy": (lambda at: np.save(at, np.ones(3)), "safetensors.numpy.save_file({"),
        "a.zip": (lambda at: archive(at, "a.txt"), "zip archive, and torch.save did not"),
        "b.zip": (lambda at: archive(at, "b/a.txt"), "zip archive, and torch.save did not"),
        "net.pt": (lambda at: torch.save(net, at), whole),
        "old.pt": (lambda at: torch.save(net, at, _use_new_zipfile_serialization=False), whole),
        "jit.pt": (lambda at: torch.jit.trace(net, torch.ones(1, 2)).save(at), "torch.jit.load"),
        "tensor.pt": (lambda at: torch.save(tensor, at), "holds a tensor, and no names; save a"),
        "list.pt": (lambda at: torch.save([tensor], at), "holds a list, and no names; save a"),
        "number.pt": (lambda at: torch.save(3.0, at), "holds a float, and no names"),
        "cut.pt": (lambda at: cut(net, at), "is cut off or altered"),
    }  # fmt: skip


def archive(at: Path, name: str) -> None:
    with zipfile.ZipFile(at, "w") as opened:
        opened.writestr(name, "nothing")


def cut(net: nn.Module, at: Path) -> None:
    torch.save(net.state_dict(), at)
    at.write_bytes(at.read_bytes()[: at.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", strangers(nn.Module()))
def test_a_file_of_another_kind_is_named_with_what_to_do(
    run: Run, tmp_path: Path, name: str
) -> None:
    make, said = strangers(nn.Linear(2, 2))[name]
    file = tmp_path / name
    make(file)
    told = run("import", file, "--db", tmp_path / "new.db", code=1).err
    assert said in told
    assert ("cut off" in told) is (name == "cut.pt")
    assert told.count("\n") == 1
    assert files(tmp_path) == {name}


def test_arrays_of_numpy_come_in_as_the_message_says(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", w=np.ones(3), b=np.zeros(2))
    told = run("import", tmp_path / "in.npz", "--db", tmp_path / "new.db", code=1).err
    call = told.partition("file of it: ")[2].strip()
    subprocess.run(
        [sys.executable, "-c", f"import numpy, safetensors.numpy; {call}"], cwd=tmp_path, check=True
    )
    out = run("import", tmp_path / "out.safetensors", "--db", tmp_path / "new.db").out
    assert out.startswith("main@1: 2 parameters")


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_what_a_checkpoint_has_beside_the_model_is_said_to_be_left_out(
    run: Run, tmp_path: Path, key: str
) -> None:
    net = nn.Linear(2, 2)
    optim = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optim.step()
    file, to = tmp_path / "ckpt.pt", ("--module", "net", "--db", tmp_path / "new.db")
    torch.save({key: net.state_dict(), "optimizer": optim.state_dict(), "epoch\n": 3}, file)
    assert run("import", file, *to).out == (
        f"main@1: 2 parameters of {file}\nleft out: optimizer, epoch\\n\n"
    )
    ran = run("import", file, "--scope", "again", "--json", *to)
    assert (ran.json["ref"], ran.err) == ("again@1", "left out: optimizer, epoch\\n\n")
    torch.save(net.state_dict(), file)
    assert "left out" not in run("import", file, "--scope", "third", *to).out


def test_a_parameter_may_have_the_name_of_a_part_of_a_checkpoint(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tensors.pt"
    torch.save({"model": torch.ones(2), "other": torch.ones(3)}, file)
    assert run("import", file, "--db", tmp_path / "new.db").out.startswith("main@1: 2 parameters")


def test_a_scope_with_snapshots_gets_another_only_on_request(
    run: Run, db: Path, tmp_path: Path
) -> None:
    file = tmp_path / "main.safetensors"
    run("export", "@warm", file, "--db", db)
    assert "--append" in run("import", file, "--db", db, code=1).err
    assert run("import", file, "--append", "--db", db, "--json").json["parent"] == "main@4"


# -- other languages ---------------------------------------------------------------

_PARSE = """
import { parseSafetensorsMetadata } from '@huggingface/hub';
import { readFileSync } from 'node:fs';
const file = readFileSync(process.argv[2]);
const fetch = async (url, options) => {
  const range = /bytes=(\\d+)-(\\d+)/.exec(new Headers(options?.headers).get('range') ?? '');
  const part = range ? file.subarray(+range[1], +range[2] + 1) : file;
  return new Response(part, { status: range ? 206 : 200, headers: {
    'content-length': `${part.length}`, 'etag': '"1"',
    'content-range': `bytes ${range ? range[1] : 0}-${range ? range[2] : 0}/${file.length}` } });
};
const found = await parseSafetensorsMetadata(
  { repo: 'a/b', path: 'model.safetensors', computeParametersCount: true, fetch });
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="session")
def hub() -> Path:
    """A folder with the npm package, outside the repository; fetched once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paramstore" / HUB
    if not (cache / "node_modules").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-audit", "--no-fund", HUB]
        done = subprocess.run(install, cwd=cache, capture_output=True, check=False, timeout=60)
        if done.returncode:
            pytest.skip(f"npm cannot install {HUB}")
    return cache


def test_an_exported_file_opens_in_the_parser_of_another_language(
    run: Run, trained: Path, tmp_path: Path, hub: Path
) -> None:
    file = tmp_path / "main.safetensors"
    run("export", "main", file)
    script = hub / "parse.mjs"
    script.write_text(_PARSE)
    done = subprocess.run(
        ["node", script, file], cwd=hub, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    header = json.loads(done.stdout)["header"]
    with paramstore.open(trained, readonly=True) as store:
        view = store.at("main")
        assert {
            name: (about["dtype"], about["shape"])
            for name, about in header.items()
            if name != "__metadata__"
        } == {n: (e.dtype, list(e.stored_shape)) for n, e in view.manifest.entries.items()}
    assert "paramstore" in header["__metadata__"]


# -- scopes ------------------------------------------------------------------------


def test_a_scope_is_copied_here_and_into_another_store(run: Run, db: Path, tmp_path: Path) -> None:
    assert run("copy", "main", "kept", "--db", db).out == (
        "kept: 4 snapshots, 0 B of tensors written\n"
    )
    other = tmp_path / "other.db"
    assert run("copy", "main", "--to-db", other, "--db", db, "--json").json["snapshots"] == 4
    assert run("log", "--db", other).out == run("log", "--db", db).out
    found = paramstore.open(other)
    assert found.at("@warm").extras["epoch"] == 2
    found.close()
    for path in (db, other):
        assert run("verify", "--db", path, "--statistics", "--json").json["ok"]
    assert "already" in run("copy", "main", "--to-db", other, "--db", db, code=1).err
    assert "already" in run("copy", "main", "--to-db", db, "--db", db, code=1).err
    assert "name the copy" in run("copy", "main", "--db", db, code=2).err


def test_what_cannot_come_into_a_new_store_leaves_none(run: Run, db: Path, tmp_path: Path) -> None:
    new, file = tmp_path / "new.db", tmp_path / "main.safetensors"
    run("export", "main", file, "--db", db)
    run("copy", "nowhere", "--to-db", new, "--db", db, code=1)
    run("copy", "main", "a@b", "--to-db", new, "--db", db, code=1)
    run("import", file, "--tag", "latest", "--db", new, code=1)
    run("import", file, "--scope", "a@b", "--db", new, code=1)
    assert files(tmp_path) == {"paramstore.db", "main.safetensors"}


def files(folder: Path) -> set[str]:
    """The names of a folder, without the empty journals that SQLite leaves beside its files."""
    return {path.name for path in folder.iterdir() if not path.name.endswith("-journal")}


def importing(folder: Path, *arguments: object, limit: int | None = None) -> str:
    """Import as a process that is refused; it may write files of so many bytes. What it says."""

    def limit_files() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return process("import", *arguments, cwd=folder, preexec_fn=limit_files, code=1).err


def test_an_import_that_fails_late_leaves_no_new_store(tmp_path: Path) -> None:
    save_file({"seen": torch.arange(3)}, tmp_path / "buffer.safetensors")
    save_file({"w": torch.randn(1_000_000)}, tmp_path / "large.safetensors")
    before = files(tmp_path)
    assert "--module NAME" in importing(tmp_path, "buffer.safetensors")
    assert "64-bit" in importing(tmp_path, "large.safetensors", "--step", 10**30)
    importing(tmp_path, "large.safetensors", limit=3_000_000)  # no room for its tensor
    assert files(tmp_path) == before
    process("import", "large.safetensors", cwd=tmp_path)
    assert files(tmp_path) == before | {"paramstore.db"}


def test_an_import_that_fails_late_leaves_a_store_as_it_was(db: Path, tmp_path: Path) -> None:
    save_file({"seen": torch.arange(3)}, tmp_path / "buffer.safetensors")
    save_file({"w": torch.randn(1_000_000)}, tmp_path / "large.safetensors")
    before, content = files(tmp_path), db.read_bytes()
    importing(tmp_path, "buffer.safetensors", "--scope", "new")
    importing(tmp_path, "large.safetensors", "--scope", "new", limit=3_000_000)
    process("verify", db=db)  # who opens it next undoes what the import could not
    assert (files(tmp_path), db.read_bytes()) == (before, content)


def test_a_copy_that_meets_damage_leaves_no_new_store(run: Run, db: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("UPDATE chunks SET data = zeroblob(length(data))")
        connection.commit()
    before = files(tmp_path)
    told = run("copy", "main", "--to-db", tmp_path / "new.db", "--db", db, code=1).err
    assert "Nothing was copied" in told
    assert files(tmp_path) == before


def test_a_run_continues_in_a_renamed_scope(run: Run, db: Path) -> None:
    assert run("rename", "colder", "hot", "--db", db).out == "colder is now hot\n"
    with paramstore.open(db, scope="hot") as store:
        assert store.last is not None
        store["scale"] = torch.tensor(3.0)
        assert store.commit().ref == "hot@2"
    assert run("verify", "--db", db, "--json").json["ok"]


def test_a_parameter_is_renamed_in_its_whole_history(run: Run, db: Path) -> None:
    run("rename", "scale", "guide.scale", "--param", "--db", db)
    assert len(run("history", "guide.scale", "--db", db, "--jsonl").rows) == 4
    assert "--scope goes with --param" in run("rename", "a", "b", "-s", "main", code=2).err


def test_a_scope_is_dropped_only_when_somebody_says_so(run: Run, db: Path) -> None:
    told = run("drop", "main", "--db", db, code=1).err
    assert "main with 4 snapshots (colder@1 will have no parent); say --yes" in told
    would = run("drop", "main", "--dry-run", "--db", db).out
    assert would.startswith("would forget main with 4 snapshots (colder@1 will have no parent)\n")
    gone = {"scope": "main", "snapshots": 4, "orphaned": ["colder@1"]}
    assert run("drop", "main", "--dry-run", "--yes", "--db", db, "--json").json == gone | {
        "dry_run": True
    }
    assert len(run("scopes", "--db", db, "--json").json) == 2
    assert run("drop", "main", "--yes", "--db", db, "--json").json == gone | {"dry_run": False}
    run("gc", "--db", db)
    assert [row["scope"] for row in run("scopes", "--db", db, "--json").json] == ["colder"]
    assert run("show", "--values", "--db", db, "--json").json["snapshot"]["parent"] is None
    assert run("verify", "--statistics", "--db", db, "--json").json["ok"]
