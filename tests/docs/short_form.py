"""Makes a command of the documentation small enough for a test of seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

_SMALL = ["data.unique_tokens=2**10", "train.batch_windows=4", "evaluate.max_windows=4", "train.device=cpu"]


def shorten(arguments: list[str]) -> list[str]:
    """A `reptrain` command's arguments with overrides appended; of an option given twice the last counts."""
    command = arguments[0]
    if command in ("train", "launch"):
        budgets = [argument for argument in arguments if argument.startswith("train.total_tokens=")]
        is_short = "train.total_tokens=1epochs" in budgets
        small = [*_SMALL, *([] if is_short else ["train.total_tokens=2epochs"])]
        stop = ["--max-minutes", "0.0001"] if "--max-minutes" in arguments else []
        return [*arguments, *small, *stop]
    if arguments[:2] == ["study", "run"]:
        one_arm = "arms=[{name: repeated, set: {data.unique_tokens: 2**10}}]"
        return [
            *arguments,
            one_arm,
            "claims=[]",
            "fits=[]",
            "then=[]",
            "seeds=[0]",
            "train.total_tokens=2**11",
            *_SMALL[1:],
        ]
    if command == "tokenize":
        return [*arguments, "--vocab-size", "400", "--processes", "1"]
    if command == "demo":
        _reuse_demo_store()
        out = [] if "--out" in arguments or "--quick" in arguments else ["--out", "runs/demo"]
        text = [] if "--text" in arguments else ["--text", "my_text"]
        return [*arguments, "--quick", "--store-only", *text, *out]
    if command == "generate":
        return [*arguments, "--max-new-tokens", "4"]
    return arguments


def _reuse_demo_store() -> None:
    """Give the quick demo the store that an earlier command made; `demo` checks and keeps it."""
    made, wanted = Path("runs/demo"), Path("runs/demo-quick")
    if made.exists() and not wanted.exists():
        shutil.copytree(made, wanted)


def is_repeated(arguments: list[str]) -> bool:
    """Whether an earlier page ran this very command, whose results are still in the folder."""
    known, command = Path("commands.txt"), " ".join(arguments)
    earlier = known.read_text().splitlines() if known.exists() else []
    known.write_text("\n".join([*earlier, command]))
    return command in earlier
