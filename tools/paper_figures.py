"""The figures of docs/paper.md, drawn from the tables of the studies in miniature."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from reptrain.analysis.views import by_epochs
from reptrain.report.plots import curves_over_epochs
from reptrain.report.svg import PRINT, to_print


def loss_against_epochs(runs: pa.Table) -> bytes:
    """Held-out loss against epochs, one curve for each size: a PNG file.

    Args:
        runs: The main runs of a study whose arms are sizes of the model.
    """
    done = runs.filter(pc.equal(runs["status"], "done"))
    by_size = done.append_column("set.entry_size", pc.cast(done["parameters_nonembedding"], pa.float64()))
    by_size = by_size.select(
        [
            "set.entry_size",
            "unique_tokens",
            "epochs",
            "status",
            "loss_report_final_nats",
            "loss_report_best_nats",
        ]
    )
    final, best = (by_epochs(by_size, name, f"loss_report_{name}_nats") for name in ("final", "best"))
    figure = curves_over_epochs([final.table, best.table], final.series, {}, PRINT)
    (plot,) = figure.axes
    sizes = sorted({row["set.entry_size"] for row in final.table.to_pylist()})
    for size, shade in zip(sizes, PRINT.arms, strict=False):
        plot.plot([], [], color=shade, label=f"{size / 1e6:.2g}M parameters")
    plot.plot([], [], color=PRINT.muted, label="end of training")
    plot.plot([], [], color=PRINT.muted, linestyle=(0, (3, 2)), label="best checkpoint")
    plot.legend(frameon=False, loc="upper left")
    return to_print(figure, "png")
