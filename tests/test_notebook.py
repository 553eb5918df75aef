"""What a notebook shows of a store, a log, a history and a difference, and their data frames."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.distributions import constraints

import paramstore
from paramstore.listing import html_table, printable

HOSTILE = "<script>alert(1)</script>&amp;'\"--><td>"


class Table(HTMLParser):
    """The texts of a page, and its tags; fails where a tag is none of a table's."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.rows = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert {name for name, _ in attrs} <= {"style", "colspan"}
        self.rows += tag == "tr"
        if tag in {"th", "td", "caption"}:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)


@pytest.fixture
def store(path: Path) -> paramstore.ParamStoreDict:
    store = paramstore.open(path)
    store.setdefault("scale", torch.tensor(1.0), constraint=constraints.positive)
    store.setdefault("mix", torch.full((4,), 0.25), constraint=constraints.simplex)
    store[HOSTILE] = torch.zeros(2, 3)
    store.commit(step=0, metrics={"elbo": -2.0}, message=HOSTILE)
    store[HOSTILE] = torch.ones(2, 3)
    store.commit(metrics={HOSTILE: math.nan}, tags=["a,b", HOSTILE[:8]])
    return store


def test_the_table_of_a_store_names_its_parameters(store: paramstore.ParamStoreDict) -> None:
    cells = Table(store._repr_html_()).cells
    assert "3 parameters, scope 'main' at version 2" in cells[0]
    assert cells[1:6] == ["param", "shape", "dtype", "constraint", "trained"]
    assert cells[6:11] == ["scale", "()", "F32", "positive", "yes"]
    assert cells[11:16] == ["mix", "4", "F32", "simplex", "yes"]
    assert cells[16:18] == [HOSTILE, "2×3"]


def test_the_table_of_a_store_reads_no_tensor(store: paramstore.ParamStoreDict, path: Path) -> None:
    store.close()
    with paramstore.open(path, readonly=True) as reopened:
        cells = Table(reopened._repr_html_()).cells
        assert cells[6:11] == ["scale", "()", "F32", "positive", "not read yet"]
        assert reopened._params.any_unread
        assert cells[11:16] == ["mix", "4", "F32", "simplex", "not read yet"]
        assert reopened["mix"].shape == (4,)
        assert [*cells[11:15], "yes"] == Table(reopened._repr_html_()).cells[11:16]
    assert Table(reopened._repr_html_()).cells[6] == "scale"


def test_an_empty_store_and_a_plain_state_have_a_table() -> None:
    store = paramstore.ParamStoreDict()
    assert Table(store._repr_html_()).rows == 1
    with store.scope():
        store["x"] = torch.zeros(1)
        assert "x" in Table(store._repr_html_()).cells


def test_listings_show_what_they_print(store: paramstore.ParamStoreDict) -> None:
    for shown in (store.log(), store.log()[0], store.history(HOSTILE), store.diff(1, 2)):
        cells = Table(shown._repr_html_()).cells
        for word in re.split(r"\s{2,}|\n", str(shown)):
            assert any(word in cell for cell in cells), word


def test_listings_say_how_much_they_hold(store: paramstore.ParamStoreDict) -> None:
    assert Table(store.log()._repr_html_()).cells[0] == "2 snapshots"
    assert Table(store.history("scale")._repr_html_()).cells[0] == "scale: 1 version"
    assert Table(paramstore.History([])._repr_html_()).cells[0] == "no versions"
    assert Table(store.diff(1, 1)._repr_html_()).cells[0].startswith("main@1 → main@1: 0 added")


TEXT = st.text(min_size=1) | st.sampled_from(
    [HOSTILE, "</table>", "<", "&lt;", "\x1b[31m", "\u202e"]
)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), caption=TEXT)
@example(rows=[(HOSTILE, "<!--")], caption="<![CDATA[")
def test_nothing_in_a_table_is_taken_for_html(rows: list[tuple[str, str]], caption: str) -> None:
    cells = Table(html_table(("one", "two"), rows, caption)).cells
    assert cells == [caption, "one", "two", *(printable(cell) for row in rows for cell in row)]


def test_a_long_table_shows_both_ends_and_counts_the_rest() -> None:
    table = Table(html_table(("n",), [[str(n)] for n in range(2000)]))
    assert table.cells == [
        "n", *map(str, range(20)), "… 1,960 more …", *map(str, range(1980, 2000))
    ]  # fmt: skip
    assert Table(html_table(("n",), [[str(n)] for n in range(40)])).rows == 41


def test_a_table_brings_no_colours_and_loads_nothing(store: paramstore.ParamStoreDict) -> None:
    page = store.log()._repr_html_()
    assert not re.search(r"color|background|http|src=|href=|class=", page.replace(HOSTILE, ""))


# -- data frames -------------------------------------------------------------------


def test_a_log_is_a_data_frame_with_a_column_per_metric(store: paramstore.ParamStoreDict) -> None:
    frame = store.log().to_pandas()
    assert list(frame["version"]) == [2, 1]
    assert frame["step"].dtype == "Int64"
    assert frame["step"].isna().tolist() == [True, False]
    assert str(frame["created_at"].dtype) == "datetime64[us, UTC]"
    assert frame["created_at"][0].to_pydatetime() == store.log()[0].created_at
    assert frame["metrics.elbo"].dtype == "float64"
    assert frame["metrics.elbo"][1] == -2.0
    assert math.isnan(frame[f"metrics.{HOSTILE}"][0])
    assert frame["tags"][0] == (HOSTILE[:8], "a,b")
    assert list(frame["parent"].fillna("")) == ["main@1", ""]


def test_a_history_is_a_data_frame_with_its_statistics(store: paramstore.ParamStoreDict) -> None:
    frame = store.history(HOSTILE).to_pandas()
    assert list(frame["mean"]) == [0.0, 1.0]
    assert list(frame["shape"]) == [(2, 3), (2, 3)]
    assert frame["nan_count"].dtype == "Int64"
    assert frame["value"].isna().all()
    assert list(store.history("scale").to_pandas()["value"]) == [1.0]
    assert frame.set_index("version")["mean"].diff()[2] == 1.0


def test_every_field_of_a_version_is_a_column(store: paramstore.ParamStoreDict) -> None:
    (row,) = store.history("scale")
    frame = store.history("scale").to_pandas()
    assert set(dir(row)) - set(frame.columns) <= {n for n in dir(row) if n[0] == "_"} | {
        "statistics"
    }


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.tensor(2.5), "float64"),
        (torch.tensor(1 + 2j), "complex128"),
    ],
)
def test_values_keep_their_type(value: torch.Tensor, dtype: str) -> None:
    store = paramstore.ParamStoreDict()
    store["x"] = value
    store.commit()
    column = store.history("x").to_pandas()["value"]
    assert column.dtype == dtype
    assert column[0] == value.item()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(torch.tensor(2**62 + 1), "Int64"), (torch.tensor(data=True), "boolean")],
)
def test_whole_numbers_and_booleans_are_exact(value: torch.Tensor, dtype: str) -> None:
    store, net = paramstore.ParamStoreDict(), torch.nn.Linear(1, 1)
    net.register_buffer("b", value)
    store.module("net", net)
    store.commit()
    column = store.history("net$$$b").to_pandas()["value"]
    assert column.dtype == dtype
    assert column[0] == value.item()


def test_versions_without_statistics_have_empty_cells(path: Path) -> None:
    with paramstore.open(path, statistics=False) as store:
        store["x"] = torch.zeros(3)
        store.commit()
        frame = store.history("x").to_pandas()
    assert frame[["norm", "mean", "nan_count", "value"]].isna().all(axis=None)


def test_empty_listings_are_empty_frames_with_the_same_columns(
    store: paramstore.ParamStoreDict,
) -> None:
    for empty, full in (
        (paramstore.History([]), store.history("scale")),
        (paramstore.Log([]), store.log()),
    ):
        frame, other = empty.to_pandas(), full.to_pandas()
        plain = [name for name in other.columns if not name.startswith("metrics.")]
        assert list(frame.columns) == plain
        assert len(frame) == 0
        same = [name for name in plain if name != "value"]
        pd.testing.assert_series_equal(frame.dtypes[same], other.dtypes[same])


@pytest.mark.parametrize(
    "ask", [lambda: paramstore.Log([]).to_pandas(), lambda: paramstore.History([]).to_pandas()]
)
def test_a_missing_pandas_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]
) -> None:
    monkeypatch.delitem(sys.modules, "paramstore.frames", raising=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(paramstore.UsageError, match="pip install pandas"):
        ask()
