"""Names and messages from anybody, wherever they are printed, quoted in an error or saved."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

import paramstore
from paramstore import ParamStoreDict, ParamStoreError, Snapshot

NAMES = {
    "escape sequences": "\x1b[2J\x1b]0;owned\x07w",
    "newlines": "w\nmain@9  2  ok\r\tw",
    "bidi overrides": "\u202ew\u2066x\u200f",
    "invisible characters": "w\u200b\ufeff\u2028\u00adw",
    "a path": "../../../../tmp/paramstore-owned",
    "an absolute path": "/tmp/paramstore-owned",
    "markup": "[red]w[/red][link=http://x]y[/link]",
    "HTML": "<script>alert(1)</script>&amp;\"'",
    "a formula": "=cmd|'/C calc'!A0",
    "wildcards": "%_*?[a-z]{x}$",
    "SQL": "w'; DROP TABLE chunks; --\"",
    "safetensors' own key": "__metadata__",
    "a key of our files": "paramstore",
    "a reference": "w@latest",
    "much": "w" * 10_000,
    "formats": "{0.__class__}%s%(x)s${x}",
    "attributes": "__class__",
}
TERMINAL = set(map(chr, [*range(10), *range(11, 32), *range(127, 160)])) | set(
    "\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u00ad"
)


def harmless(text: str) -> bool:
    """Whether a terminal shows it and does nothing else; lines may end."""
    return not TERMINAL & set(text)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return NAMES[request.param]


@pytest.fixture
def store(path: Path, name: str) -> Iterator[ParamStoreDict]:
    """A store with that name for a parameter, a metric and an extra, and as a message."""
    with paramstore.open(path) as opened:
        opened[name] = torch.ones(1)
        opened.commit(message=name, metrics={name: 1.0}, extras={name: {name: name}}, step=1)
        opened[name] = torch.zeros(2)
        opened["other"] = torch.zeros(1)
        opened.commit(message=name)
        yield opened


def test_nothing_that_is_printed_acts_on_a_terminal(store: ParamStoreDict, name: str) -> None:
    view = store.at(1)
    shown: list[object] = [store, store.log(), store.history(name), view, store.diff(1, 2)]
    shown += [view.extras, store.latest, store.scopes(), store.du(), store.verify()]
    shown += list(store.log()) + list(store.history(name))
    for value in shown:
        assert harmless(repr(value)), value
        assert harmless(str(value)), value


def test_a_name_comes_back_as_it_is(store: ParamStoreDict, path: Path, name: str) -> None:
    before = sorted(file.name for file in path.parent.iterdir())
    store.close()
    with paramstore.open(path) as again:
        assert list(again) == [name, "other"]
        assert again.at(1)[name].tolist() == [1.0]
        assert dict(again.at(1).extras) == {name: {name: name}}
        assert again.at(1).snapshot.metrics == {name: 1.0}
        assert again.best(name).version == 1
        again.restore(1, include=[name])
        assert again[name].tolist() == [1.0]
        assert sorted(file.name for file in path.parent.iterdir()) == before


def test_a_saved_file_holds_the_name_and_nothing_beside_it(
    store: ParamStoreDict, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    store.save(str(folder / "file"))
    assert [file.name for file in folder.iterdir()] == ["file"]
    data = (folder / "file").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) > {"__metadata__", "other"}
    again = ParamStoreDict()
    again.load(str(folder / "file"))
    assert again[name].tolist() == [0.0, 0.0]


CALLS: list[Callable[[ParamStoreDict, str], object]] = [
    lambda store, name: store[name + "!"],
    lambda store, name: store.history(name + "!"),
    lambda store, name: store.at(f"main@{name}!"),
    lambda store, name: store.at(name),
    lambda store, name: store.at(1)[name + "!"],
    lambda store, name: store.log(name),
    lambda store, name: store.tag("@" + name),
    lambda store, name: store.untag(name + "!"),
    lambda store, name: store.restore(1, include=[name + "!"]),
    lambda store, name: store.best(name + "!"),
    lambda store, name: store.fork("@" + name),
    lambda store, name: store.rename(name + "!", "x"),
    lambda store, name: store.load(name.replace("/", "_")),
    lambda store, name: store.commit(metrics={name: "x"}),  # type: ignore[dict-item]
    lambda store, name: store.commit(extras={name: object()}),
    lambda store, name: store.setdefault(name + "!", torch.ones(1, dtype=torch.int64)),
    lambda store, name: paramstore.open(f"/nowhere/{name}/x.db"),
    lambda store, name: paramstore.open(f"postgresql+{name}:///x"),
]


def test_no_error_acts_on_a_terminal(store: ParamStoreDict, name: str) -> None:
    for call in CALLS:
        with pytest.raises(ParamStoreError) as caught:
            call(store, name)
        assert str(caught.value).isprintable()
        assert harmless(repr(caught.value))


def test_a_scope_and_a_tag_take_no_such_names_and_escape_what_a_stranger_wrote(
    path: Path, name: str
) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.ones(1)
        store.commit(tags=["t"])
    with closing(sqlite3.connect(path)) as connection:
        for statement in ("UPDATE scopes SET name = ?", "UPDATE tags SET name = ?"):
            connection.execute(statement, (name,))
        connection.commit()
    with paramstore.open(path) as store:
        [scope] = store.scopes()
        assert scope.name == name
        assert harmless(str(store.scopes()))
        with pytest.raises(ParamStoreError) as caught:
            store.log("nothing")
        assert str(caught.value).isprintable()
        snapshot = Snapshot(
            id=1, scope=name, version=1, parent=f"{name}@0", step=None, message=name, kind=name,
            created_at=scope.created_at, tags=(name,),
        )  # fmt: skip
        assert harmless(str(snapshot))
        assert harmless(repr(snapshot))


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b", "w" * 10_000])
def test_what_cannot_name_a_file_is_refused(path: str) -> None:
    store = ParamStoreDict()
    store["x"] = torch.ones(1)
    for call in (store.save, store.load, paramstore.open):
        with pytest.raises(ParamStoreError):
            call(path)


@pytest.mark.parametrize("pattern", ["%", "_", "*", "?", "[a-z]", "a*" * 40 + "b", "**" * 500])
def test_a_pattern_matches_names_and_takes_no_time(path: Path, pattern: str) -> None:
    with paramstore.open(path) as store:
        store["a" * 60] = torch.ones(1)
        store.commit()
        store.clear()
        matches = pattern in ("*", "**" * 500)
        try:
            store.restore(1, include=pattern)
        except paramstore.ParamNotFoundError:
            assert not matches
        else:
            assert matches
