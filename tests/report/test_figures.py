"""Figures: what they show, and that their colors follow the page."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptrain.report.figures import arm_figure, exposures_figure, loss_limits, spread
from reptrain.report.svg import NUM_COLORS, axes, color, to_svg
from reptrain.study import ArmRow
from reptrain.study.collect import LossCurve

ROW = ArmRow(
    arm="a", values={}, seed=0, state="done", unique_tokens=250, epochs=4.0, total_tokens=1000,
    probe=LossCurve(tokens=(0, 500, 1000), nats=(8.0, 4.0, 2.25)),
    select=LossCurve(tokens=(0, 500, 1000), nats=(8.0, 5.0, 6.0)),
    report=LossCurve(tokens=(0, 500, 1000), nats=(8.1, 5.1, 6.125)),
    best_select_nats=5.0, best_tokens=500, best_report_nats=5.1, exposures={4: 250},
)  # fmt: skip


def texts(svg: str) -> list[str]:
    return [
        "".join(node.itertext())
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_to_svg_has_only_colors_of_the_page_and_no_size_of_its_own() -> None:
    svg = arm_figure(ROW, 1, (0.0, 9.0))
    colors = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg))
    assert colors <= {"none", "currentColor", "var(--muted)", "var(--rule)", "var(--arm-2)"}
    assert "var(--arm-2)" in colors
    opening = svg[: svg.index(">")]
    assert "viewBox" in opening
    assert not re.search(r"\s(width|height)=", opening)


def test_to_svg_is_the_same_text_for_the_same_figure() -> None:
    assert arm_figure(ROW, 0, (0.0, 9.0)) == arm_figure(ROW, 0, (0.0, 9.0))


def test_to_svg_escapes_its_description_and_keeps_ids_apart() -> None:
    svgs = []
    for name in ("one", "two"):
        with axes(2, 2) as (figure, plot):
            plot.plot([0, 1], [0, 1], color=color(0))
            svgs.append(to_svg(figure, name=name, description='"a" < b'))
    assert 'aria-label="&quot;a&quot; &lt; b"' in svgs[0]
    first, second = (set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs)
    assert first
    assert not first & second


def test_color_repeats_after_the_last() -> None:
    assert len({color(index) for index in range(20)}) == NUM_COLORS
    assert color(NUM_COLORS) == color(0)


def test_arm_figure_labels_the_ends_and_falls_back_to_select() -> None:
    assert {"held-out 6.12", "training 2.25"} <= set(texts(arm_figure(ROW, 0, (0.0, 9.0))))
    without = ROW.model_copy(update={"report": LossCurve()})
    assert "held-out 6.00" in texts(arm_figure(without, 0, (0.0, 9.0)))


def test_arm_figure_marks_the_end_of_every_epoch() -> None:
    def num_ticks(row: ArmRow) -> int:
        # Epoch ticks are the only lines in the muted color.
        return len(re.findall(r"stroke: var\(--muted\)", arm_figure(row, 0, (0.0, 9.0))))

    assert num_ticks(ROW) == 4
    assert num_ticks(ROW.model_copy(update={"epochs": 2.5})) == 2
    assert num_ticks(ROW.model_copy(update={"epochs": 1000.0})) == 0


def test_loss_limits_hold_every_finite_value() -> None:
    broken = ROW.model_copy(update={"probe": LossCurve(tokens=(0, 1), nats=(float("nan"), float("inf")))})
    low, high = loss_limits([ROW, broken])
    assert 0.0 <= low < 2.25
    assert 8.1 < high < 9.0
    assert loss_limits([]) == (0.0, pytest.approx(1.06))


@pytest.mark.parametrize(
    "exposures",
    [[{4: 250}], [{4: 250}, {16: 64}], [{0: 10, 1: 240}, {1: 250}], [{k: 10 * k + 1 for k in range(12)}]],
)
def test_exposures_figure_names_every_number_of_uses(exposures: list[dict[int, int]]) -> None:
    rows = [ROW.model_copy(update={"exposures": counted}) for counted in exposures]
    assert {str(times) for counted in exposures for times in counted} <= set(texts(exposures_figure(rows)))


@given(st.lists(st.floats(-100, 100), max_size=6), st.floats(0.01, 10))
def test_spread_keeps_order_gap_and_middle(heights: list[float], gap: float) -> None:
    moved = spread(heights, gap=gap)
    assert sum(moved) == pytest.approx(sum(heights), abs=1e-6)
    pairs = sorted(zip(heights, moved, strict=True))
    assert all(low[1] + gap <= high[1] + 1e-6 for low, high in itertools.pairwise(pairs))
