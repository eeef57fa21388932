"""docs/paper.md matches the committed tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool(open_tool: Callable[[str], ModuleType]) -> ModuleType:
    return open_tool("paper_page")


def test_page_is_rebuilt_from_the_tables(tool: ModuleType) -> None:
    for path, text in tool.files().items():
        assert path.read_text(encoding="utf-8") == text, "run `make paper-page`"


def test_page_says_which_tables_have_comparable_losses(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, measures in (("a", ["one", None]), ("b", ["one"]), ("c", ["other"])):
        pyarrow.parquet.write_table(pa.table({"measure": measures}), tmp_path / f"{name}.parquet")
    monkeypatch.setattr(tool, "DATA", tmp_path)
    assert tool._measures()[0].endswith("of each group: `a`, `b`; `c`.")
    (tmp_path / "c.parquet").unlink()
    assert tool._measures() == []


def test_readme_gets_the_sentence_and_the_figure_between_its_marks(tool: ModuleType) -> None:
    text, written = tool.README.read_text(encoding="utf-8"), tool.readme()
    before, after = text.split("<!-- paper:")[0], text.split("<!-- end of paper -->")[1]
    assert written.startswith(before) and written.endswith(after)
    part = " ".join(written[len(before) : -len(after)].replace("\n> ", " ").split())
    assert "(docs/paper-loss.png)" in part and "of 22 findings" in part


def test_every_claim_of_the_studies_belongs_to_one_finding(tool: ModuleType) -> None:
    findings = yaml.safe_load(
        (ROOT / "docs" / "data" / "paper" / "findings.yaml").read_text(encoding="utf-8")
    )
    named = [claim for finding in findings for claim in [*finding["claims"], *finding.get("pilots", [])]]
    known = [*tool.results()]
    assert len({*named}) == len(named) and {*named} <= {*known}
    assert {claim for claim in known if not claim.startswith("newest/")} <= {*named}
    assert [finding["number"] for finding in findings] == [*range(22)]
    assert all(finding["claims"] or finding["why"] for finding in findings)
