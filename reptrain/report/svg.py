"""Figures as inline SVG that use the colors of the page, light or dark."""

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

# Matplotlib needs colors, and the page has CSS variables: these placeholders are replaced at the end.
INK = "#00000a"
MUTED = "#00000b"
RULE = "#00000c"
_VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)"}
NUM_COLORS = 6

# matplotlib's types list its keys as literals.
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


def color(index: int) -> str:
    """Placeholder color of the arm with this index, for the CSS variable ``--arm-N``."""
    return f"#0001{index % NUM_COLORS:02x}"


@contextmanager
def axes(width_in: float, height_in: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes in the report's style, to draw on and to pass to `to_svg`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Figure, *, name: str, description: str) -> str:
    """A figure as a scalable ``<svg>`` element. The same figure gives the same text.

    Args:
        figure: Drawn with `color`, `INK`, `MUTED` and `RULE` only.
        name: Unique name on the page; the ids of elements derive from it.
        description: Text for screen readers.
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
    """The inside of an SVG, with CSS variables for the placeholders and without metadata."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    return re.sub(r"#0001([0-9a-f]{2})", lambda match: f"var(--arm-{int(match[1], 16) + 1})", text)
