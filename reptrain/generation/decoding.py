"""Text generation, one token at a time.

Shapes: B rows of a batch, S positions of the encoder, T positions of the decoder, V ids, E end ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.config.objectives import Reading
from reptrain.distributed.world import World, choose_device
from reptrain.errors import ConfigError
from reptrain.generation.prompts import decode_text, encode_prompt
from reptrain.generation.sampling import Sampling
from reptrain.hub.saved_model import SavedModel, open_saved_model
from reptrain.hub.tokenizer_files import SpecialIds
from reptrain.model import Decoder, EncoderDecoder
from reptrain.model.cache import Cache


class Generated(NamedTuple):
    """The text generated for a prompt."""

    prompt: str
    text: str
    tokens: list[int]
    """Ids of the text, with its end id."""
    ended: Literal["end", "length"]
    """end: the model generated an end id; length: the maximum length was reached."""


class _Batch(NamedTuple):
    ids: list[list[int]]
    row_B: Tensor
    """int64, on the CPU: indices of the prompts."""


@dataclass(frozen=True)
class Writer:
    """Generates texts with a model.

    Args:
        model: The model, in evaluation mode.
        special: Start and end ids of a text.
        num_ids: Number of ids of the tokenizer; larger ids are never generated.
        reading: How a decoder treats its prompts.
    """

    model: Decoder | EncoderDecoder
    special: SpecialIds
    num_ids: int
    reading: Reading = "causal"
    world: World | None = None
    """The ranks of a partitioned model: all make as many forward passes as the one with the longest text."""

    @torch.no_grad()
    def write(
        self, prompts: Sequence[list[int]], *, max_new_tokens: int, sampling: Sampling, batch_rows: int
    ) -> Iterator[list[int]]:
        """Generate a continuation of each prompt, up to and including an end id.

        Args:
            prompts: Ids of each prompt.
            max_new_tokens: Maximum number of generated tokens for each prompt.
            sampling: How tokens are chosen.
            batch_rows: Prompts in a batch; does not change the results.
        """
        for first in range(0, len(prompts), batch_rows):
            ids = list(prompts[first : first + batch_rows])
            batch = _Batch(ids, torch.arange(first, first + len(ids)))
            yield from self._write_batch(batch, max_new_tokens, sampling)

    def _write_batch(self, batch: _Batch, max_new_tokens: int, sampling: Sampling) -> list[list[int]]:
        begin = self._begin_decoder if isinstance(self.model, Decoder) else self._begin_encoder_decoder
        logits_BV, step = begin(batch, max_new_tokens)
        end_E = torch.tensor(self.special.ends, dtype=torch.int64, device=logits_BV.device)
        running_B = torch.ones(len(batch.ids), dtype=torch.bool, device=logits_BV.device)
        chosen: list[Tensor] = []
        kept: list[Tensor] = []
        for position in range(max_new_tokens):
            token_B = sampling.choose(logits_BV[:, : self.num_ids], batch.row_B, position)
            chosen.append(token_B)
            kept.append(running_B)
            running_B = running_B & ~torch.isin(token_B, end_E)
            if position + 1 == max_new_tokens or not self._any_runs(running_B):
                break
            logits_BV = step(token_B[:, None], running_B[:, None])
        token_BT, kept_BT = torch.stack(chosen, dim=1).tolist(), torch.stack(kept, dim=1).tolist()
        return [
            [token for token, is_kept in zip(tokens, are_kept, strict=True) if is_kept]
            for tokens, are_kept in zip(token_BT, kept_BT, strict=True)
        ]

    def _any_runs(self, running_B: Tensor) -> bool:
        """Whether a text of this batch, or of one of another rank, has not ended."""
        runs = bool(running_B.any())
        return runs if self.world is None else bool(self.world.max(int(runs)))

    def _begin_decoder(self, batch: _Batch, max_new_tokens: int) -> tuple[Tensor, _Step]:
        model = self.model
        start = [] if self.special.start is None else [self.special.start]
        if self.reading == "inputs":
            rows = [[*ids, *self.special.ends[:1], *start] for ids in batch.ids]
        else:
            rows = [[*start, *ids] for ids in batch.ids]
        tokens_BT, is_token_BT = self._pad(rows)
        prefix_B = None
        if self.reading != "causal":
            # The start token of the output does not belong to the inputs.
            prefix_B = is_token_BT.sum(1) - (len(start) if self.reading == "inputs" else 0)
        assert isinstance(model.config, DecoderConfig)
        cache = self._cache(model.config.num_layers, tokens_BT, max_new_tokens)

        def step(tokens_BT: Tensor, is_token_BT: Tensor) -> Tensor:
            logits_BTV: Tensor = model(tokens_BT, is_token_BT=is_token_BT, cache=cache)
            return logits_BTV[:, 0]

        first_B1V = model(tokens_BT, is_token_BT=is_token_BT, prefix_B=prefix_B, cache=cache)
        return first_B1V[:, 0], step

    def _begin_encoder_decoder(self, batch: _Batch, max_new_tokens: int) -> tuple[Tensor, _Step]:
        model = self.model
        source_BS, is_source_BS = self._pad([[*ids, *self.special.ends[:1]] for ids in batch.ids])
        segments_BS = is_source_BS.long()
        states_BSD = model.encode(source_BS, segments_BS)
        inputs_B1 = torch.full_like(source_BS[:, :1], self.special.start or 0)
        assert isinstance(model.config, T5Config)
        cache = self._cache(model.config.num_decoder_layers, inputs_B1, max_new_tokens)

        def step(inputs_BT: Tensor, is_token_BT: Tensor) -> Tensor:
            logits_BTV: Tensor = model.decode(
                inputs_BT, is_token_BT.long(), states_BSD, segments_BS, cache=cache
            )
            return logits_BTV[:, 0]

        return step(inputs_B1, torch.ones_like(inputs_B1, dtype=torch.bool)), step

    def _cache(self, num_layers: int, tokens_BT: Tensor, max_new_tokens: int) -> Cache:
        rows, positions = tokens_BT.shape
        return Cache(num_layers, rows, positions + max_new_tokens, tokens_BT.device)

    def _pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        device = self.model.embedding.weight.device
        longest = max(len(ids) for ids in rows)
        tokens_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows], device=device)
        length_B = torch.tensor([len(ids) for ids in rows], device=device)
        return tokens_BT, torch.arange(longest, device=device) < length_B[:, None]


_Step = Callable[[Tensor, Tensor], Tensor]
"""From the next tokens and their mask, both [B, T], to the logits [B, V] of the token after them."""


def generate(
    source: Path | SavedModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    batch_rows: int = 16,
    step: int | None = None,
    tokenizer: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[Generated]:
    """Generate texts: continuations of the prompts, or the outputs of an encoder-decoder for them.

    Sparse layers never drop tokens, whatever capacity they were trained with.

    Args:
        source: A run folder, one of its checkpoints, an imported model, or a Hugging Face folder.
        prompts: The prompts; ``<extra_id_0>`` stands for the tokenizer's sentinel.
        max_new_tokens: Maximum number of generated tokens for each prompt.
        sampling: How tokens are chosen; None: greedily.
        batch_rows: Prompts in a batch; does not change the results.
        step: Step of the checkpoint; None: the newest intact one.
        tokenizer: File of the tokenizer, if the model's own is not available.
        device: The device to compute on.

    Raises:
        ReptrainError: If the model or tokenizer is missing, or a prompt is too long, or a prompt is empty and
            the model has no start id.
    """
    for name, value in (("max-new-tokens", max_new_tokens), ("batch-rows", batch_rows)):
        if value < 1:
            raise ConfigError(name, got=value, rule="must be at least 1", remedy="Use a larger value.")
    trained = source if isinstance(source, SavedModel) else open_saved_model(source, step)
    if trained.reading == "unordered":
        raise ConfigError(
            f"objective of {trained.path}",
            got="masked_diffusion",
            rule="must be autoregressive",
            remedy="Generation from masked diffusion models is not supported yet.",
        )
    pieces = trained.tokenizer(tokenizer)
    special = trained.special_ids(pieces)
    encoded = [encode_prompt(pieces, prompt) for prompt in prompts]
    _check_lengths(trained.config, encoded, max_new_tokens, special)
    model = trained.load(without_capacity(trained.config)).to(choose_device(device))
    written = Writer(model, special, pieces.vocab_size, trained.reading).write(
        encoded, max_new_tokens=max_new_tokens, sampling=sampling or Sampling(), batch_rows=batch_rows
    )
    return [
        Generated(
            prompt, decode_text(pieces, tokens), tokens, "end" if tokens[-1] in special.ends else "length"
        )
        for prompt, tokens in zip(prompts, written, strict=True)
    ]


def without_capacity(config: ModelConfig) -> ModelConfig:
    """The configuration without capacity limits, under which dropped tokens depend on the other rows."""
    if config.moe is None:
        return config
    moe = config.moe.model_copy(update={"capacity_factor": None, "eval_capacity_factor": None})
    return config.model_copy(update={"moe": moe})


def _check_lengths(
    config: ModelConfig, prompts: Sequence[list[int]], max_new_tokens: int, special: SpecialIds
) -> None:
    if not isinstance(config, DecoderConfig):
        return
    # A start token, and EOS after inputs.
    num_special = 2 if special.start is not None else 0
    if not num_special and not all(prompts):
        raise ConfigError(
            "prompt",
            got="an empty one",
            rule="must not be empty: the model has no start token",
            remedy="Pass a text.",
        )
    longest = max((len(ids) for ids in prompts), default=0) + num_special + max_new_tokens
    if config.max_positions is not None and longest > config.max_positions:
        raise ConfigError(
            "prompt and max-new-tokens",
            got=f"{longest} tokens together",
            rule=f"must fit the model's {config.max_positions} positions",
            remedy="Shorten the prompt, or lower --max-new-tokens.",
        )
