"""Commands for the cost of a run, and for the best run within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reptrain.cli.common import app, show
from reptrain.cli.options import AsJson, NumBootstraps, VocabSize, count_option
from reptrain.files import write_atomically

if TYPE_CHECKING:
    from reptrain.analysis.advise import Advice
    from reptrain.analysis.cost import Cost, Load
    from reptrain.analysis.decision import Held
    from reptrain.analysis.first_config import StoreFacts
    from reptrain.analysis.prices import Device

NumGpus = Annotated[int, typer.Option("--gpus", min=1, help="Number of GPUs.")]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Device, such as A100: its peak, price and power."),
]
Mfu = Annotated[
    float | None,
    typer.Option("--mfu", min=0.0, max=1.0, help="Model FLOPs utilization: achieved FLOPs over the peak."),
]
PeakTflops = Annotated[
    float | None,
    typer.Option("--peak-tflops", min=0.0, help="Peak of one GPU.", show_default="the device's"),
]
Price = Annotated[
    float | None,
    typer.Option("--price", min=0.0, metavar="USD", help="Price of a GPU-hour.", show_default="the table's"),
]
Prices = Annotated[
    Path | None,
    typer.Option(
        "--prices", metavar="CSV", help="Your own table of devices and prices.", show_default="built in"
    ),
]
Pue = Annotated[
    float, typer.Option("--pue", min=1.0, help="Energy of the data center divided by that of the GPUs.")
]


UniqueTokens = Annotated[
    int | None, count_option("--unique-tokens", help="Available unique tokens; alternative to --store.")
]
AdvisedStore = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="Token store, to read the number of unique tokens from. Also prints a first configuration.",
    ),
]
NewConfig = Annotated[
    Path | None,
    typer.Option("--out", metavar="YAML", help="With --store: write the first configuration to a new file."),
]
ComputeBudget = Annotated[
    float | None,
    typer.Option(
        "--compute", metavar="FLOPS", help="Budget in training FLOPs; alternative to --gpus and --hours."
    ),
]
Hours = Annotated[
    float | None,
    typer.Option("--hours", min=0.0, help="Hours on these GPUs; needs --mfu, and --device or --peak-tflops."),
]
HoldTokens = Annotated[
    int | None,
    count_option("--hold-tokens", help="Hold the consumed tokens D fixed; only the size is chosen."),
]
HoldRatio = Annotated[
    float | None,
    typer.Option(
        "--hold-tokens-per-parameter",
        metavar="RATIO",
        help="Hold the ratio D/N fixed; only the size is chosen, which also sets D.",
    ),
]
FittedRuns = Annotated[
    Path | None,
    typer.Option(
        "--fit", metavar="STUDY|TABLE", help="Runs to which the law is fitted: a study's folder or a table."
    ),
]
FittedLaw = Annotated[str, typer.Option("--law", help="Law to fit to these runs.")]
FittedMetric = Annotated[
    str, typer.Option("--metric", metavar="COLUMN", help="Column of the loss of these runs.")
]
FittedColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns", metavar="N=COLUMN,...", help="Columns of N, D and U.", show_default="a study's"
    ),
]


@app.command()
def advise(
    unique_tokens: UniqueTokens = None,
    store: AdvisedStore = None,
    out: NewConfig = None,
    compute: ComputeBudget = None,
    gpus: NumGpus = 1,
    hours: Hours = None,
    tokens: HoldTokens = None,
    ratio: HoldRatio = None,
    device: DeviceName = None,
    mfu: Mfu = None,
    peak_tflops: PeakTflops = None,
    price: Price = None,
    prices: Prices = None,
    runs: FittedRuns = None,
    law: FittedLaw = "excess-saturating",
    metric: FittedMetric = "loss_report_final_nats",
    columns: FittedColumns = None,
    num_bootstraps: NumBootstraps = 200,
    as_json: AsJson = False,
) -> None:
    """Recommend size, epochs and regularization for a budget.

    The budget is a number of unique tokens, and training FLOPs or GPU-hours. With --store, also print a
    first configuration, and the source of each setting.
    """
    from reptrain.analysis.advise import Evidence, advice_text, fit_evidence
    from reptrain.analysis.advise import advise as advice_for
    from reptrain.analysis.answer import FitOptions
    from reptrain.analysis.first_config import first_config
    from reptrain.analysis.tables import read_table
    from reptrain.cli.fits import parse_columns

    if (unique_tokens is None) == (store is None):
        raise typer.BadParameter("give --unique-tokens or --store", param_hint="--unique-tokens")
    if out is not None and (store is None or out.exists()):
        problem = "needs --store" if store is None else f"{out} exists; name a new file"
        raise typer.BadParameter(problem, param_hint="--out")
    facts = None if store is None else _store_facts(store)
    available = float(facts.unique_tokens if facts is not None else unique_tokens or 0)
    peak = _peak(device, "bf16", peak_tflops)
    budget = _budget(compute, gpus, hours, mfu, peak, device)
    fit = None
    if runs is not None:
        evidence = Evidence(read_table(runs), metric, parse_columns(columns, ["N", "D", "U"]), law)
        fit = fit_evidence(evidence, available, budget, FitOptions(num_bootstraps=num_bootstraps))
    samples = fit.num_bootstraps if fit else 0
    advice = advice_for(available, budget, fit=fit, samples=samples, held=_held(tokens, ratio))
    data, text = advice.model_dump(mode="json"), advice_text(advice)
    if mfu is not None and peak is not None:
        result, cost_lines = _cost_of_advice(advice, gpus, mfu, peak, price, find_row(prices, device))
        data["cost"] = result.model_dump(mode="json")
        text += f"\n\ncost:\n{cost_lines}"
    if facts is not None:
        config = first_config(advice, facts)
        data["first_config"] = config.data()
        text += f"\n\n{config.text()}"
        if out is not None:
            write_atomically(out, config.yaml())
            text += f"\n\nwritten to {out}; `reptrain train {out}` trains it"
    show(data, text, as_json=as_json)


def _cost_of_advice(
    advice: Advice, gpus: int, mfu: float, peak: float, price: float | None, row: Device | None
) -> tuple[Cost, str]:
    """The cost of the advised run, and its text."""
    from reptrain.analysis.cost import Load, cost_text
    from reptrain.analysis.cost import cost as cost_of

    result = cost_of(
        tokens=advice.tokens,
        num_gpus=gpus,
        mfu=mfu,
        load=Load(6.0 * advice.parameters),
        peak_flops=peak,
        unique_tokens=advice.unique_tokens,
        usd_per_gpu_hour=_price(price, row),
        watts=row.watts if row else None,
    )
    return result, cost_text(result, _price_source(price, row), _power_source(row, 1.0))


def _store_facts(path: Path) -> StoreFacts:
    from reptrain.analysis.first_config import StoreFacts
    from reptrain.store import open_store
    from reptrain.store.remote import address_of

    opened = open_store(path, named_by="--store DIR")
    return StoreFacts(
        address_of(path) or str(path), opened.split("train").num_tokens, opened.manifest.vocab_size
    )


def _held(tokens: int | None, ratio: float | None) -> Held | None:
    """What is held fixed besides the budget."""
    from reptrain.analysis.decision import Held

    if tokens is not None and ratio is not None:
        raise typer.BadParameter(
            "give one of --hold-tokens and --hold-tokens-per-parameter", param_hint="--hold-tokens"
        )
    if ratio is not None:
        return Held("tokens per parameter", ratio)
    return None if tokens is None else Held("tokens", float(tokens))


def _budget(
    compute: float | None,
    gpus: int,
    hours: float | None,
    mfu: float | None,
    peak: float | None,
    device: str | None,
) -> float:
    """Training FLOPs, as given or from GPUs and hours."""
    if (compute is None) == (hours is None):
        raise typer.BadParameter("give --compute, or --gpus and --hours", param_hint="--compute")
    if compute is not None:
        return compute
    if device is not None and peak is None:
        raise typer.BadParameter(f"{device!r} has no known peak; give --peak-tflops", param_hint="--device")
    if hours is None or mfu is None or peak is None:
        raise typer.BadParameter("needs --mfu, and --device or --peak-tflops", param_hint="--hours")
    budget = hours * 3600.0 * gpus * peak * mfu
    if not 0 < budget < float("inf"):
        problem = f"hours, MFU and peak must be above zero and finite; they give {budget:g} FLOPs"
        raise typer.BadParameter(problem, param_hint="--hours")
    return budget


@app.command()
def cost(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="YAML file of a run or of a model, for FLOPs per token."),
    ] = None,
    tokens: Annotated[int | None, count_option("--tokens", help="Tokens to consume.")] = None,
    unique_tokens: Annotated[
        int | None, count_option("--unique-tokens", help="Unique tokens, with --epochs in place of --tokens.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0.0, help="Epochs over the unique tokens.")
    ] = None,
    gpus: NumGpus = 1,
    device: DeviceName = None,
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16"],
        typer.Option("--precision", help="Precision for which the peak of the device is taken."),
    ] = "bf16",
    rate: Annotated[
        float | None,
        typer.Option("--tokens-per-second", min=0.0, metavar="RATE", help="Measured tokens/s per GPU."),
    ] = None,
    mfu: Mfu = None,
    peak_tflops: PeakTflops = None,
    parameters: Annotated[
        int | None, count_option("--parameters", help="Parameters, in place of a file: 6 N FLOPs per token.")
    ] = None,
    price: Price = None,
    prices: Prices = None,
    pue: Pue = 1.0,
    vocab_size: VocabSize = None,
    as_json: AsJson = False,
) -> None:
    """Compute days, GPU-hours, money and energy of a run.

    The time follows from a measured rate, or from an MFU and the peak of the device.
    """
    from reptrain.analysis.cost import cost as compute
    from reptrain.analysis.cost import cost_text

    row = find_row(prices, device)
    result = compute(
        tokens=_tokens(tokens, unique_tokens, epochs),
        num_gpus=gpus,
        tokens_per_second_per_gpu=rate,
        mfu=mfu,
        load=_load(config, parameters, vocab_size),
        peak_flops=_peak(device, precision, peak_tflops),
        unique_tokens=unique_tokens,
        usd_per_gpu_hour=_price(price, row),
        watts=row.watts if row else None,
        pue=pue,
    )
    price_source, power = _price_source(price, row), _power_source(row, pue)
    data = {**result.model_dump(mode="json"), "price_source": price_source, "power_source": power}
    show(data, cost_text(result, price_source, power), as_json=as_json)


def _tokens(tokens: int | None, unique_tokens: int | None, epochs: float | None) -> float:
    if (tokens is None) == (epochs is None):
        raise typer.BadParameter("give --tokens, or --epochs with --unique-tokens", param_hint="--tokens")
    if tokens is not None:
        return float(tokens)
    if unique_tokens is None or epochs is None:
        raise typer.BadParameter("needs --unique-tokens", param_hint="--epochs")
    return unique_tokens * epochs


def _load(config: Path | None, parameters: int | None, vocab_size: int | None) -> Load | None:
    from reptrain.analysis.cost import Load
    from reptrain.config.model import DecoderConfig
    from reptrain.sizes import load_subject, published_flops_per_token

    if config is not None and parameters is not None:
        raise typer.BadParameter("give a file or --parameters, not both", param_hint="--parameters")
    if parameters is not None:
        return Load(6.0 * parameters)
    if config is None:
        return None
    subject = load_subject(config, vocab_size=vocab_size)
    if isinstance(subject.model, DecoderConfig):
        flops = published_flops_per_token(subject.model, subject.vocab_size, subject.shape.target_tokens)
        by_parameters = 6.0 * subject.parameters.run
        return Load(by_parameters, flops - by_parameters)
    # 6 N assumes that all parameters see the same positions: count the products instead.
    forward = subject.forward
    return Load(3.0 * forward.products / subject.window_tokens, 3.0 * forward.scores / subject.window_tokens)


def _peak(
    device: str | None, precision: Literal["fp32", "tf32", "bf16", "fp16"], tflops: float | None
) -> float | None:
    from reptrain.sizes import peak_flops

    if tflops is not None:
        return tflops * 1e12
    return peak_flops(device, precision) if device else None


def find_row(prices: Path | None, device: str | None) -> Device | None:
    """The device's row of the table of prices; None if there is none."""
    from reptrain.analysis.prices import find_device, read_devices

    return find_device(read_devices(prices), device) if device else None


def _price(given: float | None, row: Device | None) -> float | None:
    return given if given is not None or row is None else row.usd_per_gpu_hour


def _price_source(given: float | None, row: Device | None) -> str | None:
    if given is not None:
        return f"${given:g} a GPU-hour, as given"
    if row is None or row.usd_per_gpu_hour is None:
        return None
    return f"${row.usd_per_gpu_hour:g} a GPU-hour; {row.price_source}; date: {row.price_date or 'not given'}"


def _power_source(row: Device | None, pue: float) -> str | None:
    return f"{row.watts:g} W ({row.watts_source}), PUE {pue:g}" if row and row.watts else None
