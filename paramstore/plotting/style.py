"""Colours, sizes and text that all pictures share.

Knows what is readable; must never know what is drawn.
"""

from __future__ import annotations

import io
import math
from typing import Any, Final, Literal

from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from paramstore.listing import printable

# Okabe and Ito's colours, which people with any kind of colour blindness tell apart.
BLUE: Final = "#0072B2"
GREEN: Final = "#009E73"
VERMILLION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
INK: Final = "#222222"
FAINT: Final = "#666666"
GRID: Final = "#E4E4E4"

PLAIN: Final[dict[str, Any]] = {"parse_math": False, "usetex": False}
"""For text that holds a name: ``$`` and ``_`` mean themselves."""

_LEAST, _MOST = 1e-100, 1e100  # sizes that are told apart


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()


def dress(axes: Axes, size: float) -> None:
    """Leave of the frame only what carries numbers."""
    axes.tick_params(labelsize=size, colors=INK, length=3)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    whole_labels(axes)


def whole_labels(axes: Axes) -> None:
    """Write the numbers of the vertical axis out, while it is linear.

    matplotlib takes out what they share and writes it above the axis, where our own lines stand,
    and over the wrong one where there are several.
    """
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.12g}".replace("-", "−")))


def fitting(name: str, inches: float, size: float, weight: str = "normal") -> str:
    """Return a name that fits into a width, its middle left out where it is longer."""
    name = drawable(name)
    font = _fonts(weight)[0]
    font.set_size(size, 72)
    short, left = name, min(len(name), 400)
    while left > 4 and _width(font, short) > inches * 72:
        left -= 1
        short = f"{name[: left // 3]}…{name[len(name) - left + left // 3 :]}"
    return short


def beside(
    axes: Axes, text: str, side: Literal["left", "right"], size: float, **kwargs: Any
) -> None:
    """Write a line right above the axes, at one of their sides."""
    axes.annotate(
        text, (0 if side == "left" else 1, 1), xycoords="axes fraction", xytext=(0, 3),
        textcoords="offset points", ha=side, va="bottom", size=size, **PLAIN, **kwargs,
    )  # fmt: skip


def room(inches: float, size: float) -> int:
    """How many characters of ordinary bold text fit into a width, about."""
    return int(inches * 72 / (0.7 * size))


def drawable(text: str) -> str:
    """Return text with what no font in use can draw written as Python escapes it."""
    fonts = _fonts()
    return "".join(
        char
        if any(font.get_char_index(ord(char)) for font in fonts)
        else char.encode("unicode_escape").decode()
        for char in printable(text)
    )


def placed(number: float) -> float:
    """Return a finite number as matplotlib can place it, which computes with its square."""
    size = abs(number)
    return 0.0 if size < _LEAST else math.copysign(min(size, _MOST), number)


def _fonts(weight: str = "normal") -> list[Any]:
    properties = font_manager.FontProperties
    return [
        font_manager.get_font(font_manager.findfont(properties(family=[family], weight=weight)))
        for family in rcParams["font.family"]
    ]


def _width(font: Any, text: str) -> float:
    """Width in points."""
    font.set_text(text, 0.0)
    return float(font.get_width_height()[0]) / 64
