"""Figures as inline SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Matplotlib wants colours where the page has variables: each of these stands for one until the end.
INK = "#00000a"
MUTED = "#00000b"
RULE = "#00000c"
_VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}
NUM_COLOURS = 6

# The keys of matplotlib, which its types spell out.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.transparent": True,
}


def colour(index: int) -> str:
    """The stand-in for the page's variable ``--arm-N`` of the arm at this place."""
    return f"#0001{index % NUM_COLOURS:02x}"


@contextmanager
def axes(width_in: float, height_in: float) -> Iterator[tuple[Figure, Axes]]:
    """One pair of axes in the house style, for a ``with`` block that draws and calls `to_svg`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Figure, *, name: str, description: str) -> str:
    """A figure as an ``<svg>`` element that scales with its place. The same figure gives the same text.

    Args:
        figure: Drawn with `colour`, `INK`, `MUTED` and `RULE` alone.
        name: Unique on the page: the element's ids derive from it.
        description: What a reader who does not see it is told.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    opening, _, inner = text[text.index("<svg") + len("<svg") :].partition(">")
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    label = html.escape(description, quote=True)
    return f'<svg role="img" aria-label="{label}"{opening}>{_themed(inner)}'.strip()


def _themed(text: str) -> str:
    """The inside of an SVG with the page's variables in place of the stand-ins, and no metadata."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    return re.sub(r"#0001([0-9a-f]{2})", lambda match: f"var(--arm-{int(match[1], 16) + 1})", text)
