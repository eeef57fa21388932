"""Figures as inline SVG that use the colors of the page, light or dark, and the same figures for print."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Matplotlib needs colors, and the page has CSS variables: these placeholders are replaced at the end.
INK = "#00000a"
MUTED = "#00000b"
RULE = "#00000c"
_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    "#00000d": "var(--panel)",
    "#00000e": "var(--good)",
    "#00000f": "var(--bad)",
}
NUM_COLORS = 6

NUM_STEPS = 9
_TIP = "tip:"


def color(index: int) -> str:
    """Placeholder color of the arm with this index, for the CSS variable ``--arm-N``."""
    return f"#0001{index % NUM_COLORS:02x}"


@dataclass(frozen=True)
class Paint:
    """The colors of a figure.

    Attributes:
        ink: Text and marks.
        muted: Labels.
        rule: Lines of axes and grid.
        arms: Categorical colors.
        steps: Sequential colors, from low to high.
        panel: Background of a figure.
        good, bad: Colors of verdicts.
    """

    ink: str
    muted: str
    rule: str
    arms: tuple[str, ...]
    steps: tuple[str, ...]
    panel: str
    good: str
    bad: str

    def arm(self, index: int) -> str:
        """Color of the curve with this index."""
        return self.arms[index % len(self.arms)]

    @property
    def style(self) -> dict[Any, Any]:
        """Settings of matplotlib, whose types list its keys as literals."""
        return {
            "svg.fonttype": "none",
            "pdf.fonttype": 42,
            "font.size": 10.5,
            "text.color": self.ink,
            "axes.labelcolor": self.muted,
            "axes.edgecolor": self.rule,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": self.rule,
            "ytick.color": self.rule,
            "xtick.labelcolor": self.muted,
            "ytick.labelcolor": self.muted,
            "grid.color": self.rule,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
        }


PAGE = Paint(
    ink=INK,
    muted=MUTED,
    rule=RULE,
    arms=tuple(color(index) for index in range(NUM_COLORS)),
    steps=tuple(f"#0002{index:02x}" for index in range(NUM_STEPS)),
    panel="#00000d",
    good="#00000e",
    bad="#00000f",
)
PRINT = Paint(
    ink="#1b1d20",
    muted="#5c636b",
    rule="#dddfdb",
    arms=("#0072b2", "#d55e00", "#00835f", "#b0568c", "#a87400", "#3b8ec2"),
    steps=(
        "#e3eef7", "#c9dff0", "#a9cce6", "#85b6da", "#5f9dcb", "#3f84b8", "#2669a0", "#144f83", "#073763",
    ),
    panel="#ffffff",
    good="#14733c",
    bad="#b3261e",
)  # fmt: skip


def tip(text: str) -> str:
    """A group id that becomes the text shown when the pointer is over the element."""
    return _TIP + text


@contextmanager
def axes(width_in: float, height_in: float, paint: Paint = PAGE) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes in the report's style, to draw on and to pass to `to_svg`."""
    with matplotlib.rc_context(paint.style):
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
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    opening, _, inner = text[text.index("<svg") + len("<svg") :].partition(">")
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    label = html.escape(description, quote=True)
    return f'<svg role="img" aria-label="{label}"{opening}>{_themed(inner)}'.strip()


def _themed(text: str) -> str:
    """The inside of an SVG, with CSS variables for the placeholders and without metadata."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(rf'<g id="{_TIP}([^"]*)"([^>]*)>', r'<g class="tip"\2><title>\1</title>', text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    text = re.sub(r"#0002([0-9a-f]{2})", lambda match: f"var(--step-{int(match[1], 16) + 1})", text)
    return re.sub(r"#0001([0-9a-f]{2})", lambda match: f"var(--arm-{int(match[1], 16) + 1})", text)


def to_print(figure: Figure, kind: str) -> bytes:
    """A figure as a PDF or PNG file. The same figure gives the same bytes.

    Args:
        figure: Drawn with `PRINT`.
        kind: ``pdf`` or ``png``.
    """
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with matplotlib.rc_context(PRINT.style):
        figure.savefig(buffer, format=kind, metadata=metadata, transparent=False, facecolor="white", dpi=160)
    return buffer.getvalue()
