"""Bad input: names, numbers, references and filters.

See also test_altered_databases.py, test_bad_pickles.py, test_permissions.py, test_processes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict

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
        store.match(3)  # type: ignore[arg-type]  # what is tested
    for limit in ("3", 1.5):
        with pytest.raises(paramstore.InvalidInputError, match="limit counts from 0"):
            store.log(limit=limit)  # type: ignore[arg-type]  # what is tested
        with pytest.raises(paramstore.InvalidInputError, match="limit counts from 0"):
            store.history("x", limit=limit)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(paramstore.InvalidInputError, match="sample is a fraction"):
        store.verify(sample="all")  # type: ignore[arg-type]  # what is tested
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
