"""What the parts of a configuration are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from reptrain.config.quantities import Count

Positive = Annotated[Count, Field(gt=0)]
NonNegative = Annotated[Count, Field(ge=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[Count, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """Base of all settings: immutable, and no unknown key passes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
