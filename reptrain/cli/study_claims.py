"""Judge the claims of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import show, study_app
from reptrain.cli.options import AsJson


@study_app.command("claims")
def study_claims(
    studies: Annotated[
        list[Path],
        typer.Argument(
            metavar="STUDY",
            help="Folders that `study run` wrote, or YAML files of studies that have not run yet.",
        ),
    ],
    tables: Annotated[
        list[Path] | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="The table of runs, in Parquet or CSV; with several studies one for each, in their order.",
            show_default="runs.parquet of the folder",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test the claims of studies.

    Prints each verdict with its interval, from the tables of runs.

    Pass all studies whose claims share a family: Holm's correction covers the claims of these studies, also
    of those that have not run.
    """
    from reptrain.analysis.claims import judge_studies
    from reptrain.analysis.questions import questions_hash
    from reptrain.report.claim_lines import claim_sentence
    from reptrain.study.ask import read_study

    if tables and len(tables) != len(studies):
        raise typer.BadParameter(
            f"{len(tables)} for {len(studies)} studies; give one for each, or none", param_hint="--table"
        )
    named = dict(zip(studies, tables or [], strict=False))
    loaded = [read_study(study, named.get(study)) for study in studies]
    results = judge_studies([study.asked for study in loaded])
    hashes = {study.asked.name: questions_hash(study.config.claims, study.config.fits) for study in loaded}
    shown = {
        "studies": hashes,
        "hash": next(iter(hashes.values())) if len(hashes) == 1 else None,
        "claims": [result.model_dump(mode="json") for result in results],
    }
    several = len(loaded) > 1
    text = "\n".join(claim_sentence(result, with_study=several) for result in results)
    show(shown, text or "No study has claims.", as_json=as_json)
