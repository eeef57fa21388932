"""A run that begins with the weights of a trained model (`init_from`)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from reptrain.config import RunConfig
from reptrain.config.fingerprint import flatten
from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.errors import ConfigError, ReptrainError, ResumeError
from reptrain.hub.saved_model import TrainedModel, open_trained
from reptrain.model.init import parameter_shapes
from reptrain.runs.parent import Parent, read_parent
from reptrain.text import Tokenizer

# What may change with the data or the budget; of all else the weights know. The shapes are compared first.
_MAY_DIFFER = (
    "init_std", "init_scale", "rope_theta", "rope_scaling", "rope_scaling.*", "sliding_window", "norm_eps",
    "dropout.*", "moe.capacity_factor", "moe.eval_capacity_factor", "moe.min_capacity", "moe.*_coefficient",
    "moe.jitter", "moe.bias_rate", "moe.group_windows", "moe.backend",
)  # fmt: skip


def open_ancestor(config: RunConfig, out: Path, tokenizer: Tokenizer) -> TrainedModel | None:
    """The model whose weights a run begins with; None where it has none, or has a checkpoint of its own.

    Args:
        config: The run.
        out: Its folder, which may not exist yet.
        tokenizer: That of its data.

    Raises:
        ConfigError: If the model has other shapes, computes something else, or has another vocabulary.
        ReptrainError: If there is no such model.
    """
    if config.init_from is None or any((out / "checkpoints").glob("step-*")):
        return None
    ancestor = open_trained(Path(config.init_from))
    _refuse_other_shapes(ancestor, config.model, tokenizer.vocab_size)
    for key, (there, here) in _differing(ancestor, config.model).items():
        if not any(fnmatchcase(key, pattern) for pattern in _MAY_DIFFER):
            raise ConfigError(
                f"model.{key}",
                got=here,
                rule=f"must be {there}, as in {ancestor.path}",
                remedy="Set it so, or leave init_from out.",
            )
    _refuse_another_vocabulary(ancestor, tokenizer)
    return ancestor


def record_ancestor(ancestor: TrainedModel, config: RunConfig, folder: Path) -> None:
    """Write down in the run's folder where its weights come from.

    Raises:
        ResumeError: If the run was begun with other weights, and has no checkpoint yet.
    """
    changed = _differing(ancestor, config.model)
    parent = Parent(
        path=str(ancestor.path.resolve()), step=ancestor.step, weights=ancestor.fingerprint(), changed=changed
    )
    before = read_parent(folder)
    if before is not None and before.weights != parent.weights:
        raise ResumeError(
            f"init_from {config.init_from}",
            got=f"weights {parent.weights}",
            rule=f"must hold the weights {before.weights} with which the run was begun",
            remedy="Restore them, name the checkpoint that was meant, or choose another --out.",
        )
    parent.write(folder)


def _differing(ancestor: TrainedModel, model: ModelConfig) -> dict[str, tuple[Any, Any]]:
    there, here = _settings(ancestor.config), _settings(model)
    # What only one of them has is null in the other, whole sections too. The vocabulary's size is null where
    # it is the tokenizer's; shapes and tokenizers are compared by themselves.
    given = dict(flatten(model.model_dump(mode="json")))
    # What was set comes before what follows from it.
    keys = sorted(
        (there.keys() | here.keys()) - {"vocab_size"}, key=lambda key: (given.get(key) is None, key)
    )
    return {key: (there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}


def _settings(model: ModelConfig) -> dict[str, Any]:
    """A model's settings by dotted key, where null stands for another with that other's value."""
    if isinstance(model, DecoderConfig):
        filled: dict[str, Any] = {
            "num_kv_heads": model.kv_heads,
            "num_stored_layers": model.stack.stored,
            "head_dim": model.head_width,
            "attention_bias": model.attention_biases,
            "mlp_bias": model.has_mlp_bias,
        }
    else:
        filled = {f"num_stored_{part}_layers": getattr(model, part).stored for part in ("encoder", "decoder")}
    if model.moe is not None:
        filled |= {"moe.normalize": model.moe.normalizes, "moe.d_ff": model.moe.d_ff or model.d_ff}
    return dict(flatten(model.model_dump(mode="json"))) | filled


def _refuse_other_shapes(ancestor: TrainedModel, model: ModelConfig, vocab_size: int) -> None:
    if model.family != ancestor.config.family:
        raise ConfigError(
            "model.family",
            got=model.family,
            rule=f"must be {ancestor.config.family}, as in {ancestor.path}",
            remedy="Set it so, or leave init_from out.",
        )
    there = parameter_shapes(ancestor.config, vocab_size=ancestor.rows)
    here = parameter_shapes(model, vocab_size=vocab_size)
    for name in here | there:
        if here.get(name) != there.get(name):
            got, wanted = (
                f"the shape {shapes[name]}" if name in shapes else "no such parameter"
                for shapes in (here, there)
            )
            raise ConfigError(
                f"model, parameter {name}",
                got=got,
                rule=f"must have {wanted}, as in {ancestor.path}",
                remedy="Set model as there (embedding: model.vocab_size), or leave init_from out.",
            )


def _refuse_another_vocabulary(ancestor: TrainedModel, tokenizer: Tokenizer) -> None:
    try:
        known = ancestor.own_tokenizer()
    except ReptrainError:
        # The store of an old run may be gone.
        return
    if known is None or known.fingerprint == tokenizer.fingerprint:
        return
    most = max(known.vocab_size, tokenizer.vocab_size)
    for index in range(most):
        pieces = [one.piece(index) if index < one.vocab_size else None for one in (known, tokenizer)]
        if pieces[0] != pieces[1]:
            raise ConfigError(
                "data",
                got=f"a store whose tokenizer has {pieces[1]!r} as id {index}",
                rule=f"must have {pieces[0]!r} there, as the tokenizer of {ancestor.path}",
                remedy="Make the store with `reptrain tokenize --tokenizer` and that model's tokenizer.",
            )
