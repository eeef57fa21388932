"""Evaluation of runs: on any of their sets, under their own or another objective, on own or other text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reptrain.config import RunConfig
from reptrain.config.load import parse_yaml, set_dotted, validate
from reptrain.distributed.world import World, choose_device
from reptrain.errors import ConfigError, StoreError, check_choice
from reptrain.evaluation.context_gain import OtherSource, check_context
from reptrain.evaluation.sets import SETS as SETS
from reptrain.evaluation.sets import evaluation_sets
from reptrain.hub.saved_model import open_saved_model
from reptrain.model import Decoder, EncoderDecoder
from reptrain.plan import Subset
from reptrain.runs.folder import RunFolder
from reptrain.runs.scores import compute_scores
from reptrain.store import Store, local_folder, open_store
from reptrain.text import Tokenizer

# Rows of a forward pass; does not change the scores.
_ROWS = 32


@dataclass(frozen=True)
class SetScore:
    """A set scored under an objective."""

    run: str
    step: int
    """Steps completed by the weights that were scored."""
    objective: str
    set: str
    scores: Mapping[str, float]
    """Every score by name, as in the run's records (see `reptrain.runs.scores`)."""
    gap_nats: float | None
    """Nats minus those of the same source's probe, under equal noise; None if there is no probe."""
    context_gain_nats: float | None = None
    """Nats with the encoder inputs of other windows, minus `nats`; None if it was not asked for."""

    @property
    def nats(self) -> float:
        """Nats per token."""
        return self.scores["nats"]

    def row(self) -> dict[str, Any]:
        """The figures by name, in the order of a table."""
        place = {"run": self.run, "step": self.step, "objective": self.objective, "set": self.set}
        loss = {name: self.scores[name] for name in ("nats", "bits_per_byte")}
        context = {} if self.context_gain_nats is None else {"context_gain_nats": self.context_gain_nats}
        return place | loss | {"gap_nats": self.gap_nats} | context | dict(self.scores)


@dataclass(frozen=True)
class ScoredRun:
    """A run that is open for scoring, with its model in evaluation mode."""

    path: Path
    config: RunConfig
    step: int
    model: Decoder | EncoderDecoder
    sources: Mapping[str, tuple[Store, Subset | None]]
    """Store of each source by name, with the run's training subset if the store is the run's own."""
    tokenizer: Tokenizer
    world: World

    @property
    def rows(self) -> int:
        """Windows of a forward pass, a multiple of the routing group."""
        group = self.config.model.moe.group_windows if self.config.model.moe else 1
        return group * max(1, _ROWS // group)


def open_run(
    path: Path, *, step: int | None = None, stores: Mapping[str, Path] | None = None, device: str = "auto"
) -> ScoredRun:
    """Open a run's model and stores.

    Args:
        path: The run folder.
        step: Step of the checkpoint; None: the newest intact one.
        stores: Path of each source's store, if it was moved or replaced by one with the same tokenizer.
        device: Device, as in train.device.

    Raises:
        ReptrainError: If the run, a checkpoint or a store cannot be used.
    """
    folder, trained = RunFolder.open(path), open_saved_model(path, step)
    config = folder.config
    sources: dict[str, tuple[Store, Subset | None]] = {}
    for source in folder.plan.sources:
        option = f"--store {source.name}=FOLDER" if folder.plan.is_mixture else "--store FOLDER"
        store = open_store((stores or {}).get(source.name, Path(source.store)), named_by=option)
        own = store.fingerprint == source.store_fingerprint
        subset = None
        if own:
            subset = Subset.open(store, seed=source.subset_seed, unique_tokens=source.unique_tokens)
        sources[source.name] = store, subset
    tokenizer = _tokenizer(folder, [store for store, _ in sources.values()], trained.rows)
    chosen = choose_device(device)
    model = trained.load(config.model.model_copy(update={"vocab_size": trained.rows})).to(chosen)
    assert trained.step is not None
    return ScoredRun(path, config, trained.step, model.eval(), sources, tokenizer, World(0, 1, 0, chosen))


def _tokenizer(folder: RunFolder, stores: Sequence[Store], rows: int) -> Tokenizer:
    """The tokenizer of the stores; it must be that of the run's own stores, if they exist."""
    tokenizer = stores[0].tokenizer()
    known = {store.manifest.tokenizer for store in stores}
    for source in folder.plan.sources:
        if (local_folder(source.store) / "manifest.json").exists():
            known.add(open_store(source.store).manifest.tokenizer)
    if len(known) > 1 or tokenizer.vocab_size > rows:
        raise StoreError(
            f"store {stores[0].path}",
            got=f"a tokenizer of {tokenizer.vocab_size} ids with fingerprint {tokenizer.fingerprint}",
            rule=f"must have the tokenizer of {folder.path}",
            remedy="Build it by `reptrain tokenize --tokenizer` with the tokenizer of the run's store.",
        )
    return tokenizer


def with_objective(config: RunConfig, text: str) -> RunConfig:
    """The run's configuration with another objective, over windows of the same raw tokens.

    If the model was trained with causal attention only, a plain ``prefix_lm`` uses causal attention too.

    Args:
        config: Configuration of the run.
        text: Name of an objective, or a YAML mapping: ``{name: span_corruption, mean_span_tokens: 8}``.

    Raises:
        ConfigError: If the objective is unknown, or the model does not support it.
    """
    try:
        given = parse_yaml(text)
    except yaml.YAMLError:
        given = None
    if isinstance(given, str):
        if given == config.objective.name:
            return config
        given = {"name": given}
        if given["name"] == "prefix_lm" and config.model.family == "decoder" and _reads_causally(config):
            given["bidirectional"] = False
    if not isinstance(given, dict):
        raise ConfigError(
            "--objective",
            got=repr(text),
            rule="must be a name, or a mapping such as {name: prefix_lm, prefix_fraction: 0.5}",
            remedy="`reptrain config schema` lists the settings of each objective.",
        )
    data: dict[str, Any] = config.model_dump(mode="json")
    set_dotted(data, "objective", given)
    set_dotted(data, "data.window_tokens", config.window_tokens)
    # The run's budget may be in units of its own objective.
    set_dotted(data, "train.total_tokens", None)
    for name in config.data.sources:
        set_dotted(data, f"data.sources.{name}.total_tokens", "1epochs")
    return validate(RunConfig, data)


def _reads_causally(config: RunConfig) -> bool:
    return config.objective.reading("decoder") == "causal"


def score_run(
    run: ScoredRun,
    *,
    sets: Collection[str] = SETS,
    objectives: Sequence[str] = (),
    max_windows: int | None = None,
    noise_samples: int | None = None,
    context_gain: bool = False,
) -> list[SetScore]:
    """Score a run.

    Args:
        run: The run.
        sets: Sets to score, out of probe, select and report.
        objectives: Objectives to score under (see `with_objective`); empty: the run's own.
        max_windows: As evaluate.max_windows; None: the run's value.
        noise_samples: As evaluate.noise_samples; None: the run's value.
        context_gain: Whether to score an encoder-decoder with the encoder inputs of other windows too.

    Raises:
        ConfigError: If a set or an objective is unknown, or the model does not support an objective or
            `context_gain`.
    """
    for name in sets:
        check_choice("set", name, SETS)
    if context_gain:
        check_context(run.model, run.config)
    configs = [with_objective(run.config, text) for text in objectives] or [run.config]
    rows = []
    for config in configs:
        changed = with_evaluation(config, max_windows=max_windows, noise_samples=noise_samples)
        rows += _score(run, changed, sets, context_gain=context_gain)
    return rows


def with_evaluation(
    config: RunConfig, *, max_windows: int | None = None, noise_samples: int | None = None
) -> RunConfig:
    """The run's configuration with other settings of `evaluate`; None keeps a setting."""
    given = {"max_windows": max_windows, "noise_samples": noise_samples}
    changed = {key: value for key, value in given.items() if value is not None}
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changed)})


def evaluate(
    path: Path,
    *,
    sets: Collection[str] = SETS,
    objectives: Sequence[str] = (),
    step: int | None = None,
    stores: Mapping[str, Path] | None = None,
    max_windows: int | None = None,
    noise_samples: int | None = None,
    context_gain: bool = False,
    device: str = "auto",
) -> list[SetScore]:
    """Score a checkpoint of a run on its evaluation sets, in fp32.

    Args:
        path: The run folder.
        sets: Sets to score, out of probe, select and report.
        objectives: Objectives to score under (see `with_objective`); empty: the run's own.
        step: Step of the checkpoint; None: the newest intact one.
        stores: Path of each source's store, if it was moved or replaced by one with the same tokenizer.
        max_windows: As evaluate.max_windows; None: the run's value.
        noise_samples: As evaluate.noise_samples; None: the run's value.
        context_gain: Whether to score an encoder-decoder with the encoder inputs of other windows too.
        device: Device, as in train.device.

    Returns:
        The scores of each set under each objective.

    Raises:
        ReptrainError: If the run, a checkpoint or a store cannot be used, or an argument is unknown.
    """
    run = open_run(path, step=step, stores=stores, device=device)
    return score_run(
        run,
        sets=sets,
        objectives=objectives,
        max_windows=max_windows,
        noise_samples=noise_samples,
        context_gain=context_gain,
    )


def _score(run: ScoredRun, config: RunConfig, sets: Collection[str], *, context_gain: bool) -> list[SetScore]:
    evaluated = evaluation_sets(
        config,
        run.sources,
        run.tokenizer,
        world=run.world,
        micro_batch_windows=run.rows,
        only={*sets, "probe"},
    )
    scores = {one.name: one.score(run.model, world=run.world) for one in evaluated}
    gains: dict[str, float] = {}
    if context_gain:
        other = OtherSource(run.model)
        gains = {
            one.name: one.score(other, world=run.world).nats_per_token - scores[one.name].nats_per_token
            for one in evaluated
            if one.name.partition("/")[0] in sets
        }
    rows = []
    for name, score in scores.items():
        kind, slash, source = name.partition("/")
        if kind not in sets:
            continue
        probe = scores.get(f"probe{slash}{source}")
        gap = score.nats_per_token - probe.nats_per_token if probe and kind != "probe" else None
        rows.append(
            SetScore(
                run=str(run.path),
                step=run.step,
                objective=config.objective.name,
                set=name,
                scores=compute_scores(score),
                gap_nats=gap,
                context_gain_nats=gains.get(name),
            )
        )
    return rows
