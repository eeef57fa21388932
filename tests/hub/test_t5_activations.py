"""Activations that T5 in transformers does not have."""

import pytest

from reptrain.config.model import T5Config
from reptrain.errors import HubError
from reptrain.hub.t5 import T5


def test_t5_refuses_to_export_an_unknown_activation() -> None:
    config = T5Config(family="t5").model_copy(update={"mlp": "reglu"})
    with pytest.raises(HubError, match=r"model\.mlp .* got reglu"):
        T5.write(config)
