"""Names of tensors in a Hugging Face folder.

One model may be saved under several sets of names: with its head or as the base class inside it (without
that class's prefix), or through a wrapper that puts its own prefix before every name. Here each becomes the
name that the class with a head has.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reptrain.errors import HubError

HEAD = "lm_head.weight"
# Put before all names by torch.compile and by data-parallel wrappers.
_WRAPPERS = ("_orig_mod.", "module.")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf")


def full_names(stored: Iterable[str], prefix: str) -> dict[str, str]:
    """The stored name of each tensor, by the name that it has in the class with a head.

    Example:
        ["h.0.ln_1.weight", "lm_head.weight"] with the prefix "transformer." give
        {"transformer.h.0.ln_1.weight": "h.0.ln_1.weight", "lm_head.weight": "lm_head.weight"}.

    Args:
        stored: Names in the folder's files.
        prefix: Of the base class inside of the class with a head; "" where names are the same in both.
    """
    names = {name: name for name in stored}
    unwrapped = True
    while unwrapped and names:
        unwrapped = False
        for wrapper in _WRAPPERS:
            if all(name.startswith(wrapper) for name in names):
                names = {name.removeprefix(wrapper): found for name, found in names.items()}
                unwrapped = True
    if prefix and not any(name.startswith(prefix) for name in names):
        names = {name if name == HEAD else f"{prefix}{name}": found for name, found in names.items()}
    return names


def refuse_other_weights(folder: Path, expected: str) -> None:
    """Refuse a folder without the expected file, naming the weights that it has in another form.

    Raises:
        HubError: Always.
    """
    found = sorted({path.name for pattern in _WEIGHTS for path in folder.glob(pattern)})
    remedy = "Check the path: a Hugging Face folder has a config.json and .safetensors files."
    if any(name.startswith("adapter_") for name in found):
        remedy = "It holds an adapter: merge it into its base model (merge_and_unload of peft) and save that."
    elif any(name.endswith(".safetensors") for name in found):
        remedy = "Restore model.safetensors, or model.safetensors.index.json beside its shards."
    elif found:
        remedy = (
            "Load it with transformers and save it again:"
            f' AutoModel.from_pretrained("{folder}").save_pretrained(OUT) writes safetensors.'
            " Take the class with the output head, such as AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    raise HubError(
        f"weights in {folder}",
        got=", ".join(found[:4]) or f"No such file: {expected}",
        rule=f"must be in safetensors, as {expected} or in shards with an index",
        remedy=remedy,
    )
