"""Times the kernels, SDPA, FlexAttention, Liger and torch.compile: rows for kernels/bench/results/gpu.csv."""

from __future__ import annotations

import sys

from ceilings import once
from kernel_checks import SMALL
from rows import ROOT, Arguments, add, out_folder

SHAPES = {
    "attention": ["T5-Base encoder", "T5-Base dropout encoder", "T5-Base encoder of 2048", "Llama-1B"],
    "norm": ["T5-Base dropout", "Llama-7B"],
    "gated": ["T5-Base dropout", "Llama-7B"],
    "linear_cross_entropy": ["T5-Base", "GPT-2"],
    "rope": ["Llama-1B"],
    "grouped": ["MoE-Base dropout"],
}


def main() -> int:
    """Time fewer shapes than `reptrain bench kernels`, because time is short; returns the exit code."""
    asked = Arguments(__doc__)
    if asked.rehearse:
        sys.path.insert(0, str(ROOT / "tests" / "kernels"))
        import interpreted

        interpreted.prepare()
    from reptrain_kernels.bench import goals, timed
    from reptrain_kernels.bench.operations import OPERATIONS

    chosen = []
    for name, shapes in SHAPES.items():
        if asked.rehearse and name != "gated":
            continue
        found = [shape for shape in OPERATIONS[name].shapes if shape.name in shapes]
        if asked.rehearse:
            found = [found[0]._replace(**SMALL[name])]
        chosen.append(OPERATIONS[name]._replace(shapes=found, shown=[shape.name for shape in found]))
    timer = once if asked.rehearse else timed.on_cuda
    top = timed.Ceilings(1e9, 1e9) if asked.rehearse else None

    def rows():  # type: ignore[no-untyped-def]
        for operation in chosen:
            if not asked.is_late():
                yield from timed.timed([operation], asked.device, timer=timer, top=top, minutes=10.0)

    written = timed.append(rows(), out_folder() / "kernels.csv")
    for verdict in goals.verdicts(written):
        add(
            "goals",
            f"{verdict.goal}, {verdict.shape}",
            got=verdict.got,
            goal=verdict.bound,
            met=verdict.is_met,
        )
    bad = [row for row in written if row.way == "triton" and row.said]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
