"""Names of tensors in a Hugging Face folder.

A model may be saved with its output head, as the base class inside it (without that class's prefix), or
through a wrapper that adds a prefix to every name. This module converts all names to those of the class with
a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reptrain.errors import HubError

HEAD = "lm_head.weight"
# Prefixes that torch.compile and data-parallel wrappers add.
_WRAPPERS = ("_orig_mod.", "module.")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf")


def full_names(stored: Iterable[str], prefix: str) -> dict[str, str]:
    """Stored name of each tensor, by its name in the class with a head.

    Example:
        ["h.0.ln_1.weight", "lm_head.weight"] with the prefix "transformer." give
        {"transformer.h.0.ln_1.weight": "h.0.ln_1.weight", "lm_head.weight": "lm_head.weight"}.

    Args:
        stored: Names in the folder's files.
        prefix: Prefix of the base class's names in the class with a head; "" if the names are equal.
    """
    names = {name: name for name in stored}
    unwrapped = True
    while unwrapped and names:
        unwrapped = False
        for wrapper in _WRAPPERS:
            if all(name.startswith(wrapper) for name in names):
                names = {name.removeprefix(wrapper): stored_name for name, stored_name in names.items()}
                unwrapped = True
    if prefix and not any(name.startswith(prefix) for name in names):
        names = {
            name if name == HEAD else f"{prefix}{name}": stored_name for name, stored_name in names.items()
        }
    return names


def refuse_other_weights(folder: Path, expected: str) -> None:
    """Refuse a folder without the expected file; the message names weights in other formats.

    Raises:
        HubError: Always.
    """
    files = sorted({path.name for pattern in _WEIGHTS for path in folder.glob(pattern)})
    remedy = "Check the path: a Hugging Face folder has a config.json and .safetensors files."
    if any(name.startswith("adapter_") for name in files):
        remedy = "It holds an adapter: merge it into its base model (merge_and_unload of peft) and save that."
    elif any(name.endswith(".safetensors") for name in files):
        remedy = "Restore model.safetensors, or model.safetensors.index.json beside its shards."
    elif files:
        remedy = (
            "Load it with transformers and save it again:"
            f' AutoModel.from_pretrained("{folder}").save_pretrained(OUT) writes safetensors.'
            " Use the class with the output head, such as AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    raise HubError(
        f"weights in {folder}",
        got=", ".join(files[:4]) or f"No such file: {expected}",
        rule=f"must be in safetensors files: {expected}, or shards with an index",
        remedy=remedy,
    )
