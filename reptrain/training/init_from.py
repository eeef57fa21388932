"""Runs that start from the weights of a trained model (`init_from`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reptrain.config.continuation import differing_settings, fixed_difference, unadaptable
from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.errors import ConfigError, ReptrainError, ResumeError
from reptrain.hub.adapted_model import AdaptedModel
from reptrain.hub.saved_model import SavedModel, open_saved_model
from reptrain.model.init import parameter_shapes
from reptrain.runs.ledger import NO_LINE, Ledger, LedgerHead
from reptrain.runs.parent import Parent, read_parent
from reptrain.text import Tokenizer
from reptrain.text.tokenizer import first_other_piece


def open_parent(
    init_from: str | None, model: ModelConfig, out: Path, tokenizer: Tokenizer
) -> SavedModel | None:
    """Open the model that a run starts from; None without `init_from`, or if the run has a checkpoint.

    Args:
        init_from: The setting of the run.
        model: The run's model.
        out: The run's folder, which may not exist yet.
        tokenizer: The tokenizer of the run's data.

    Raises:
        ConfigError: If the model has other shapes, computes something else, or has another vocabulary.
        ReptrainError: If there is no such model.
    """
    if init_from is None or any((out / "checkpoints").glob("step-*")):
        return None
    parent = open_saved_model(Path(init_from))
    if isinstance(model, T5Config) and isinstance(parent.config, DecoderConfig):
        return _adapted(parent, parent.config, model, tokenizer)
    _refuse_other_shapes(parent, model, tokenizer.vocab_size)
    # Shapes come first, since their message is clearer.
    _refuse_other_settings(parent, model)
    refuse_another_vocabulary(parent, tokenizer)
    return parent


def _adapted(
    parent: SavedModel, decoder: DecoderConfig, model: T5Config, tokenizer: Tokenizer
) -> AdaptedModel:
    """A decoder as the parent of an encoder-decoder."""
    if lacking := unadaptable(decoder):
        key, there, needed = lacking
        raise ConfigError(
            f"init_from {parent.path}",
            got=f"a decoder with {key} {there}",
            rule=f"must have {key} {needed} to become an encoder-decoder",
            remedy="Choose another decoder, or leave init_from out.",
        )
    _refuse_other_settings(parent, model)
    adapted = AdaptedModel(parent, model)
    _refuse_other_shapes(adapted, model, tokenizer.vocab_size)
    refuse_another_vocabulary(parent, tokenizer)
    return adapted


def _refuse_other_settings(parent: SavedModel, model: ModelConfig) -> None:
    if differing := fixed_difference(parent.config, model):
        key, there, here = differing
        raise ConfigError(
            f"model.{key}",
            got=here,
            rule=f"must be {there}, as in {parent.path}",
            remedy="Set it to that value, or leave init_from out.",
        )


def weights_at(init_from: str | None) -> str | None:
    """Fingerprint of the weights that `init_from` names; None if there is no model."""
    try:
        return open_saved_model(Path(init_from)).fingerprint() if init_from is not None else None
    except ReptrainError:
        # A run with a checkpoint does not need its parent.
        return None


def record_parent(parent: SavedModel, model: ModelConfig, folder: Path) -> None:
    """Record in the run's folder where its weights come from.

    Raises:
        ResumeError: If the run started from other weights, and has no checkpoint yet.
    """
    if isinstance(parent, AdaptedModel):
        changed: dict[str, tuple[Any, Any]] = {"family": (parent.origin.config.family, model.family)}
    else:
        changed = differing_settings(parent.config, model)
    path = parent.path.resolve()
    record = Parent(
        path=str(path),
        step=parent.step,
        weights=parent.fingerprint(),
        changed=changed,
        beside=path.parent == folder.resolve().parent,
    )
    before = read_parent(folder)
    if before is not None and before.weights != record.weights:
        raise ResumeError(
            f"init_from {parent.path}",
            got=f"weights {record.weights}",
            rule=f"must hold the weights {before.weights} that the run started from",
            remedy="Restore them, name the right checkpoint, or choose another --out.",
        )
    record.write(folder)


def parent_head(parent: SavedModel) -> LedgerHead | None:
    """Where a branch begins in the ledger of its parent; None if the parent is not a run with a ledger."""
    if parent.ledger is None or parent.step is None:
        return None
    head = Ledger(parent.ledger).head()
    return None if head == NO_LINE else LedgerHead(head=head, step=parent.step)


def _refuse_other_shapes(parent: SavedModel, model: ModelConfig, vocab_size: int) -> None:
    if model.family != parent.config.family:
        raise ConfigError(
            "model.family",
            got=model.family,
            rule=f"must be {parent.config.family}, as in {parent.path}",
            remedy="Set it to that value, or leave init_from out.",
        )
    there = parameter_shapes(parent.config, vocab_size=parent.rows)
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
                rule=f"must have {wanted}, as in {parent.path}",
                remedy="Use the model settings of the parent (for the embedding, model.vocab_size),"
                " or remove init_from.",
            )


def refuse_another_vocabulary(parent: SavedModel, tokenizer: Tokenizer) -> None:
    """Refuse a model that was trained with another tokenizer, if its tokenizer is known.

    Raises:
        ConfigError: If an id has another piece.
    """
    try:
        known = parent.own_tokenizer()
    except ReptrainError:
        # The store of an old run may be gone.
        return
    if known is not None and (differing := first_other_piece(known, tokenizer)):
        raise ConfigError(
            "data",
            got=f"a store whose tokenizer has {differing.other!r} as id {differing.id}",
            rule=f"must have {differing.one!r} as this id, like the tokenizer of {parent.path}",
            remedy="Create the store with `reptrain tokenize --tokenizer` and that model's tokenizer.",
        )
