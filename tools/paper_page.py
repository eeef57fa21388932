"""Write docs/paper.md: the verdict on each finding, from the committed tables of the studies in miniature.

    python tools/paper_page.py            # write the page
    python tools/paper_page.py --check    # exit with 1 if the page does not match the tables

The tables are docs/data/paper/STUDY.parquet, written by `reptrain study collect`.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from reptrain.analysis.claims import ClaimResult, judge_studies
from reptrain.analysis.tables import main_runs, read_table
from reptrain.report.claim_lines import claim_sentence
from reptrain.study.ask import read_study

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "configs" / "studies" / "mini"
DATA = ROOT / "docs" / "data" / "paper"
PAGE = ROOT / "docs" / "paper.md"
_VERDICTS = ("supported", "contradicted", "negligible", "undecided", "not run")

_HEAD = """\
# The paper's findings at small scale

<!-- Written by tools/paper_page.py from docs/data/paper. Do not edit. -->

This page lists the findings of [Xue et al. (2023)](https://arxiv.org/abs/2305.13230) and of later work, with
the verdicts of the studies in `configs/studies/mini` and of `configs/studies/newest.yaml`.
[The paper in miniature](guides/paper.md) explains the studies, [Claims and verdicts](guides/claims.md) the
verdicts. `make paper-page` rebuilds this page from the tables.
"""

_RECENT = """\
The other claims of `configs/studies/newest.yaml`, at 64 epochs of 16,384 tokens.
[Recent methods for repeated data](guides/newest.md) describes the methods."""


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


def page() -> str:
    """The text of the page."""
    judged = results()
    findings = yaml.safe_load((DATA / "findings.yaml").read_text(encoding="utf-8"))
    lines = [_HEAD, _sentence(findings, judged), "", _runs(), "", "| | finding | verdict |", "|---:|---|---|"]
    lines += [f"| {one['number']} | {one['finding']} | {_verdict(one, judged)} |" for one in findings]
    for one in findings:
        lines += ["", f"## {one['number']}. {one['finding']}", "", f"Published: {one['published']}", ""]
        if not one["claims"]:
            lines.append(f"Not run: {one['why']}")
        lines += [_line(judged[name]) for name in one["claims"]]
    named = {name for one in findings for name in one["claims"]}
    lines += ["", "## Recent methods", "", _RECENT, ""]
    lines += [_line(result) for name, result in judged.items() if name not in named]
    return "\n".join(lines) + "\n"


def _line(result: ClaimResult) -> str:
    return f"- {result.claim.statement}<br>`{claim_sentence(result, with_study=True)}`"


def _verdict(finding: dict[str, Any], judged: dict[str, ClaimResult]) -> str:
    return judged[finding["claims"][0]].verdict if finding["claims"] else "not run"


def _sentence(findings: list[dict[str, Any]], judged: dict[str, ClaimResult]) -> str:
    counts = Counter(_verdict(one, judged) for one in findings)
    parts = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in _VERDICTS)
    scale = "This says nothing about the scale of the paper, 0.2 to 2.8 billion parameters."
    return f"Of {len(findings)} findings: {parts}. {scale}"


def _runs() -> str:
    """How many runs there are, and how their audits ended."""
    verdicts: Counter[str] = Counter()
    tokens = 0
    for path in sorted(DATA.glob("*.parquet")):
        rows = main_runs(read_table(path)).select(["status", "audit_verdict", "consumed_tokens"]).to_pylist()
        done = [row for row in rows if row["status"] == "done"]
        verdicts.update(row["audit_verdict"] for row in done)
        tokens += sum(row["consumed_tokens"] for row in done)
    audits = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    return f"Finished main runs: {verdicts.total()}, with {tokens:,} tokens. Audits: {audits or 'none'}."


def main() -> None:
    """Write the page, or compare it."""
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
