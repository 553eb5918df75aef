"""Bad input: files that are no stores, names, values, references, pickles and extras.

See also test_altered_databases.py, test_bad_pickles.py, test_permissions.py, test_processes.py.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict


@pytest.fixture
def store(path: Path) -> Iterator[ParamStoreDict]:
    """A store with two snapshots, the first one tagged."""
    with paramstore.open(path) as opened:
        opened["x"] = torch.zeros(3)
        opened.setdefault("scale", torch.ones(3), constraint=constraints.positive)
        opened.commit(step=10, tags=["warm"])
        with torch.no_grad():
            opened["x"].fill_(1.0)
        opened.commit(step=20)
        yield opened


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"loss,step\n1.0,2\n", b"\x00" * 8192, b"SQLite format 3\x00" + b"\xff" * 8192],
    ids=["text", "zeros", "a header and rubbish"],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_is_not_a_database_is_refused_and_left_alone(
    path: Path, content: bytes, readonly: bool
) -> None:
    path.write_bytes(content)
    with pytest.raises(paramstore.NotADatabaseError, match=path.name):
        paramstore.open(path, readonly=readonly)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_database_cut_off_in_the_middle_is_refused(store: ParamStoreDict, path: Path) -> None:
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(paramstore.DatabaseError):
        paramstore.open(path).load_all()


@pytest.mark.parametrize(
    "table",
    ["runs", "params", "alembic_version"],
    ids=["of other tables", "with a table of our name", "of another alembic project"],
)
def test_a_database_that_is_not_ours_is_refused_and_left_alone(path: Path, table: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, version_num TEXT)")
    connection.execute(f"INSERT INTO {table} VALUES (1, 'abc')")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    with pytest.raises(paramstore.ForeignDatabaseError, match=path.name):
        paramstore.open(path)
    assert path.read_bytes() == content


def test_a_database_with_a_newer_schema_is_refused_and_names_both_revisions(
    store: ParamStoreDict, path: Path
) -> None:
    store.close()
    connection = sqlite3.connect(path)
    (ours,) = connection.execute("SELECT version_num FROM paramstore_alembic_version").fetchone()
    connection.execute("UPDATE paramstore_alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(paramstore.SchemaTooNewError, match="9999") as caught:
        paramstore.open(path)
    assert ours in str(caught.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(paramstore.StorageError, match="directory"):
        paramstore.open(tmp_path)


def test_a_file_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(paramstore.StorageError, match="nowhere"):
        paramstore.open(tmp_path / "nowhere" / "run.db")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("options", [{"create": False}, {"readonly": True}])
def test_a_missing_file_is_not_created_unasked(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(paramstore.ParamStoreError, match=path.name):
        paramstore.open(path, **options)
    assert not path.exists()


def test_open_without_a_path_says_where_one_comes_from() -> None:
    with pytest.raises(paramstore.InvalidInputError, match="PARAMSTORE_URL"):
        paramstore.open()


@pytest.mark.parametrize("url", ["mysql://nobody@nowhere/x", "nonsense://x", "http://example.org"])
def test_a_url_of_an_unknown_kind_is_refused(url: str) -> None:
    with pytest.raises(paramstore.ParamStoreError, match=url.partition(":")[0]):
        paramstore.open(url)


NO_PATHS = [3, 1.5, b"run.db", ["run.db"], object, "", "run\0.db"]


@pytest.mark.parametrize("where", NO_PATHS, ids=repr)
def test_what_is_no_path_is_refused_in_words(store: ParamStoreDict, where: Any) -> None:
    for call in (
        paramstore.open,
        ParamStoreDict,
        store.backup,
        lambda path: paramstore.salvage(path, "new.db"),
        lambda path: paramstore.salvage("old.db", path),
    ):
        with pytest.raises(paramstore.InvalidInputError, match="path"):
            call(where)


@pytest.mark.parametrize("where", NO_PATHS[:5], ids=repr)
def test_what_is_no_path_of_a_parameter_file_is_refused_in_words(
    store: ParamStoreDict, where: Any
) -> None:
    for call in (store.save, store.load):
        with pytest.raises(paramstore.InvalidInputError, match="is no path"):
            call(where)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with paramstore.open("~/run.db") as store:
        store["x"] = torch.ones(1)
        store.commit()
        store.save(Path("~", "x.safetensors"))
        store.load("~/x.safetensors")
        assert store.backup("~/copy.db") == Path(tmp_path.resolve(), "copy.db")
    monkeypatch.setenv("PARAMSTORE_URL", "sqlite:///~/run.db")
    with paramstore.open(readonly=True) as store:
        assert store["x"].item() == 1.0
    found = {file.name for file in tmp_path.iterdir()}
    assert found == {"copy.db", "run.db", "run.db-journal", "x.safetensors"}


@pytest.mark.parametrize("timeout", ["60", -1, -0.5, float("nan"), None], ids=repr)
def test_a_timeout_that_is_no_time_is_refused(path: Path, timeout: Any) -> None:
    with pytest.raises(paramstore.InvalidInputError, match="timeout is in seconds"):
        paramstore.open(path, timeout=timeout)
    assert not path.exists()


def test_a_journal_that_does_not_exist_is_refused_before_there_is_a_file(path: Path) -> None:
    with pytest.raises(paramstore.InvalidInputError, match="journal is 'wal'"):
        paramstore.open(path, journal="WAL")  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gpu", "'gpu' is no device"),
        ("", "'' is no device"),
        ({"cpu": "gpu"}, "'gpu' is no device"),
        ("cuda", "pass map_location='cpu'"),
        ("cuda:1", "pass map_location='cpu'"),
        (torch.device("cuda"), "pass map_location='cpu'"),
        ("xpu", "pass map_location='cpu'"),
        (3, "map_location is a device"),
        ({"cpu": 3}, "map_location is a device"),
    ],
    ids=repr,
)
def test_a_map_location_that_is_not_here_is_refused_before_anything_is_read(
    store: ParamStoreDict, path: Path, location: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = path.with_suffix(".save")
    store.save(file)
    for call in (paramstore.open, ParamStoreDict, lambda _, **how: store.load(file, **how)):
        with pytest.raises(paramstore.InvalidInputError, match=said):
            call(path, map_location=location)


def test_a_map_location_in_every_form_is_taken(store: ParamStoreDict, path: Path) -> None:
    every: list[Any] = [
        None,
        "cpu",
        "cpu:0",
        torch.device("cpu"),
        {"cuda:0": "cpu"},
        {},
        lambda tensor, _: tensor,
    ]
    for location in every:
        with paramstore.open(path, readonly=True, map_location=location) as reader:
            assert reader["x"].tolist() == [1.0, 1.0, 1.0]


# -- names ---------------------------------------------------------------------------------------

ODD_NAMES = [
    "'; DROP TABLE params; --",
    '"quoted"',
    "%",
    "a_b",
    "a%b",
    "line\nbreak",
    "\t",
    " ",
    "\x1b[31mred",
    "../../etc/passwd",
    "a" * 5000,
    "$$$",
    "net$$$layer.weight",
    "__metadata__",
    "value",
    "é",
    "e\u0301",
    "\u202eright to left",
    "🙂",
    "None",
    "main@1",
    "[a-z]*",
]


def test_every_parameter_name_but_the_forbidden_ones_works(path: Path) -> None:
    with paramstore.open(path) as store:
        for number, name in enumerate(ODD_NAMES):
            store[name] = torch.tensor(float(number))
        store.commit()
        store.save(str(path.with_suffix(".save")))
        for name in ODD_NAMES:
            with torch.no_grad():
                store[name].add_(100.0)
        store.commit()
    with paramstore.open(path) as store:
        assert list(store) == ODD_NAMES
        for number, name in enumerate(ODD_NAMES):
            assert store[name].item() == number + 100.0, name
            assert [row.value for row in store.history(name)] == [number, number + 100.0], name
            assert store.at(1)[name].item() == number, name
        assert len(store.diff(1, 2).changed) == len(ODD_NAMES)
        store.restore(1, include=["[a-z]*", "a%b"])
        assert store["a%b"].item() == ODD_NAMES.index("a%b")
        assert store["%"].item() == ODD_NAMES.index("%") + 100.0
        store.clear()
        store.load(str(path.with_suffix(".save")))
        assert {name: int(value.item()) for name, value in store.items()} == {
            name: number for number, name in enumerate(ODD_NAMES)
        }


@pytest.mark.parametrize("name", ["", "a\0b", "\0", "\ud800", 3, None, b"x", ("a",)])
def test_a_forbidden_parameter_name_is_refused_everywhere(store: ParamStoreDict, name: Any) -> None:
    value = torch.zeros(1)
    state = {"params": {name: value}, "constraints": {name: constraints.real}}
    calls: list[Callable[[], object]] = [
        lambda: store.__setitem__(name, value),
        lambda: store.setdefault(name, value),
        lambda: store.get_param(name, value),
        lambda: store.set_state(state),
        lambda: store.rename("x", name),
    ]
    for call in calls:
        with pytest.raises(paramstore.InvalidNameError):
            call()
    assert list(store) == ["x", "scale"]
    assert set(store.at(2)) == {"x", "scale"}


@pytest.mark.parametrize("name", [3, None, ("x", "scale"), slice(2), torch.zeros(1)], ids=repr)
def test_looking_for_a_name_that_is_no_text_says_that_names_are_text(
    store: ParamStoreDict, name: Any
) -> None:
    with pytest.raises(paramstore.ParamNotFoundError, match="names are text") as caught:
        store[name]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(paramstore.ParamNotFoundError, match="names are text"):
        store.at(1)[name]


FORBIDDEN_NAMES = ["", " a", "a ", "a@b", "a\nb", "a\0b", "\x7f", "a" * 201, "\ud800", "@"]


@pytest.mark.parametrize("name", FORBIDDEN_NAMES)
def test_a_forbidden_scope_name_is_refused_everywhere(
    store: ParamStoreDict, path: Path, name: str
) -> None:
    with pytest.raises(paramstore.InvalidNameError):
        paramstore.open(path, scope=name)
    with pytest.raises(paramstore.InvalidNameError), store.scope(name):
        pass
    with pytest.raises(paramstore.InvalidNameError):
        store.fork(name)
    assert [info.name for info in store.scopes()] == ["main"]


@pytest.mark.parametrize("name", [*FORBIDDEN_NAMES, "a=b", "step=3", "123", "٣", "latest"])
def test_a_forbidden_tag_name_is_refused_everywhere(store: ParamStoreDict, name: str) -> None:
    with pytest.raises(paramstore.InvalidNameError):
        store.tag(name)
    with pytest.raises(paramstore.InvalidNameError):
        store.commit(tags=["fine", name])
    assert [s.tags for s in store.log()] == [(), ("warm",)]


def test_odd_scope_and_tag_names_work(path: Path) -> None:
    names = [
        "'; DROP TABLE scopes; --",
        "%",
        "a b",
        "🙂",
        "e\u0301",
        "é",
        "a" * 200,
        "$$$",
        "main.",
    ]
    with paramstore.open(path) as store:
        for number, name in enumerate(names):
            with store.scope(name):
                store["x"] = torch.tensor(float(number))
                store.commit(tags=[name])
        assert [info.name for info in store.scopes()] == sorted(names)
        for number, name in enumerate(names):
            assert store.at(f"{name}@{name}")["x"].item() == number


@pytest.mark.parametrize("metrics", [{"loss": "low"}, {"loss": None}, {3: 1.0}, {"loss": 1j}])
def test_a_metric_that_is_no_number_is_refused(store: ParamStoreDict, metrics: Any) -> None:
    with pytest.raises(paramstore.InvalidInputError, match="metric"):
        store.commit(metrics=metrics)
    assert len(store.log()) == 2


@pytest.mark.parametrize("step", ["10", 1.5, 2**63])
def test_a_step_that_is_no_step_is_refused(store: ParamStoreDict, step: Any) -> None:
    with pytest.raises(paramstore.InvalidInputError, match="step"):
        store.commit(step=step)
    assert len(store.log()) == 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("tags", "warm"),
        ("tags", 3),
        ("tags", True),
        ("metrics", 0.3),
        ("metrics", [("loss", 0.3)]),
        ("metrics", "loss"),
        ("metrics", 0),
        ("extras", "notes"),
        ("extras", ["notes"]),
        ("extras", torch.zeros(2)),
        ("message", 3),
        ("max_pending", "2"),
        ("max_pending", 0),
        ("max_pending", 1.5),
        ("on_full", "wait"),
        ("on_conflict", "ours"),
    ],
)
def test_an_argument_of_commit_of_another_type_is_refused_by_its_name(
    store: ParamStoreDict, argument: str, value: Any
) -> None:
    with pytest.raises(paramstore.InvalidInputError, match=f"^{argument} is "):
        store.commit(wait=False, **{argument: value})
    store.flush()
    assert len(store.log()) == 2


def test_none_stands_for_nothing_said_in_every_argument_about_a_snapshot(
    store: ParamStoreDict,
) -> None:
    last = store.commit(step=None, message=None, metrics=None, tags=None, extras=None)
    assert (last.step, last.message, dict(last.metrics), last.tags) == (None, None, {}, ())
    assert dict(last.extras) == {}


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        (constraints.positive, torch.tensor([1.0, -1.0])),
        (constraints.positive, torch.tensor([float("nan")])),
        (constraints.unit_interval, torch.tensor([0.5, 1.5])),
        (constraints.simplex, torch.tensor([0.5, 0.6])),
        (constraints.lower_cholesky, torch.ones(2, 2)),
        (constraints.interval(0.0, torch.tensor(2.0)), torch.tensor([3.0])),
        (constraints.independent(constraints.positive, 1), torch.tensor([1.0, -1.0])),
    ],
    ids=str,
)
def test_a_value_that_its_constraint_does_not_admit_is_refused(
    constraint: constraints.Constraint, value: torch.Tensor
) -> None:
    store = ParamStoreDict()
    with pytest.raises(paramstore.InvalidValueError, match="'rate'"):
        store.setdefault("rate", value, constraint=constraint)
    assert not store
    assert not store._constraints


def test_validation_can_be_switched_off_and_follows_torch() -> None:
    bad = torch.tensor([-1.0])
    store = ParamStoreDict(validate=False)
    assert bool(store.setdefault("x", bad, constraint=constraints.positive).isnan())
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        ParamStoreDict().setdefault("x", bad, constraint=constraints.positive)
        with pytest.raises(paramstore.InvalidValueError):
            ParamStoreDict(validate=True).setdefault("x", bad, constraint=constraints.positive)
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def test_a_constraint_without_a_transform_is_refused_by_name() -> None:
    store = ParamStoreDict()
    with pytest.raises(paramstore.InvalidInputError, match="'x'"):
        store.setdefault("x", torch.ones(1), constraint=constraints.integer_interval(0, 3))
    assert not store


def nested() -> torch.Tensor:
    parts = [torch.ones(2), torch.ones(3)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


UNSTORABLE = {
    "sparse": (lambda: torch.ones(3).to_sparse(), "to_dense"),
    "meta": (lambda: torch.ones(3, device="meta"), "to_empty"),
    "nested": (nested, "to_padded_tensor"),
    "lazy": (nn.UninitializedParameter, "run one batch through its module first"),
}


@pytest.mark.parametrize(("make", "advice"), UNSTORABLE.values(), ids=UNSTORABLE)
def test_a_value_that_no_commit_could_store_is_refused_when_it_is_set(
    store: ParamStoreDict, make: Callable[[], torch.Tensor], advice: str
) -> None:
    value = make()
    state = {"params": {"odd": value}, "constraints": {"odd": constraints.real}}
    calls: list[Callable[[], object]] = [
        lambda: store.__setitem__("odd", value),
        lambda: store.setdefault("odd", value),
        lambda: store.setdefault("odd", lambda: value, constraint=constraints.positive),
        lambda: store.set_state(state),
    ]
    for call in calls:
        with pytest.raises(paramstore.InvalidValueError, match=f"'odd' is .*{advice}"):
            call()
    assert list(store) == ["x", "scale"]
    assert store.commit().version == 3


def sparse_buffer() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.eye(2).to_sparse())
    return module


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "'net$$$0.weight' is not initialised yet; run "),
        (nn.LazyBatchNorm1d, "'net$$$weight' is not initialised yet; run one batch through its "),
        (lambda: nn.Linear(2, 2, device="meta"), "'net$$$weight' is on the meta device"),
        (sparse_buffer, "'net$$$mask' is sparse"),
    ],
    ids=["lazy", "lazy buffers", "meta", "sparse buffer"],
)
def test_a_module_with_a_tensor_that_no_commit_could_store_is_refused_when_it_is_bound(
    store: ParamStoreDict, make: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(paramstore.UnsupportedTensorError, match=re.escape(said)):
        store.module("net", make())
    assert list(store) == ["x", "scale"]
    assert store.commit().version == 3


def test_a_lazy_module_is_bound_after_one_batch(store: ParamStoreDict) -> None:
    net = nn.Sequential(nn.LazyLinear(2))
    net(torch.zeros(1, 3))
    store.module("net", net)
    assert store.commit().version == 3


# -- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    "make",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda store: torch.save(store, io.BytesIO())],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_a_store_is_not_copied_and_says_what_to_do_instead(
    store: ParamStoreDict, private: bool, make: Callable[[ParamStoreDict], object]
) -> None:
    with pytest.raises(paramstore.UsageError, match=r"store\.save\(FILE\).*get_state"):
        make(ParamStoreDict() if private else store)
    assert store.commit().version == 3


def test_the_copy_that_the_error_advises_is_one(store: ParamStoreDict) -> None:
    other = ParamStoreDict()
    other.set_state(copy.deepcopy(store.get_state()))
    with torch.no_grad():
        store["x"].fill_(9.0)
    assert other["x"].tolist() == [1.0, 1.0, 1.0]
    assert other["scale"].tolist() == store["scale"].tolist()


# -- restoring what does not fit -----------------------------------------------------------------


def test_a_module_of_another_shape_is_refused_on_restore_and_nothing_changes(path: Path) -> None:
    with paramstore.open(path) as store:
        store.module("net", nn.Linear(2, 2))
        store["x"] = torch.zeros(1)
        store.commit()
    with paramstore.open(path, scope="other") as store:
        net = store.module("net", nn.Linear(3, 2))
        store["x"] = torch.ones(1)
        before = net.weight.detach().clone()
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight") as caught:
            store.restore("main@1")
        assert "(2, 2)" in str(caught.value)
        assert "(2, 3)" in str(caught.value)
        assert torch.equal(net.weight, before)
        assert store["x"].item() == 1.0


def test_a_module_of_another_dtype_is_refused_on_restore(path: Path) -> None:
    with paramstore.open(path) as store:
        net = store.module("net", nn.Linear(2, 2))
        store.commit()
        net.double()
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight"):
            store.restore(1)


def test_a_stored_constraint_on_a_modules_parameter_is_refused(path: Path) -> None:
    with paramstore.open(path) as store:
        store.setdefault("net$$$weight", torch.ones(2, 2), constraint=constraints.positive)
        store.setdefault("net$$$bias", torch.ones(2), constraint=constraints.positive)
        store.commit()
    with paramstore.open(path) as store:
        net = nn.Linear(2, 2)
        before = net.weight.detach().clone()
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight"):
            store.module("net", net)
        assert torch.equal(net.weight, before)
    with paramstore.open(path, scope="other") as store:
        store.module("net", net)
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight"):
            store.restore("main@1")
        assert torch.equal(net.weight, before)


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("value", [3, [3], ["x", None], b"x", torch.zeros(2)], ids=repr)
def test_a_filter_that_is_no_text_is_refused_by_its_name(
    store: ParamStoreDict, argument: str, value: Any
) -> None:
    with pytest.raises(paramstore.InvalidInputError, match=f"^{argument} is names or"):
        store.restore(1, **{argument: value})
    assert store["x"].tolist() == [1.0, 1.0, 1.0]


def test_a_single_text_is_one_pattern_and_not_its_letters(store: ParamStoreDict) -> None:
    net = store.module("net", nn.Linear(2, 2))
    net.weight.data.fill_(2.0)
    store.commit()
    net.weight.data.fill_(3.0)
    store["x"] = torch.full((3,), 3.0)
    store.restore(3, include="net$$$*")
    assert net.weight.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert store["x"].tolist() == [3.0, 3.0, 3.0]
    store.restore(1, include="x")
    assert store["x"].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(paramstore.ParamNotFoundError, match=r"'nett\$\$\$\*'"):
        store.restore(3, include="nett$$$*")


# -- references ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "error", "text"),
    [
        ("mian@1", paramstore.ScopeNotFoundError, "'main'"),
        ("mian", paramstore.ScopeNotFoundError, "'main'"),
        ("main@99", paramstore.SnapshotNotFoundError, "main@99"),
        (99, paramstore.SnapshotNotFoundError, "99"),
        ("@wram", paramstore.TagNotFoundError, "'warm'"),
        ("main@step=7", paramstore.SnapshotNotFoundError, "7"),
        ("warm", paramstore.ScopeNotFoundError, "@warm"),
    ],
)
def test_an_unknown_reference_says_what_there_is(
    store: ParamStoreDict, reference: Any, error: type[Exception], text: str
) -> None:
    for call in (
        store.at,
        store.restore,
        lambda ref: store.diff(1, ref),
        lambda ref: store.diff(ref, 1),
        lambda ref: store.tag("new", ref),
    ):
        with pytest.raises(error, match=text) as caught:
            call(reference)
        assert isinstance(caught.value, KeyError)
    assert store["x"].tolist() == [1.0, 1.0, 1.0]


MALFORMED = ["", "@", "main@", "main@1@2", "main@step=", "main@step=x", "main@ 1", " main@1"]
MALFORMED_NUMBERS = [0, -1, "main@0", 2**70, f"main@{2**70}", True, 1.5, None, b"main@1"]


@pytest.mark.parametrize("reference", [*MALFORMED, *MALFORMED_NUMBERS])
def test_a_malformed_reference_is_refused(store: ParamStoreDict, reference: Any) -> None:
    for call in (store.at, store.restore, lambda ref: store.diff(ref, 1)):
        with pytest.raises(paramstore.InvalidReferenceError):
            call(reference)
    assert store["x"].tolist() == [1.0, 1.0, 1.0]


def test_unknown_parameters_scopes_and_metrics_of_other_calls_are_named(
    store: ParamStoreDict,
) -> None:
    with pytest.raises(paramstore.ParamNotFoundError, match="'scal'"):
        store.history("scal")
    with pytest.raises(paramstore.InvalidInputError, match="3 is not a regular expression"):
        store.match(3)  # type: ignore[arg-type]
    for limit in ("3", 1.5):
        with pytest.raises(paramstore.InvalidInputError, match="limit counts from 0"):
            store.log(limit=limit)  # type: ignore[arg-type]
        with pytest.raises(paramstore.InvalidInputError, match="limit counts from 0"):
            store.history("x", limit=limit)  # type: ignore[arg-type]
    with pytest.raises(paramstore.InvalidInputError, match="sample is a fraction"):
        store.verify(sample="all")  # type: ignore[arg-type]
    with pytest.raises(paramstore.ScopeNotFoundError, match="'mian'"):
        store.log("mian")
    with pytest.raises(paramstore.ScopeNotFoundError, match="'mian'"):
        store.history("x", scope="mian")
    with pytest.raises(paramstore.ParamNotFoundError, match="'scal'"):
        store.restore(1, include=["scal"])
    with pytest.raises(paramstore.NotFoundError, match="'loss'"):
        store.best("loss")
    with pytest.raises(paramstore.InvalidInputError, match="'smallest'"):
        store.best("loss", "smallest")


# -- extras ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extras", "place"),
    [
        ({"a": {"b": [1, object()]}}, r"extras\['a'\]\['b'\]\[1\]"),
        ({"a": lambda: None}, r"extras\['a'\]"),
        ({"a": torch.nn.Linear(1, 1)}, r"extras\['a'\]"),
        ({"a": {"b": torch.ones(2).to_sparse()}}, r"extras\['a'\]\['b'\]"),
        ({"a": Path("x")}, r"extras\['a'\]"),
        ({3: 1}, "3"),
    ],
    ids=["object", "function", "module", "sparse", "path", "name"],
)
def test_extras_that_cannot_be_stored_are_refused_with_their_path(
    store: ParamStoreDict, extras: Any, place: str
) -> None:
    with pytest.raises(paramstore.InvalidInputError, match=place):
        store.commit(extras=extras)
    assert len(store.log()) == 2


def test_attached_state_that_cannot_be_stored_is_refused_with_its_path(
    store: ParamStoreDict,
) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"deep": [0, {"here": object()}]}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise NotImplementedError

    store.attach(odd=Odd())
    with pytest.raises(paramstore.UnsupportedExtraError, match=r"'odd'.*\['deep'\]\[1\]\['here'\]"):
        store.commit()
    assert len(store.log()) == 2


# -- stores that cannot write --------------------------------------------------------------------


def test_a_commit_on_a_read_only_store_is_refused_and_writes_nothing(
    store: ParamStoreDict, path: Path
) -> None:
    store.close()
    content = path.read_bytes()
    with paramstore.open(path, readonly=True) as reader:
        with pytest.raises(paramstore.ReadOnlyError, match="readonly=True"):
            reader.commit()
        with pytest.raises(paramstore.ReadOnlyError, match="'y'"), reader.scope("new"):
            reader["y"] = torch.zeros(1)
    assert path.read_bytes() == content


@pytest.mark.parametrize("private", [True, False])
def test_a_commit_on_a_closed_store_is_refused(path: Path, private: bool) -> None:
    store = ParamStoreDict() if private else paramstore.open(path)
    store["x"] = torch.zeros(1)
    store.commit()
    store.close()
    with pytest.raises(paramstore.StoreClosedError, match="closed"):
        store.commit()
