"""Colours, sizes and text that all pictures share.

Knows what is readable; must never know what is drawn.
"""

from __future__ import annotations

import io
from typing import Any, Final

from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paramstore.listing import printable

# Okabe and Ito's colours, which people with any kind of colour blindness tell apart.
BLUE: Final = "#0072B2"
GREEN: Final = "#009E73"
VERMILLION: Final = "#D55E00"
PURPLE: Final = "#AA4499"
INK: Final = "#222222"
FAINT: Final = "#666666"
GRID: Final = "#E4E4E4"

PLAIN: Final[dict[str, Any]] = {"parse_math": False, "usetex": False}
"""For text that holds a name: ``$`` and ``_`` mean themselves."""

_GLYPH: Final = 0.58
"""Width of an average glyph, as a part of the size of its font."""


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


def fitting(name: str, inches: float, size: float) -> str:
    """Return a name that fits into a width, its middle left out where it is longer."""
    name, most = drawable(name), max(8, room(inches, size))
    if len(name) <= most:
        return name
    head = most // 3
    return f"{name[:head]}…{name[len(name) - (most - head - 1) :]}"


def room(inches: float, size: float) -> int:
    """How many characters fit into a width, about."""
    return int(inches * 72 / (_GLYPH * size))


def drawable(text: str) -> str:
    """Return text with what no font in use can draw written as Python escapes it."""
    fonts = _fonts()
    return "".join(
        char
        if any(font.get_char_index(ord(char)) for font in fonts)
        else char.encode("unicode_escape").decode()
        for char in printable(text)
    )


def _fonts() -> list[Any]:
    properties = font_manager.FontProperties
    return [
        font_manager.get_font(font_manager.findfont(properties(family=[family])))
        for family in rcParams["font.family"]
    ]
