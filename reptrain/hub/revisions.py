"""Export of a run's checkpoints by consumed text, as revisions of one Hugging Face repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reptrain.checkpoint.step_folder import step_folders
from reptrain.errors import RunError
from reptrain.hub.export import Exchanged, export_model
from reptrain.plan.text_amounts import steps_of_text
from reptrain.runs.folder import RunFolder
from reptrain.store import open_store


def export_revisions(run: Path, out: Path, **options: Any) -> list[Exchanged]:
    """Write each checkpoint of `checkpoint.at_text` as ``OUT/chck_1M`` and so on, the newest as ``OUT/main``.

    Amounts that the run has not reached are left out.

    Args:
        run: The run folder.
        out: The folder to create; each folder in it is one revision.
        options: Those of `export_model`, but for its step.

    Raises:
        RunError: If the run names no amounts of text, or a checkpoint is missing.
        ReptrainError: As `export_model` does.
    """
    folder = RunFolder.open(run)
    revisions = revision_steps(folder)
    saved = step_folders(folder.checkpoints)
    newest = max(saved, default=0)
    reached = {name: step for name, step in revisions.items() if step <= newest}
    missing = [name for name, step in reached.items() if step not in saved]
    if not folder.config.checkpoint.at_text or missing:
        raise RunError(
            f"run {run}",
            got=f"no checkpoint for {', '.join(missing)}" if missing else "no amounts of text",
            rule="must have the checkpoints of checkpoint.at_text",
            remedy="Train with checkpoint.at_text=babylm, or amounts such as [1Mwords, 2Mwords].",
        )
    done = [export_model(run, out / name, step=step, **options) for name, step in reached.items()]
    return [*done, export_model(run, out / "main", **options)]


def revision_steps(folder: RunFolder) -> dict[str, int]:
    """Steps completed at each revision of a run, by the name of the revision.

    Raises:
        StoreError: If a store of the run cannot be opened.
    """
    plan = folder.plan
    stores = [open_store(source.store) for source in plan.sources]
    amounts = folder.config.checkpoint.at_text
    steps = steps_of_text(amounts, stores, plan.mixture_plan(), plan.step_plan()) if amounts else {}
    return {f"chck_{amount.short}": step for amount, step in steps.items()}
