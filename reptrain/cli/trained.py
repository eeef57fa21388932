"""Commands for trained models: export, import and generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reptrain.cli.common import app, show
from reptrain.cli.options import AsJson, Average, Step, TokenizerFile
from reptrain.errors import ConfigError


@app.command("export")
def export_command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder, one of its checkpoints, or an imported model."),
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Hugging Face folder to write.")],
    step: Step = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Data type of the weights.")
    ] = "fp32",
    max_shard_gb: Annotated[
        float, typer.Option("--max-shard-gb", min=1e-6, help="Largest .safetensors file, in 10^9 bytes.")
    ] = 5.0,
    tokenizer: TokenizerFile = None,
    average: Average = False,
    revisions: Annotated[
        bool,
        typer.Option(
            "--revisions",
            help="Write each checkpoint of checkpoint.at_text as DIR/chck_1M and so on, and the newest as"
            " DIR/main.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a Hugging Face folder.

    The architecture is T5, umT5, Switch, Llama, Mistral, Qwen2, Mixtral or GPT-2. Shared layers become
    copies. A model without a class in transformers is refused.
    """
    from reptrain.hub.export import export_model
    from reptrain.hub.revisions import export_revisions

    options: dict[str, Any] = {
        "dtype": dtype,
        "max_shard_bytes": round(max_shard_gb * 1e9),
        "tokenizer": tokenizer,
        "average": average,
    }
    if not revisions:
        done = export_model(run, out, step=step, **options)
        show(done.data(), done.text(), as_json=as_json)
        return
    if step is not None:
        raise ConfigError(
            "--step",
            got=f"{step}, with --revisions",
            rule="must be left out with --revisions, which exports several steps",
            remedy="Leave one of them out.",
        )
    exported = export_revisions(run, out, **options)
    show([one.data() for one in exported], "\n".join(one.text() for one in exported), as_json=as_json)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face folder of safetensors.")],
    out: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write.")],
    as_json: AsJson = False,
) -> None:
    """Import a Hugging Face folder.

    The result can be used by `generate`, `export` and `finetune`, and as `init_from` of a run.
    """
    from reptrain.hub.export import import_model

    done = import_model(source, out)
    show(done.data(), done.text(), as_json=as_json)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="A run, or a Hugging Face folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="Prompt; repeatable.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help='One prompt per line, or .jsonl of {"prompt": ...}.'),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help=".jsonl file to write, instead of printing.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Largest number of new tokens per prompt.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Sampling temperature; 0 decodes greedily.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Nucleus sampling: smallest set of tokens with this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0,
    batch_rows: Annotated[
        int, typer.Option("--batch-rows", help="Prompts per batch; does not change the results.")
    ] = 16,
    step: Step = None,
    tokenizer: TokenizerFile = None,
    average: Average = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts, or fill in hidden spans.

    A decoder continues its prompts. An encoder-decoder fills in the spans that a prompt marks with
    `<extra_id_0>` and further sentinels.
    """
    from reptrain.errors import ConfigError
    from reptrain.files import write_atomically
    from reptrain.generation import Sampling, read_prompts
    from reptrain.generation import generate as write
    from reptrain.hub.saved_model import open_saved_model

    given = (prompt or []) + (read_prompts(prompts) if prompts else [])
    if not given:
        raise ConfigError("prompt", got="none", rule="must be given", remedy="Add --prompt or --prompts.")
    texts = write(
        open_saved_model(model, step, average=average),
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
