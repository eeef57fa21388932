"""The weights that a training starts from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reptrain.config.model import ModelConfig
from reptrain.hub.saved_model import SavedModel
from reptrain.model import Decoder, EncoderDecoder
from reptrain.model.init import build_model, check_memory, empty_model, initial_weights, meta_model


@dataclass(frozen=True)
class InitialWeights:
    """A model with its initial weights: all at once, or one parameter at a time."""

    config: ModelConfig
    vocab_size: int
    """Number of ids of the tokenizer."""
    seed: int
    """Draws the weights."""
    parent: SavedModel | None = None
    """The model whose weights they are; None draws them."""

    def check_memory(self, *, num_ranks: int, on_host: int) -> None:
        """Refuse weights that do not fit into the memory of this machine.

        Args:
            num_ranks: Ranks that they are partitioned over.
            on_host: Ranks that share its memory.

        Raises:
            ConfigError: If they do not fit.
        """
        check_memory(self.config, self.vocab_size, num_ranks=num_ranks, on_host=on_host)

    def meta_model(self) -> Decoder | EncoderDecoder:
        """The model on the meta device."""
        return meta_model(self.config, vocab_size=self.vocab_size)

    def build(self) -> Decoder | EncoderDecoder:
        """The model with all its weights, in fp32 on the CPU."""
        if self.parent is None:
            return build_model(self.config, vocab_size=self.vocab_size, seed=self.seed)
        model = empty_model(self.config, vocab_size=self.vocab_size)
        self.parent.fill(model)
        return model

    def fill(self, name: str, parameter: Tensor) -> None:
        """Fill one parameter in place.

        Args:
            name: Its name in the model.
            parameter: fp32 on the CPU.
        """
        if self.parent is None:
            parameter.copy_(initial_weights(self.config, name, parameter.shape, self.seed))
        else:
            self.parent.read({name: parameter})

    def fill_buffers(self, model: Decoder | EncoderDecoder) -> None:
        """Fill the buffers of a model whose parameters were filled by `fill`."""
        if self.parent is not None:
            self.parent.fill_buffers(model)
