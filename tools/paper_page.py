"""Write docs/paper.md: the verdict on each finding, from the committed tables of the studies in miniature.

    python tools/paper_page.py            # write the page, its figure, and the part of README.md
    python tools/paper_page.py --check    # exit with 1 if the page or the README does not match the tables

The tables are docs/data/paper/STUDY.parquet, written by `reptrain study collect`.
"""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from paper_figures import loss_against_epochs
from paper_fits import fitted_lines, fitted_tables
from paper_tables import losses_table, methods_table

from reptrain.analysis.claims import ClaimResult, Judgment, judge_studies
from reptrain.analysis.tables import main_runs, read_table
from reptrain.report.claim_lines import claim_sentence
from reptrain.study.ask import read_study

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "configs" / "studies" / "mini"
DATA = ROOT / "docs" / "data" / "paper"
PAGE = ROOT / "docs" / "paper.md"
README = ROOT / "README.md"
FIGURE = ROOT / "docs" / "paper-loss.png"
_BEGIN, _END = "<!-- paper: made by `make paper-page` -->", "<!-- end of paper -->"
_CAPTION = "Held-out loss against epochs at 2^20 tokens, for three sizes of decoder"
_VERDICTS = ("supported", "contradicted", "negligible", "undecided", "not run")
_FITTED = "fitted without a claim"

_HEAD = """\
# The paper's findings at small scale

<!-- Written by tools/paper_page.py from docs/data/paper. Do not edit. -->

This page lists the findings of [Xue et al. (2023)](https://arxiv.org/abs/2305.13230) and of later work, with
the verdicts of the studies in `configs/studies/mini` and of `configs/studies/newest.yaml`.
[The paper in miniature](guides/paper.md) explains the studies, [Claims and verdicts](guides/claims.md) the
verdicts. `make paper-page` rebuilds this page from the tables.
"""

_LOSSES = (
    "Loss after R epochs, and in parentheses that of the best checkpoint, in nats per token, as means over"
    " seeds. S, M and L are the models of 0.09, 0.38 and 1.5 million non-embedding parameters:"
)

_RECENT = """\
The other claims of `configs/studies/newest.yaml`, at 64 epochs of 16,384 tokens.
[Recent methods for repeated data](guides/newest.md) describes the methods."""


@cache
def results() -> dict[str, ClaimResult]:
    """All claims of the studies with their verdicts, judged together, by STUDY/CLAIM."""
    files = [path for path in sorted(STUDIES.glob("*.yaml")) if path.name != "base.yaml"]
    files.append(STUDIES.parent / "newest.yaml")
    studies = []
    for path in files:
        table = DATA / f"{path.stem}.parquet"
        studies.append(read_study(path, table if table.exists() else None))
    judged = judge_studies([study.asked for study in studies])
    return {f"{result.study}/{result.claim.name}": result for result in judged}


def page(*, renew: bool = False) -> str:
    """The text of the page. ``renew``: fit laws again if the tables have changed."""
    judged, findings = results(), _findings()
    fits = {one["number"]: fitted_lines(one, DATA, renew=renew) for one in findings}
    figure = []
    if _has_central_result(judged):
        figure = [f"![{_CAPTION}](paper-loss.png)", "", _LOSSES, "", *losses_table(_core_runs()), ""]
    lines = [_HEAD, _sentence(findings, judged), "", *figure, _runs(), "", *_measures()]
    lines += ["| | finding | verdict |", "|---:|---|---|"]
    lines += [f"| {one['number']} | {one['finding']} | {_verdict(one, judged)} |" for one in findings]
    for one in findings:
        lines += ["", f"## {one['number']}. {one['finding']}", "", f"Published: {one['published']}", ""]
        lines += [f"Comment: {one['comment']}", ""] if "comment" in one else []
        lines += [*fits[one["number"]], ""] if fits[one["number"]] else []
        if not one["claims"] and not fits[one["number"]]:
            lines += [f"Not run: {one['why']}", *([""] if _claims(one) else [])]
        lines += [_line(judged[name]) for name in _claims(one)]
    named = {name for one in findings for name in _claims(one)}
    lines += ["", "## Recent methods", "", _RECENT, ""]
    newest = DATA / "newest.parquet"
    if newest.exists():
        comment = yaml.safe_load((DATA / "recent.yaml").read_text(encoding="utf-8"))["comment"]
        lines += [f"Comment: {comment}", "", *methods_table(read_table(newest)), ""]
    lines += [_line(result) for name, result in judged.items() if name not in named]
    return "\n".join(lines) + "\n"


def readme() -> str:
    """README.md with the figure and the verdicts of today's tables."""
    text = README.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise SystemExit(f"{README.name} lacks the marks of the part on the paper")
    judged = results()
    image = f"![{_CAPTION}](docs/paper-loss.png)"
    quoted = textwrap.fill(
        _sentence(_findings(), judged),
        119,
        initial_indent="> ",
        subsequent_indent="> ",
        break_on_hyphens=False,
    )
    return f"{before}{begin}\n\n{image}\n\n{quoted}\n\n{end}{after}"


def _findings() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((DATA / "findings.yaml").read_text(encoding="utf-8"))
    return found


def _claims(finding: dict[str, Any]) -> list[str]:
    """The claims about a finding, those of pilots included."""
    return [*finding["claims"], *finding.get("pilots", [])]


def _has_central_result(judged: dict[str, ClaimResult]) -> bool:
    """Whether the cost of 64 epochs is measured for a size."""
    return judged["mini-core/repetition-degrades"].judged.effect is not None


def _core_runs() -> pa.Table:
    """The finished main runs of the study `core`."""
    runs = main_runs(read_table(DATA / "core.parquet"))
    return runs.filter(pc.equal(runs["status"], "done"))


def _line(result: ClaimResult) -> str:
    line = f"- {result.claim.statement}<br>`{claim_sentence(result, with_study=True)}`"
    other = result.other_checkpoint
    if other is None or other.effect is None:
        return line
    same = result.model_copy(update={"judged": other})
    return f"{line}<br>By `{other.metric}`: `{claim_sentence(same, with_study=True).partition(': ')[2]}`"


def _verdict(finding: dict[str, Any], judged: dict[str, ClaimResult]) -> str:
    if finding["claims"]:
        return judged[finding["claims"][0]].verdict
    return _FITTED if fitted_tables(finding, DATA) else "not run"


def _sentence(findings: list[dict[str, Any]], judged: dict[str, ClaimResult]) -> str:
    counts = Counter(_verdict(one, judged) for one in findings)
    shown = [*_VERDICTS, *([_FITTED] if _FITTED in counts else [])]
    parts = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in shown)
    measured = [
        _effect(judged[f"mini-core/{name}"], what)
        for name, what in (
            (
                "repetition-degrades",
                "With 0.38 million parameters, 64 epochs end {} above one epoch of as many tokens",
            ),
            ("larger-models-degrade-more", "With four times the parameters, this difference grows by {}"),
        )
    ]
    return " ".join(
        [
            "These are results of decoders with 0.09 to 1.5 million non-embedding parameters, trained on 2^18"
            f" to 2^22 tokens. Verdicts of {len(findings)} findings: {parts}.",
            *filter(None, measured),
            "Models at the scale of the paper, 0.2 to 2.8 billion parameters, may behave differently.",
        ]
    )


def _effect(result: ClaimResult, text: str) -> str:
    final, best = (_interval(judged) for judged in (result.judged, result.other_checkpoint))
    if not final:
        return ""
    at_best = f"; at the best checkpoint {best}" if best else ""
    return f"{text.format(f'{final} nats')}{at_best} (n = {result.judged.seeds_used})."


def _interval(judged: Judgment | None) -> str:
    if judged is None or judged.effect is None or judged.low is None or judged.high is None:
        return ""
    return f"{judged.effect:.2f} [{judged.low:.2f}, {judged.high:.2f}]"


def _measures() -> list[str]:
    """Which tables have comparable losses; nothing if all have."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(DATA.glob("*.parquet")):
        runs = read_table(path)
        found = {row for row in runs["measure"].to_pylist() if row is not None}
        groups.setdefault((*sorted(found),), []).append(f"`{path.stem}`")
    if len(groups) < 2:
        return []
    listed = "; ".join(", ".join(stems) for stems in groups.values())
    rule = "Losses are comparable if store, objective and window are equal, as in the studies of each group"
    return [f"{rule}: {listed}.", ""]


def _runs() -> str:
    """How many runs there are, and how their audits ended. A run that several studies use counts once."""
    done: dict[str, dict[str, Any]] = {}
    for path in sorted(DATA.glob("*.parquet")):
        columns = ["node_fingerprint", "status", "audit_verdict", "consumed_tokens"]
        rows = main_runs(read_table(path)).select(columns).to_pylist()
        done |= {row["node_fingerprint"]: row for row in rows if row["status"] == "done"}
    verdicts = Counter(row["audit_verdict"] for row in done.values())
    tokens = sum(row["consumed_tokens"] for row in done.values())
    audits = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    return (
        f"Finished runs: {len(done)}, with {tokens:,} training tokens in total. Audits: {audits or 'none'}."
    )


def files(*, renew: bool = False) -> dict[Path, str]:
    """The page and, once the study `core` has its central result, README.md."""
    return {PAGE: page(renew=renew), **({README: readme()} if _has_central_result(results()) else {})}


def main() -> None:
    """Write the files and the figure, or compare the files."""
    if "--check" in sys.argv[1:]:
        sys.exit(any(path.read_text(encoding="utf-8") != text for path, text in files().items()))
    for path, text in files(renew=True).items():
        path.write_text(text, encoding="utf-8")
    if _has_central_result(results()):
        FIGURE.write_bytes(loss_against_epochs(_core_runs()))


if __name__ == "__main__":
    main()
