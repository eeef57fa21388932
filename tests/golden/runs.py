"""The text and the runs of the golden record."""

from __future__ import annotations

import random
from collections.abc import Iterator

DECODER = [
    *("model.d_model=32", "model.d_ff=48", "data.unique_tokens=4000", "data.window_tokens=32"),
    *("train.batch_windows=12", "train.total_tokens=1.5epochs", "train.device=cpu"),
    *("evaluate.max_windows=8", "evaluate.every_fraction=0.5", "checkpoint.every_fraction=0.25"),
]
T5 = [
    *(setting for setting in DECODER if "window_tokens" not in setting),
    *("model.num_encoder_layers=1", "model.num_decoder_layers=2", "model.num_heads=2", "model.head_dim=8"),
]
DROPOUT = [f"model.dropout.{site}=0.1" for site in ("embedding", "attention", "residual", "mlp")]
# Names of runs, with the file in configs/tiny that each begins from and its settings.
RUNS: dict[str, tuple[str, list[str]]] = {
    "decoder": ("decoder", [*DECODER, *DROPOUT]),
    "shifted": ("decoder", [*DECODER, "data.cut=shifted", "train.total_tokens=2.5epochs"]),
    "prefix": ("decoder-prefix", [*DECODER, *DROPOUT, "data.document_mask=true"]),
    "diffusion": ("decoder-diffusion", [*DECODER, *DROPOUT, "evaluate.noise_samples=2"]),
    "moe": ("decoder-moe", [*DECODER, *DROPOUT, "model.dropout.expert=0.1"]),
    "regularized": (
        "decoder",
        [
            *(*DECODER, *DROPOUT, "average={decay: 0.9}", "model.dropout.path={value: 0.2, start: 50%}"),
            "regularize={label_smoothing: 0.1, z_loss: 1e-3, input_noise: 0.1}",
        ],
    ),
    "t5": ("t5", [*T5, *DROPOUT, "objective.input_tokens=32", "data.document_mask=true"]),
    "ul2": ("t5-ul2", [*T5, *DROPOUT, "data.window_tokens=32", "objective.noise=frozen"]),
    "mixture": (
        "decoder",
        [
            *(*DECODER, "data.store=null", "data.unique_tokens=null", "train.total_tokens=null"),
            "data.sources.first={store: 'STORE', unique_tokens: 1200, total_tokens: 3.5epochs}",
            "data.sources.second={store: 'STORE', unique_tokens: 1000, subset_seed: 1, cut: shifted}",
        ],
    ),
    "resumed": ("decoder", [*DECODER, *DROPOUT, "train.total_tokens=6epochs"]),
    "two ranks": ("decoder", [*DECODER, *DROPOUT, "train.zero_stage=1"]),
}
QUICK = ("decoder", "mixture", "diffusion")
"""Those that `make test` runs again."""


def documents() -> Iterator[dict[str, str]]:
    """Sentences of made-up words, of which the later ones in a document repeat the earlier."""
    draw = random.Random(0)

    def pick(items: list[str]) -> str:
        # Of all draws `random()` alone is promised to stay as it is.
        return items[int(draw.random() ** 2 * len(items))]

    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ["".join(pick(syllables) for _ in range(1 + number % 3)) for number in range(400)]
    for number in range(300):
        topic = [pick(words) for _ in range(12)]
        count = 3 + int(draw.random() * 12)
        sentences = (" ".join(pick(topic) for _ in range(8)).capitalize() + "." for _ in range(count))
        yield {"id": f"document-{number}", "text": " ".join(sentences)}
