"""Days, GPU-hours, money and energy of a training run. All are linear in tokens, and so in epochs."""

from __future__ import annotations

from dataclasses import dataclass

from reptrain.analysis.tables import check_positive
from reptrain.config.base import Frozen
from reptrain.errors import AnalysisError


@dataclass(frozen=True)
class Load:
    """What a model costs per token.

    Args:
        parameter_flops: Training FLOPs per token without attention scores, 6 N.
        attention_flops: Training FLOPs per token of attention scores, 12 L H Q T; 0 if unknown.
    """

    parameter_flops: float
    attention_flops: float = 0.0

    @property
    def flops(self) -> float:
        """Training FLOPs per token with attention scores."""
        return self.parameter_flops + self.attention_flops


class Cost(Frozen):
    """The cost of a run."""

    tokens: float
    epochs: float | None
    """None if the number of unique tokens is not given."""
    num_gpus: int
    tokens_per_second: float
    """Of all GPUs."""
    tokens_per_second_per_gpu: float
    rate_source: str
    """`measured` or `MFU`."""
    training_flops: float | None
    mfu_parameters: float | None
    """Model FLOPs utilization by 6 N; None without parameters or peak."""
    mfu_attention: float | None
    """The same with attention scores; None without a shape."""
    seconds: float
    days: float
    gpu_hours: float
    usd: float | None
    usd_per_epoch: float | None
    megawatt_hours: float | None


def cost(
    *,
    tokens: float,
    num_gpus: int,
    tokens_per_second_per_gpu: float | None = None,
    mfu: float | None = None,
    load: Load | None = None,
    peak_flops: float | None = None,
    unique_tokens: float | None = None,
    usd_per_gpu_hour: float | None = None,
    watts: float | None = None,
    pue: float = 1.0,
) -> Cost:
    """The cost of training on a number of tokens.

    Args:
        tokens: Consumed tokens.
        num_gpus: Number of GPUs.
        tokens_per_second_per_gpu: Measured rate; or give `mfu`, `load` and `peak_flops`.
        mfu: Model FLOPs utilization, with attention scores where the load has them.
        load: FLOPs per token.
        peak_flops: Peak of one GPU in FLOP/s.
        unique_tokens: Unique tokens, for the number of epochs.
        usd_per_gpu_hour: Price.
        watts: Power of one GPU.
        pue: Power usage effectiveness: energy of the building over that of the GPUs.

    Raises:
        AnalysisError: If there is no rate, nor `mfu`, `load` and `peak_flops`, or a quantity is not positive.

    Source: Chowdhery et al., PaLM, 2022, appendix B, for MFU: recomputation is not counted.
    """
    check_positive(
        tokens=tokens,
        num_gpus=num_gpus,
        tokens_per_second_per_gpu=tokens_per_second_per_gpu,
        mfu=mfu,
        peak_flops=peak_flops,
        unique_tokens=unique_tokens,
        usd_per_gpu_hour=usd_per_gpu_hour,
        watts=watts,
        pue=pue,
    )
    rate = tokens_per_second_per_gpu
    if rate is None:
        if mfu is None or load is None or peak_flops is None:
            raise AnalysisError(
                "training rate",
                got="neither a measured rate, nor MFU with FLOPs per token and a peak",
                rule="must be known to compute the cost of a run",
                remedy="Give tokens per second per GPU; or the MFU, a model, and the device or its peak.",
            )
        rate = mfu * peak_flops / load.flops
    all_rate = rate * num_gpus
    seconds = tokens / all_rate
    gpu_hours = seconds * num_gpus / 3600.0
    epochs = None if unique_tokens is None else tokens / unique_tokens
    usd = None if usd_per_gpu_hour is None else gpu_hours * usd_per_gpu_hour
    by_parameters = by_attention = None
    if load is not None and peak_flops is not None:
        by_parameters = rate * load.parameter_flops / peak_flops
        by_attention = rate * load.flops / peak_flops if load.attention_flops else None
    return Cost(
        tokens=tokens,
        epochs=epochs,
        num_gpus=num_gpus,
        tokens_per_second=all_rate,
        tokens_per_second_per_gpu=rate,
        rate_source="MFU" if tokens_per_second_per_gpu is None else "measured",
        training_flops=None if load is None else tokens * load.flops,
        mfu_parameters=by_parameters,
        mfu_attention=by_attention,
        seconds=seconds,
        days=seconds / 86400.0,
        gpu_hours=gpu_hours,
        usd=usd,
        usd_per_epoch=None if usd is None or epochs is None else usd / epochs,
        megawatt_hours=None if watts is None else gpu_hours * watts * pue / 1e6,
    )


def cost_text(result: Cost, price: str | None, power: str | None) -> str:
    """A cost for the terminal.

    Args:
        result: The cost.
        price: Where the price is from, with its date.
        power: Where the power is from.
    """
    tokens = f"tokens: {result.tokens:,.0f}"
    if result.epochs is not None:
        tokens += f", {result.epochs:,.4g} epochs"
    lines = [
        tokens,
        f"rate: {result.tokens_per_second_per_gpu:,.4g} tokens/s/GPU ({result.rate_source}) on "
        f"{result.num_gpus:,} GPUs, {result.tokens_per_second:,.0f} tokens/s",
    ]
    if result.training_flops is not None:
        lines.append(f"training FLOPs: {result.training_flops:.4g}")
    if result.mfu_parameters is not None:
        mfu = f"MFU: {result.mfu_parameters:.1%} without attention scores (6N in a decoder)"
        if result.mfu_attention is not None:
            mfu += f", {result.mfu_attention:.1%} with them"
        lines.append(mfu)
    lines.append(f"time: {result.days:,.4g} days, {result.gpu_hours:,.0f} GPU-hours")
    if result.usd is not None:
        money = f"money: ${result.usd:,.0f}"
        if result.usd_per_epoch is not None:
            money += f", ${result.usd_per_epoch:,.0f} an epoch: cost is linear in epochs"
        lines += [money, f"  price: {price}"]
    else:
        lines.append("money: no price is known; give --price or --prices")
    if result.megawatt_hours is not None:
        lines += [f"energy: {result.megawatt_hours:,.4g} MWh", f"  power: {power}"]
    return "\n".join(lines)
