"""Setup before the first step: data, plan, model, engine, evaluation sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reptrain.batch.loader import Loader
from reptrain.batch.objectives import Objective, build_objective
from reptrain.checkpoint.state_hash import WeightSlices
from reptrain.checkpoint.weight_average import WeightAverage
from reptrain.config import RunConfig
from reptrain.config.finetune import FinetuneConfig
from reptrain.distributed.bf16_gradients import save_gradient_passes
from reptrain.distributed.deepspeed_config import deepspeed_config
from reptrain.distributed.engine import Engine
from reptrain.distributed.host_memory import keep_freed_memory, release_freed_memory
from reptrain.distributed.partition import partition_weights
from reptrain.distributed.precision import allow_tf32
from reptrain.distributed.world import World
from reptrain.errors import StoreError
from reptrain.evaluation.sets import EvaluationSet, evaluation_sets
from reptrain.hub.saved_model import SavedModel
from reptrain.model.blocks import compile_blocks
from reptrain.plan import MixturePlan, StepPlan, Stream, open_stream
from reptrain.plan.cycles import cycle_ends
from reptrain.plan.shard import micro_steps_of
from reptrain.plan.text_amounts import has_budget_of_text, with_token_budgets
from reptrain.progress import stage_progress
from reptrain.runs.run_plan import RunPlan
from reptrain.sizes import bucket_elements, embedding_rows
from reptrain.store import Store, open_store, verify
from reptrain.text import Tokenizer
from reptrain.training.batches import WindowBatches
from reptrain.training.distill import build_teacher, open_teachers, teacher_fingerprint
from reptrain.training.initial_weights import InitialWeights
from reptrain.training.masked_inputs import MaskedInputs
from reptrain.training.optimizers import build_optimizer
from reptrain.training.regularize import InputNoise
from reptrain.training.step import Trainer

_HASHED_AT_START_BYTES = 1 << 28
# By ZeRO stage. DeepSpeed allocates buffers of the size of all gradients in turn, and at stage 3 temporary
# tensors of every parameter's size. They do not fit into each other's gaps, so they are not kept.
_KEPT_BELOW_BYTES = (None, 1 << 25, 1 << 25, 1 << 20)


@dataclass(frozen=True)
class Data:
    """The stores, their subsets as one stream, and the order of the windows."""

    stores: dict[str, Store]
    """By name of the source."""
    stream: Stream
    run_plan: RunPlan
    """The content of plan.json; `plan` and `steps` are derived from it."""
    plan: MixturePlan
    steps: StepPlan
    tokenizer: Tokenizer
    objective: Objective
    """The objective, with the noise of the run's seed."""
    teachers: Sequence[SavedModel] = ()
    """The models of `distill.teacher`."""


def open_data(config: RunConfig) -> Data:
    """Open the stores and build the plan. Only the cached document orders need a pass over the data.

    Raises:
        StoreError: If a store is missing, not sealed, modified, or made by another tokenizer.
        PlanError: If a subset is larger than its store, or shorter than a window.
        ConfigError: If the embedding has too few rows, the tokenizer too few sentinels, or the teacher does
            not fit.
    """
    stores = _open_stores(config)
    tokenizer = next(iter(stores.values())).tokenizer()
    embedding_rows(config.model, tokenizer.vocab_size)
    objective = build_objective(config, tokenizer, noise_seed=config.seed_of("noise"))
    stream = open_stream(config, stores)
    teachers = open_teachers(config, tokenizer)
    run_plan = RunPlan.of(config, stores=stores, stream=stream, teacher=teacher_fingerprint(teachers))
    return Data(
        stores,
        stream,
        run_plan,
        run_plan.mixture_plan(),
        run_plan.step_plan(),
        tokenizer,
        objective,
        teachers,
    )


def resolve_budgets(config: RunConfig) -> RunConfig:
    """The run with budgets in words or bytes replaced by tokens of its stores.

    Raises:
        StoreError: If a store cannot be used, or has no word counts.
    """
    return with_token_budgets(config, _open_stores(config)) if has_budget_of_text(config) else config


def _open_stores(config: RunConfig) -> dict[str, Store]:
    """Open the store of each source; a store of several sources is opened once.

    Raises:
        StoreError: If one cannot be used, or they have different tokenizers.
    """
    paths = {name: Path(source.store) for name, source in config.sources.items()}
    keys = {path: f"{config.store_setting(name)}=FOLDER" for name, path in paths.items()}
    opened = {path: _intact(path, key) for path, key in keys.items()}
    first, *others = opened.values()
    for other in others:
        if other.manifest.tokenizer != first.manifest.tokenizer:
            raise StoreError(
                f"stores {first.path} and {other.path}",
                got=f"tokenizers with the fingerprints {first.manifest.tokenizer}"
                f" and {other.manifest.tokenizer}",
                rule="must have the same tokenizer to be mixed",
                remedy="Rebuild one of them with `reptrain tokenize --tokenizer`"
                f" and the tokenizer in {first.path}.",
            )
    return {name: opened[path] for name, path in paths.items()}


def _intact(path: Path, named_by: str) -> Store:
    """Open a store. A small one is hashed again; the audit verifies larger ones. A remote one is fetched."""
    store = open_store(path, named_by=named_by)
    if store.is_remote:
        # Each shard is compared with the manifest when it arrives.
        with stage_progress() as progress:
            store.fetch(partial(progress, "fetch the store"))
        return store
    if sum(file.stat().st_size for file in path.glob("*.arrow")) > _HASHED_AT_START_BYTES:
        return store
    report = verify(path)
    if not report.ok:
        raise StoreError(
            f"store {path}",
            got=report.problems[0],
            rule="must be unchanged since the store was completed",
            remedy="Restore its files, or rebuild it with `reptrain tokenize`.",
        )
    return store


@dataclass(frozen=True)
class Training:
    """A pre-training run, ready for its first step."""

    data: Data
    trainer: Trainer
    batches: WindowBatches
    sets: list[EvaluationSet]

    @property
    def select_set(self) -> EvaluationSet:
        """The set that early stopping uses; in a mixture the first source's."""
        return next(one for one in self.sets if one.name.split("/")[0] == "select")


def build_engine(
    config: RunConfig | FinetuneConfig,
    weights: InitialWeights,
    *,
    world: World,
    micro_batch_windows: int,
) -> Engine:
    """Put a model on its device, under DeepSpeed.

    Args:
        config: The run or the fine-tuning, for its settings `train` and `optimizer`.
        weights: The model with its initial weights.
        world: The ranks.
        micro_batch_windows: Rows of one forward pass on one rank.
    """
    import deepspeed

    train = config.train
    allow_tf32(train, world.device)
    weights.check_memory(
        num_ranks=world.world_size if train.zero_stage == 3 else 1,
        on_host=world.ranks_on_host() if world.device.type == "cpu" else 1,
    )
    model = weights.meta_model() if train.zero_stage == 3 else weights.build()
    if train.expert_parallel_size > 1:
        from reptrain.distributed.expert_parallel import spread_experts

        spread_experts(model, size=train.expert_parallel_size, world=world)
    if world.sequence_ranks > 1:
        from reptrain.distributed.sequence_parallel import split_sequences

        split_sequences(model, world, timeout_s=train.rank_timeout_seconds)
    model.recompute = train.activation_checkpointing
    if train.compile == "block":
        compile_blocks(model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    bucket = bucket_elements(
        num_parameters, stage=train.zero_stage, device=world.device.type, given=train.bucket_elements
    )
    settings = deepspeed_config(
        config,
        world_size=world.world_size,
        micro_batch_windows=micro_batch_windows,
        micro_steps=micro_steps_of(train.batch_windows, world.data_ranks, micro_batch_windows),
        bucket_elements=bucket,
        on_gpu=world.device.type == "cuda",
    )
    if world.device.type == "cpu":
        keep_freed_memory(_KEPT_BELOW_BYTES[train.zero_stage])
    if train.zero_stage == 3:
        partition_weights(model, weights.fill, settings, world.device)
        weights.fill_buffers(model)
    else:
        model = model.to(world.device)
    optimizer = build_optimizer(model, config.optimizer)
    engine: Engine
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if train.zero_stage == 0 or (train.zero_stage == 1 and train.bucket_elements is not None):
        # DeepSpeed's configuration has no bucket of stage 0, nor of its optimizer for bf16 at stage 1.
        engine.allreduce_gradients = partial(engine.allreduce_gradients, bucket_size=bucket)
    save_gradient_passes(engine, world_size=world.world_size, on_gpu=world.device.type == "cuda")
    if train.zero_stage > 0 and world.device.type == "cpu":
        # ZeRO has copied the weights.
        release_freed_memory()
    if train.compile == "model":
        engine.compile()
    return engine


def prepare(
    config: RunConfig,
    data: Data,
    world: World,
    parent: SavedModel | None = None,
    checkpoints: Path = Path("checkpoints"),
) -> Training:
    """Build the model, the loader and the evaluation sets, on every rank alike.

    Args:
        config: The run.
        data: Its open stores and plan.
        world: The ranks.
        parent: Initial weights; None draws them by the seed.
        checkpoints: Folder of the run's checkpoints, which may be its teachers.
    """
    micro_batch_windows = config.micro_batch_windows(world.data_ranks)
    weights = InitialWeights(config.model, data.tokenizer.vocab_size, config.seed_of("weights"), parent)
    loader = Loader(
        stream=data.stream,
        plan=data.plan,
        steps=data.steps,
        objective=data.objective,
        rank=world.data_rank,
        world_size=world.data_ranks,
        micro_batch_windows=micro_batch_windows,
        pin=world.device.type == "cuda",
    )
    engine = build_engine(config, weights, world=world, micro_batch_windows=micro_batch_windows)
    sources = zip(data.stores.items(), data.stream.subsets, strict=True)
    sets = evaluation_sets(
        config,
        {name: (store, subset) for (name, store), subset in sources},
        data.tokenizer,
        world=world,
        micro_batch_windows=micro_batch_windows,
    )
    trainer = Trainer(
        engine=engine,
        world=world,
        seed=config.seed_of("dropout"),
        make_example=data.objective.example,
        input_noise=InputNoise.of(config.regularize, data.tokenizer),
        masked_inputs=MaskedInputs.of(config.regularize, data.tokenizer),
        optimizer=config.optimizer,
        schedule=config.schedule,
        regularize=config.regularize,
        slices=WeightSlices.of(engine, rank=world.rank, world_size=world.world_size, device=world.device),
        average=WeightAverage(config.average, engine) if config.average else None,
        teacher=build_teacher(
            config,
            data.teachers,
            checkpoints,
            cycle_ends(config.schedule, data.plan, data.steps),
            world.device,
        ),
        on_nonfinite=config.train.on_nonfinite,
    )
    return Training(data, trainer, WindowBatches(loader), sets)
