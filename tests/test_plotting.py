"""Pictures of histories, and differences: what stands in them, and that any can be drawn."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch.distributions import constraints

import paramstore
from paramstore import Change, Diff, History, ParamVersion, Snapshot, Statistics
from paramstore.plotting import plot_histories
from paramstore.plotting.style import VERMILLION, drawable

WHEN = datetime(2026, 3, 1, tzinfo=UTC)
BEFORE = Snapshot(
    id=1, scope="main", version=1, parent=None, step=0, created_at=WHEN, message=None, kind="commit"
)


BASE = ParamVersion(
    name="loc",
    scope="main",
    version=1,
    step=10,
    created_at=WHEN,
    since_version=1,
    until_version=1,
    until_step=10,
    removed=False,
    kind="tensor",
    requires_grad=True,
    dtype="F32",
    shape=(4,),
    nbytes=16,
    constraint='{"kind":"real"}',
    digest="00" * 32,
    statistics=None,
)
FIELDS = {field.name for field in fields(ParamVersion)}


def version(number: int, **about: Any) -> ParamVersion:
    """A param version of step ``10 * number``; ``about`` are its fields and its statistics."""
    own = {key: value for key, value in about.items() if key in FIELDS}
    rest = {key: value for key, value in about.items() if key not in FIELDS}
    step = own.get("step", number * 10)
    placed: dict[str, Any] = {"version": number, "until_version": number, "until_step": step}
    return replace(BASE, **{"statistics": Statistics(**rest), "step": step, **placed, **own})


def vector(number: int, mean: float = 0.0, **about: Any) -> ParamVersion:
    numbers = {"norm": 1.0, "mean": mean, "std": 0.5, "min": mean - 1, "max": mean + 1}
    return version(number, **(numbers | about))


def scalar(number: int, value: float, **about: Any) -> ParamVersion:
    text = repr(value) if math.isfinite(value) else f'"{value}"'.replace("nan", "NaN")
    return version(number, shape=(), value=text, **about)


def texts(figure: Figure) -> str:
    """Every text of a figure that is drawn."""
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """The lines of a parameter, without its dots."""
    drawn = [line for line in axes.lines if line.get_linestyle() == "-"]
    return [([*map(float, line.get_xdata())], [*map(float, line.get_ydata())]) for line in drawn]  # type: ignore[arg-type]


def test_a_scalar_is_drawn_as_its_value_over_steps() -> None:
    (axes,) = History([scalar(1, 3.0), scalar(2, 2.0)]).plot().axes
    assert lines(axes) == [([10, 20], [3.0, 2.0])]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "value")


def test_a_tensor_is_drawn_as_mean_deviation_and_extent() -> None:
    (axes,) = History([vector(1, 1.0), vector(2, 2.0)]).plot().axes
    assert lines(axes) == [([10, 20], [1.0, 2.0])]
    extents = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [(box.ymin, box.ymax) for box in extents] == [(0.0, 3.0), (0.5, 2.5)]
    assert axes.get_ylabel() == "elements"


def test_the_deviation_ends_where_the_elements_do() -> None:
    (axes,) = History([vector(1, std=5.0), vector(2, std=5.0)]).plot().axes
    inner = axes.collections[1].get_paths()[0].get_extents()
    assert (inner.ymin, inner.ymax) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "label"), [((1e8, 1e8 + 8), "100000004"), ((-1e-29, 3e-29), "−1e−29")]
)
def test_the_vertical_axis_has_its_numbers_in_full(values: tuple[float, float], label: str) -> None:
    figure = plot_histories(
        [History([scalar(n, value) for n, value in enumerate(values, 1)])],
        log=[replace(BEFORE, version=n, metrics={"m": v}) for n, v in enumerate(values, 1)],
        metrics=["m"],
    )
    figure.draw_without_rendering()
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert label in [text.get_text() for text in axes.get_yticklabels()]
        assert axes.yaxis.get_offset_text().get_text() == ""


def test_without_a_step_the_axis_counts_versions() -> None:
    (axes,) = History([vector(3), vector(5, step=None)]).plot().axes
    assert axes.get_xlabel() == "version"
    assert lines(axes)[0][0] == [3, 5]


def test_a_value_that_was_kept_is_level_until_the_snapshot_before_the_next() -> None:
    rows = [vector(1, 1.0, until_version=4, until_step=40), vector(5, 2.0)]
    (axes,) = History(rows).plot().axes
    assert lines(axes) == [([10, 40, 50], [1.0, 1.0, 2.0])]


def test_a_return_after_absence_breaks_the_line() -> None:
    (axes,) = History([vector(1), vector(2, removed=True), vector(6), vector(7)]).plot().axes
    assert [xs for xs, _ in lines(axes)] == [[10, 20], [60, 70]]


def test_a_step_back_breaks_the_line() -> None:
    rows = [vector(1), vector(2), vector(3, step=15), vector(4, step=25)]
    (axes,) = History(rows).plot().axes
    assert [xs for xs, _ in lines(axes)] == [[10, 20], [15, 25]]


def test_nan_and_inf_are_marked_and_the_first_of_each_is_named() -> None:
    rows = [vector(1), vector(2, nan_count=3), vector(3, nan_count=4, inf_count=1), vector(4)]
    figure = History(rows).plot()
    (axes,) = figure.axes
    assert "first NaN: step 20 (3 of 4), first inf: step 30 (1 of 4)" in texts(figure)
    marks = {line.get_marker(): [*line.get_xdata()] for line in axes.lines}  # type: ignore[misc]
    assert (marks["x"], marks["^"]) == ([20, 30], [30])
    assert [xs for xs, _ in lines(axes)] == [[10, 20, 30, 40]]


def test_in_a_narrow_panel_the_warning_stays_inside() -> None:
    rows = [vector(1000, nan_count=3), vector(1001, nan_count=4, inf_count=1)]
    figure = plot_histories([History(rows)] * 9)
    figure.draw_without_rendering()
    said = "first NaN: step 10,000, first inf: step 10,010"
    warnings = [text for text in figure.findobj(Text) if text.get_text() == said]
    assert len(warnings) == 9
    for axes, drawn in zip(figure.axes, warnings, strict=True):
        assert drawn.get_window_extent().x0 >= axes.get_window_extent().x0


def test_a_scalar_that_is_nan_breaks_the_line() -> None:
    rows = [scalar(1, 1.0), scalar(2, math.nan, nan_count=1), scalar(3, 2.0)]
    figure = History(rows).plot()
    assert [xs for xs, _ in lines(figure.axes[0])] == [[10], [30]]
    assert "first NaN: step 20" in texts(figure)


def test_a_complex_parameter_is_drawn_by_its_norm() -> None:
    rows = [version(1, dtype="C64", norm=3.0), version(2, dtype="C64", norm=4.0)]
    (axes,) = History(rows).plot().axes
    assert lines(axes) == [([10, 20], [3.0, 4.0])]
    assert axes.get_ylabel() == "norm"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([version(1, statistics=None)], "no statistics:\ncommitted with statistics=False"),
        ([version(1, shape=(0, 3), norm=0.0)], "no elements"),
        ([version(1, nan_count=4)], "no finite element in any version"),
        ([], "no versions"),
    ],
)
def test_what_cannot_be_drawn_says_why(rows: list[ParamVersion], said: str) -> None:
    assert said in texts(History(rows).plot())


def test_versions_without_statistics_are_left_out_of_the_line() -> None:
    rows = [vector(1), version(2, statistics=None), vector(3)]
    (axes,) = History(rows).plot().axes
    assert [xs for xs, _ in lines(axes)] == [[10], [30]]


def test_a_single_version_can_be_seen() -> None:
    (axes,) = History([vector(1)]).plot().axes
    assert [line.get_marker() for line in axes.lines] == ["None", "o"]
    assert len(axes.collections) == 2
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [10]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 99.0], "linear"),
        ([1.0, 101.0], "log"),
        ([0.0, 1000.0], "linear"),
        ([-1e6, -100.0], "symlog"),
        ([-1.0, 2.0, 1.0, 1e9], "symlog"),
        ([math.nan], "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_that_serves(values: list[float], scale: str) -> None:
    rows = [scalar(number, value) for number, value in enumerate(values, 1)]
    (axes,) = History(rows).plot().axes
    assert axes.get_yscale() == scale


@settings(max_examples=15)
@given(
    values=st.lists(st.floats(width=64), min_size=1, max_size=6),
    spread=st.floats(min_value=0, max_value=1e308),
)
@example(values=[1e308, -1e308], spread=1e308)
@example(values=[5e-324, 1e308], spread=0.0)
@example(values=[-5e-324, -1e308], spread=0.0)
def test_any_number_can_be_drawn(values: list[float], spread: float) -> None:
    ends = [(max(-1.7e308, v - spread), min(1.7e308, v + spread)) for v in values]
    band = zip(values, ends, strict=True)
    rows = [
        vector(i, value, std=spread, min=low, max=high)
        for i, (value, (low, high)) in enumerate(band, 1)
    ]
    History(rows).plot().draw_without_rendering()
    History([scalar(i, value) for i, value in enumerate(values, 1)]).plot().draw_without_rendering()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_names_are_text_and_not_mathematics(kind: str) -> None:
    name = r"net$$$a_b$\frac{1}$ <b>&"
    rows = [vector(1, name=name), vector(2, name=name)]
    log = [replace(BEFORE, step=10, metrics={"$x_1": 1.0})]
    figure = plot_histories([History(rows)], log=log, metrics=["$x_1"])
    assert name in texts(figure)
    assert "metric $x_1" in texts(figure)
    figure.savefig(io.BytesIO(), format=kind)
    changed = (Change(name=name, what="value", norm=1.0, relative=0.5),)
    figure = Diff(before=BEFORE, after=BEFORE, changed=changed, added=("$",)).plot()
    assert name in texts(figure)
    figure.savefig(io.BytesIO(), format=kind)


def test_what_no_font_has_is_written_in_escapes() -> None:
    assert drawable("σ_权\x1b[31m") == r"σ_\u6743\x1b[31m"
    rows = [vector(1, name="权重🎉"), vector(2, name="权重🎉")]
    assert r"\u6743\u91cd\U0001f389" in texts(History(rows).plot())


def test_a_long_name_loses_its_middle_and_stays_in_the_picture() -> None:
    name = "first." + "middle." * 40 + "last"
    figure = plot_histories([History([vector(1, name=name)])] * 9)
    figure.draw_without_rendering()
    title = figure.axes[0].get_title(loc="left")
    assert title.startswith("first.")
    assert title.endswith("last")
    assert "…" in title
    (drawn,) = [t for t in figure.axes[2].findobj(Text) if t.get_text() == title]
    assert drawn.get_window_extent().x1 <= figure.bbox.x1


def test_several_parameters_share_the_steps() -> None:
    histories = [
        History([vector(n, name=f"p{n}"), vector(n + 1, name=f"p{n}")]) for n in range(1, 6)
    ]
    figure = plot_histories(histories)
    assert len(figure.axes) == 5
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "step", "step"]


def test_of_very_many_parameters_the_first_are_drawn_and_the_rest_counted() -> None:
    figure = plot_histories([History([vector(1)])] * 30)
    assert len(figure.axes) == 24
    assert "and 6 more parameters" in texts(figure)


def test_a_metric_stands_on_a_second_axis_or_in_a_panel_of_its_own() -> None:
    log = [replace(BEFORE, version=n, step=n * 10, metrics={"elbo": -float(n)}) for n in (2, 1)]
    history = History([vector(1), vector(2)])
    _, twin = plot_histories([history], log=log, metrics=["elbo"]).axes
    assert twin.get_ylabel() == "elbo"
    assert [*twin.lines[0].get_xdata()] == [10, 20]  # type: ignore[misc]
    assert [*twin.lines[0].get_ydata()] == [-1, -2]  # type: ignore[misc]
    *_, panel = plot_histories([history, history], log=log, metrics=["elbo"]).axes
    assert panel.get_title(loc="left") == "elbo"
    assert [*panel.lines[0].get_ydata()] == [-1, -2]  # type: ignore[misc]


def test_a_metric_that_does_not_exist_is_refused_by_name() -> None:
    log = [replace(BEFORE, metrics={"elbo": 1.0})]
    with pytest.raises(paramstore.InvalidInputError, match=r"'elb'.*did you mean 'elbo'"):
        plot_histories([History([vector(1)])], log=log, metrics=["elb"])


def test_drawing_into_given_axes_leaves_the_figure_as_it_is() -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    assert History([vector(1), vector(2)]).plot(ax=axes) is figure
    assert figure.axes == [axes]
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "mean"
    with pytest.raises(paramstore.InvalidInputError, match="ax is for one parameter, got 2"):
        plot_histories([History([vector(1)])] * 2, ax=axes)


def test_versions_that_a_condition_left_are_not_joined() -> None:
    rows = [vector(1, 1.0), vector(4, 2.0, until_version=6, until_step=60), vector(9, 3.0)]
    (axes,) = plot_histories([History(rows)], joined=False).axes
    assert lines(axes) == [([10], [1.0]), ([40, 60], [2.0, 2.0]), ([90], [3.0])]


def test_what_stands_on_a_picture_is_dark_enough_to_read() -> None:
    figure = History([vector(1, nan_count=1), vector(2)]).plot()
    for text in figure.findobj(Text):
        red, green, blue = to_rgb(text.get_color())
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
        assert float(text.get_fontsize()) >= 7
    assert VERMILLION == "#D55E00"


def test_a_figure_shows_itself_in_a_notebook_without_pyplot() -> None:
    code = """
import sys
from paramstore.plotting import plot_histories
from paramstore.history import History
figure = plot_histories([History([])])
assert figure._repr_png_().startswith(b"\\x89PNG")
print(sorted({"matplotlib.pyplot", "pandas", "sqlalchemy", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_drawing_changes_no_setting_of_matplotlib() -> None:
    before = dict(mpl.rcParams)
    History([vector(1)]).plot().draw_without_rendering()
    assert dict(mpl.rcParams) == before


def test_the_pictures_of_the_docs_are_small_and_those_that_their_page_draws() -> None:
    page = Path(__file__).parents[1] / "docs" / "pictures.md"
    drawn = set(re.findall(r'savefig\("(.*?)"\)', page.read_text()))
    assert drawn == set(re.findall(r"\]\(pictures/(.*?)\)", page.read_text()))
    for name in drawn:
        picture = (page.parent / "pictures" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 60_000


# -- differences -------------------------------------------------------------------


def bars(figure: Figure) -> list[float]:
    (axes,) = figure.axes
    return [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]


def test_a_difference_is_drawn_as_bars_of_relative_change() -> None:
    changes = (
        Change(name="a", what="value", norm=1.0, relative=0.5, cosine=0.9),
        Change(name="b", what="constraint", norm=1.0, relative=0.25, cosine=1.0),
    )
    figure = Diff(before=BEFORE, after=replace(BEFORE, version=2), changed=changes).plot()
    assert bars(figure) == [0.5, 0.25]
    for said in ("0.5   cos 0.900", "constraint differs", "main@1 → main@2", "2 changed; 0 added"):
        assert said in texts(figure)


def test_of_many_changes_the_largest_thirty_are_drawn_and_all_are_counted() -> None:
    changes = tuple(Change(name=f"p{n}", what="value", relative=1 / n) for n in range(1, 101))
    names = tuple(f"q{n}" for n in range(15))
    figure = Diff(before=BEFORE, after=BEFORE, changed=changes, added=names, removed=names).plot()
    said = texts(figure)
    assert "p30" in said.splitlines()
    assert "p31" not in said.splitlines()
    assert "100 changed, the largest 30 drawn; 15 added, 15 removed, 0 unchanged" in said
    assert "and 5 more added" in said
    assert "and 5 more removed" in said


def test_changes_without_a_length_say_so() -> None:
    changes = (
        Change(name="a", what="shape"),
        Change(name="b", what="value", norm=1.0, relative=math.inf),
        Change(name="c", what="dtype", norm=0.0, relative=0.0),
    )
    said = texts(Diff(before=BEFORE, after=BEFORE, changed=changes).plot())
    for text in ("shape differs", "∞, was 0", "0   dtype differs"):
        assert text in said


def test_a_change_from_zero_does_not_squeeze_the_others() -> None:
    changes = (
        Change(name="a", what="value", norm=1.0, relative=math.inf),
        Change(name="b", what="value", norm=1.0, relative=3.0),
        Change(name="c", what="value", norm=1.0, relative=1.0),
    )
    (axes,) = Diff(before=BEFORE, after=BEFORE, changed=changes).plot().axes
    assert axes.get_xscale() == "linear"
    assert axes.get_xlim()[1] < 5


def test_no_difference_is_said() -> None:
    assert "nothing differs" in texts(Diff(before=BEFORE, after=BEFORE, unchanged=3).plot())


@settings(max_examples=15)
@given(st.lists(st.floats(min_value=0, allow_nan=False), max_size=8))
@example([5e-324, 1.7e308])
def test_any_change_can_be_drawn(relatives: list[float]) -> None:
    changes = tuple(Change(name="p", what="value", relative=r) for r in relatives)
    Diff(before=BEFORE, after=BEFORE, changed=changes).plot().draw_without_rendering()


# -- a store -----------------------------------------------------------------------


@pytest.fixture
def store(path: Path) -> paramstore.ParamStoreDict:
    store = paramstore.open(path)
    store.setdefault("scale", torch.tensor(1.0), constraint=constraints.positive)
    for layer in (1, 2, 10):
        store[f"net$$$layer{layer}.weight"] = torch.randn(3, 2)
    for step in range(6):
        with torch.no_grad():
            for name, value in store.named_parameters():
                if name != "net$$$layer2.weight" or step == 3:
                    value.add_(0.1)
        if step == 2:
            del store["net$$$layer1.weight"]
        if step == 4:
            store["net$$$layer1.weight"] = torch.randn(3, 2)
        store.commit(step=step, metrics={"elbo": -float(step)})
    return store


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_a_store_draws_parameters_by_name_and_pattern(store: paramstore.ParamStoreDict) -> None:
    assert titles(store.plot("scale")) == ["scale"]
    weights = [f"net$$$layer{n}.weight" for n in (1, 2, 10)]
    assert titles(store.plot("net$$$*")) == weights
    assert titles(store.plot("scale", "*weight", "scale")) == ["scale", *weights]
    assert titles(store.plot()) == [*weights, "scale"]
    assert titles(store.plot("scale", "*10*", metrics="elbo")) == ["scale", weights[2], "elbo"]


def test_a_store_refuses_what_it_does_not_have(store: paramstore.ParamStoreDict) -> None:
    with pytest.raises(paramstore.ParamNotFoundError, match=r"'scal'.*did you mean 'scale'"):
        store.plot("scal")
    with pytest.raises(paramstore.InvalidInputError, match="metric 'loss'"):
        store.plot("scale", metrics="loss")
    with pytest.raises(paramstore.ScopeNotFoundError):
        store.plot("scale", scope="elsewhere")


def test_what_is_nothing_to_draw_in_or_no_name_is_refused(store: paramstore.ParamStoreDict) -> None:
    history = History([vector(1), vector(2)])
    removed = Figure().add_subplot()
    removed.remove()
    for ax, said in (
        (3, "got int"),
        (Figure().subplots(2), "got ndarray"),
        (Figure().add_subplot(projection="polar"), "ax is polar"),
        (removed, "has been removed"),
    ):
        with pytest.raises(paramstore.InvalidInputError, match=said):
            history.plot(ax)  # type: ignore[arg-type]  # what is tested
    for metrics in (3, [3], [["elbo"]], b"elbo"):
        with pytest.raises(paramstore.InvalidInputError, match="metrics are the name"):
            store.plot("scale", metrics=metrics)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(paramstore.InvalidInputError, match="parameter name is text, got int"):
        store.plot(3)  # type: ignore[arg-type]  # what is tested


def test_a_history_knows_how_long_each_value_was_kept(store: paramstore.ParamStoreDict) -> None:
    def spans(name: str) -> list[tuple[int, int, int | None, bool]]:
        rows = store.history(name)
        return [(r.version, r.until_version, r.until_step, r.removed) for r in rows]

    assert spans("scale")[1] == (2, 2, 1, False)
    assert spans("net$$$layer2.weight") == [(1, 3, 2, False), (4, 6, 5, False)]
    assert spans("net$$$layer1.weight")[1:3] == [(2, 2, 1, True), (5, 5, 4, False)]
    assert store.history("net$$$layer2.weight", limit=1)[0].until_version == 6


def test_the_picture_of_a_store_shows_absence_and_rest(store: paramstore.ParamStoreDict) -> None:
    (axes,) = store.plot("net$$$layer1.weight").axes
    assert [xs for xs, _ in lines(axes)] == [[0, 1], [4, 5]]
    (axes,) = store.plot("net$$$layer2.weight").axes
    assert [xs for xs, _ in lines(axes)] == [[0, 2, 3, 5]]


def test_a_missing_matplotlib_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in [name for name in sys.modules if name.startswith("paramstore.plotting")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(paramstore.UsageError, match=r"pip install 'paramstore\[plot\]'"):
        History([vector(1)]).plot()
    with pytest.raises(paramstore.UsageError, match=r"pip install 'paramstore\[plot\]'"):
        Diff(before=BEFORE, after=BEFORE).plot()
