"""Judge the claims of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import show, study_app
from reptrain.cli.options import AsJson


@study_app.command("claims")
def study_claims(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="A study's YAML file, or the folder that `study run` wrote."),
    ],
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="The table of runs, in Parquet or CSV.",
            show_default="runs.parquet of the folder",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge the claims of a study from its table of runs, and print each verdict with its interval."""
    from reptrain.analysis.claims import judge
    from reptrain.analysis.questions import questions_hash
    from reptrain.analysis.tables import read_table
    from reptrain.report.claim_lines import claim_sentence
    from reptrain.study import load_study, open_study

    config = open_study(study) if study.is_dir() else load_study(study)
    results = judge(read_table(table or study), config.claims)
    shown = {
        "hash": questions_hash(config.claims, config.fits),
        "claims": [result.model_dump(mode="json") for result in results],
    }
    text = "\n".join(claim_sentence(result) for result in results) or "The study has no claims."
    show(shown, text, as_json=as_json)
