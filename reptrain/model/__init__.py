"""The transformers (`Decoder`, `EncoderDecoder`) and their layers."""

from reptrain.model.decoder import Decoder
from reptrain.model.dropout import DropoutContext
from reptrain.model.encoder_decoder import EncoderDecoder
from reptrain.model.init import build_model, parameter_groups
from reptrain.model.input_digest import Witness
from reptrain.model.sparse import Routing

__all__ = [
    "Decoder",
    "DropoutContext",
    "EncoderDecoder",
    "Routing",
    "Witness",
    "build_model",
    "parameter_groups",
]
