"""Commands for trained models: out of the house, into it, and what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from reptrain.cli.common import AsJson, app, show

Step = Annotated[
    int | None, typer.Option("--step", help="Of the run, whose checkpoint.", show_default="the newest")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", help="Its file, where the run's store has gone.")
]

Average = Annotated[
    bool, typer.Option("--average", help="Take the average of the weights, of a run that keeps one.")
]


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or an imported model.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The Hugging Face folder to make.")],
    step: Step = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Of the weights.")
    ] = "fp32",
    max_shard_gb: Annotated[
        float, typer.Option("--max-shard-gb", min=1e-6, help="Largest .safetensors file, in 10^9 bytes.")
    ] = 5.0,
    tokenizer: TokenizerFile = None,
    average: Average = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a Hugging Face folder: T5, umT5, Switch, Llama, Mistral, Qwen2, Mixtral or GPT-2.

    Shared layers become copies. What transformers has no model for is refused by name.
    """
    from reptrain.hub.export import export_model

    done = export_model(
        run,
        out,
        step=step,
        dtype=dtype,
        max_shard_bytes=round(max_shard_gb * 1e9),
        tokenizer=tokenizer,
        average=average,
    )
    show(done.data(), done.text(), as_json=as_json)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face folder of safetensors.")],
    out: Annotated[Path, typer.Argument(metavar="RUN", help="The folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Take a Hugging Face folder in, as a model to generate from, to export and to continue (init_from)."""
    from reptrain.hub.export import import_model

    done = import_model(source, out)
    show(done.data(), done.text(), as_json=as_json)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="A run, or a Hugging Face folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="May be given several times.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help='A prompt a line, or .jsonl of {"prompt": ...}.'),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write .jsonl there.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="At most, of each prompt.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw from the most likely tokens that together reach it.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Keys the draws, with prompt and position.")] = 0,
    batch_rows: Annotated[int, typer.Option("--batch-rows", help="Prompts at a time; changes nothing.")] = 16,
    step: Step = None,
    tokenizer: TokenizerFile = None,
    average: Average = False,
    as_json: AsJson = False,
) -> None:
    """Let a decoder go on with a text, or an encoder-decoder answer it: <extra_id_0> is a hidden span."""
    from reptrain.errors import ConfigError
    from reptrain.files import write_atomically
    from reptrain.generation import Sampling, read_prompts
    from reptrain.generation import generate as write
    from reptrain.hub.saved_model import open_trained

    given = (prompt or []) + (read_prompts(prompts) if prompts else [])
    if not given:
        raise ConfigError("prompt", got="none", rule="must be given", remedy="Add --prompt or --prompts.")
    texts = write(
        open_trained(model, step, average=average),
        given,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p, seed),
        batch_rows=batch_rows,
        tokenizer=tokenizer,
    )
    rows = [text._asdict() for text in texts]
    if out is not None:
        write_atomically(out, [json.dumps(row, ensure_ascii=False) + "\n" for row in rows])
        show({"out": str(out), "texts": len(rows)}, f"{len(rows)} texts in {out}", as_json=as_json)
    else:
        shown = [f"{text.prompt} → {text.text}" for text in texts]
        show(rows, "\n".join(shown), as_json=as_json)
