"""Replays the first steps of a run in plain torch, on one rank and without micro-batches.

It shares no code with reptrain or its kernels: formulas and masks are from docs/format.md, batches from the
independent auditor. All is computed in float64, so what differs from the run is the run's rounding.

B: rows; T: positions; S: keys; D: width; H: heads; N: width of a head; F: hidden units; E: experts.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from independent_evidence import read_config, seed_of
from independent_inputs import NO_TARGET, Examples, Noise, Stream, fold, words
from independent_windows import U64, Run
from safetensors import safe_open
from torch import Tensor

EMBEDDING, WEIGHTS, ATTENTION, HIDDEN, RESIDUAL, CROSS_WEIGHTS, CROSS, OUTPUT, _, EXPERT = range(10)
MLP_OUTPUT, EXPERT_OUTPUT = 14, 15
INTO_RESIDUAL = ("attention.output.weight", "down.weight", "experts.down")


def kept(key: np.ndarray, num_positions: int, num_units: int, rate: float) -> Tensor | float:
    """What dropout multiplies its input by: 0, or the inverse of the share that is kept."""
    if rate == 0:
        return 1.0
    threshold = round(rate * 2**32)
    mask = words(key, num_positions, num_units) >= threshold
    return torch.from_numpy(mask * (2**32 / (2**32 - threshold)))


def initial_weight(settings: dict[str, Any], name: str, shape: list[int]) -> np.ndarray:
    if len(shape) == 1:
        return np.zeros(shape) if name.endswith("bias") else np.ones(shape)
    get = {key.removeprefix("model."): value for key, value in settings.items()}.get
    if settings["model.family"] == "decoder":
        std = get("init_std") / (math.sqrt(2 * get("num_layers")) if name.endswith(INTO_RESIDUAL) else 1)
    elif name == "embedding.weight":
        std = 1.0
    elif name.endswith("router.weight"):
        std = 0.02
    elif "relative_bias" in name:
        std = get("d_model") ** -0.5
    else:
        inputs = shape[-1] * (get("head_dim") if name.endswith(".query.weight") else 1)
        std = math.sqrt(get("init_scale") / inputs)
    digest = hashlib.sha256(f"{seed_of(settings, 'weights')}/{name}".encode()).digest()
    normal = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return (normal.standard_normal(shape, np.float32) * np.float32(std)).astype(np.float64)


class Model:
    """A decoder or a T5, with dense or sparse layers.

    Args:
        settings: The run's configuration by dotted key.
        shapes: Shape of each parameter.
    """

    def __init__(self, settings: dict[str, Any], shapes: dict[str, list[int]]) -> None:
        self.settings = settings
        self.p = {
            name: torch.tensor(initial_weight(settings, name, shape), requires_grad=True)
            for name, shape in shapes.items()
        }
        self.is_t5 = settings["model.family"] == "t5"
        self.heads = int(settings["model.num_heads"])
        self.row_key = np.zeros(0, U64)
        self.router_loss: Tensor | float = 0.0

    def rate(self, site: str) -> float:
        return float(self.settings[f"model.dropout.{site}"])

    def key(self, layer: int, site: int) -> np.ndarray:
        return fold(self.row_key, 16 * layer + site)

    def drop(self, x_BTU: Tensor, layer: int, site: int, rate: str) -> Tensor:
        return x_BTU * kept(self.key(layer, site), *x_BTU.shape[1:], self.rate(rate))

    def logits(self, streams: list[Stream], step: int, rows: np.ndarray, num_targets_B: Tensor) -> Tensor:
        seed = seed_of(self.settings, "dropout")
        self.row_key = fold(fold(fold(np.zeros(rows.size, U64), seed), step), rows)
        self.num_targets_B, self.router_loss = num_targets_B, 0.0
        return self._t5(*streams) if self.is_t5 else self._decoder(streams[0])

    # The two families.

    def _decoder(self, stream: Stream) -> Tensor:
        ids, segments = torch.from_numpy(stream.ids), torch.from_numpy(stream.segments)
        num_positions = ids.shape[1]
        position = torch.arange(num_positions)
        masks = self.settings["data.document_mask"]
        sees = position[:, None] >= position
        sees = sees | (position < torch.from_numpy(stream.prefix)[:, None, None])
        if masks:
            sees = sees & (segments[:, :, None] == segments[:, None, :])
        place_BT = self._places(segments) if masks else position.expand_as(ids)
        x = self.drop(self.p["embedding.weight"][ids], 0, EMBEDDING, "embedding")
        for layer in range(self.settings["model.num_layers"]):
            name = f"blocks.{layer}"
            normed = self.norm(x, f"{name}.attention_norm")
            q, k, v = (self._heads(normed, f"{name}.attention.{part}") for part in ("query", "key", "value"))
            q, k = self._rotated(q, place_BT), self._rotated(k, place_BT)
            groups = self.heads // k.shape[1]
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            mixed = self._attend(score, v, sees[:, None], layer, WEIGHTS, f"{name}.attention")
            x = x + self.drop(mixed, layer, ATTENTION, "residual")
            x = self._mlp(x, name, layer, segments > 0)
        return self.norm(x, "norm") @ self._head().T

    def _t5(self, encoder: Stream, decoder: Stream) -> Tensor:
        num_encoder = self.settings["model.num_encoder_layers"]
        source_segments = torch.from_numpy(encoder.segments)
        states = self._stack("encoder", encoder, 0, num_encoder, None, None)
        layers = self.settings["model.num_decoder_layers"]
        x = self._stack("decoder", decoder, num_encoder, layers, states, source_segments)
        scale = self.settings["model.d_model"] ** -0.5 if self.settings["model.tie_embeddings"] else 1.0
        return x * scale @ self._head().T

    def _stack(
        self, stack: str, stream: Stream, first: int, count: int, states: Tensor | None, other: Tensor | None
    ) -> Tensor:
        segments = torch.from_numpy(stream.segments)
        causal = states is not None
        num_positions = segments.shape[1]
        offset = torch.arange(num_positions) - torch.arange(num_positions)[:, None]
        bias = self.p[f"{stack}.relative_bias.table.weight"][self._buckets(offset, not causal)].permute(
            2, 0, 1
        )
        sees = (segments[:, :, None] == segments[:, None, :]) & (offset <= 0 if causal else True)
        x = self.p["embedding.weight"][torch.from_numpy(stream.ids)]
        x = self.drop(x, first, EMBEDDING, "embedding")
        for layer in range(first, first + count):
            name = f"{stack}.blocks.{layer - first}"
            normed = self.norm(x, f"{name}.attention_norm")
            q, k, v = (self._heads(normed, f"{name}.attention.{part}") for part in ("query", "key", "value"))
            score = q @ k.transpose(-1, -2) + bias
            mixed = self._attend(score, v, sees[:, None], layer, WEIGHTS, f"{name}.attention")
            x = x + self.drop(mixed, layer, ATTENTION, "residual")
            if states is not None and other is not None:
                q = self._heads(self.norm(x, f"{name}.cross_norm"), f"{name}.cross_attention.query")
                k, v = (self._heads(states, f"{name}.cross_attention.{part}") for part in ("key", "value"))
                across = (segments[:, :, None] == other[:, None, :])[:, None]
                score = q @ k.transpose(-1, -2)
                mixed = self._attend(score, v, across, layer, CROSS_WEIGHTS, f"{name}.cross_attention")
                x = x + self.drop(mixed, layer, CROSS, "residual")
            x = self._mlp(x, name, layer, segments > 0)
        return self.drop(self.norm(x, f"{stack}.norm"), first, OUTPUT, "residual")

    # Parts.

    def norm(self, x: Tensor, name: str) -> Tensor:
        eps = float(self.settings["model.norm_eps"])
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * self.p[f"{name}.weight"]

    def _head(self) -> Tensor:
        return self.p.get("head.weight", self.p["embedding.weight"])

    def _heads(self, x: Tensor, name: str) -> Tensor:
        width = self.settings.get("model.head_dim") or self.settings["model.d_model"] // self.heads
        return (x @ self.p[f"{name}.weight"].T).unflatten(-1, (-1, width)).transpose(1, 2)

    def _attend(self, score: Tensor, v: Tensor, sees: Tensor, layer: int, site: int, name: str) -> Tensor:
        weight = score.masked_fill(~sees, -math.inf).softmax(-1)
        # A position that sees nothing mixes nothing.
        weight = torch.where(sees.any(-1, keepdim=True), weight, 0.0)
        key = fold(self.key(layer, site)[:, None], np.arange(self.heads))
        weight = weight * kept(key, *weight.shape[2:], self.rate("attention"))
        return (weight @ v).transpose(1, 2).flatten(2) @ self.p[f"{name}.output.weight"].T

    def _places(self, segments: Tensor) -> Tensor:
        """The number of earlier positions in the same segment."""
        same = (segments[:, :, None] == segments[:, None, :]).long()
        return torch.tril(same, -1).sum(-1)

    def _rotated(self, x_BHTN: Tensor, place_BT: Tensor) -> Tensor:
        half = x_BHTN.shape[-1] // 2
        frequency = self.settings["model.rope_theta"] ** -(torch.arange(half, dtype=torch.float64) / half)
        angle = place_BT[:, None, :, None] * frequency
        a, b = x_BHTN[..., :half], x_BHTN[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def _buckets(self, offset: Tensor, bidirectional: bool) -> Tensor:
        count, most = (self.settings[f"model.relative_{key}"] for key in ("buckets", "max_distance"))
        count = count // 2 if bidirectional else count
        distance = offset.abs() if bidirectional else (-offset).clamp(min=0)
        exact = count // 2
        steps = [
            sum(
                n ** (count - exact) >= most**j * exact ** (count - exact - j)
                for j in range(1, count - exact)
            )
            for n in range(int(distance.max()) + 1)
        ]
        far = exact + torch.tensor(steps)[distance]
        bucket = torch.where(distance < exact, distance, far)
        return bucket + (offset > 0) * count if bidirectional else bucket

    def _activated(self, up: Tensor, gate: Tensor | None) -> Tensor:
        kind = self.settings["model.mlp"]
        if gate is None:
            return F.relu(up) if kind == "relu" else F.gelu(up, approximate="tanh")
        return (F.silu(gate) if kind == "swiglu" else F.gelu(gate, approximate="tanh")) * up

    def _mlp(self, x: Tensor, name: str, layer: int, is_token: Tensor) -> Tensor:
        normed, mlp = self.norm(x, f"{name}.mlp_norm"), f"{name}.mlp"
        if f"{mlp}.router.weight" in self.p:
            y = self._experts(normed, mlp, layer, is_token)
        else:
            gate = f"{mlp}.gate.weight"
            hidden = self._activated(
                normed @ self.p[f"{mlp}.up.weight"].T, normed @ self.p[gate].T if gate in self.p else None
            )
            y = self.drop(hidden, layer, HIDDEN, "mlp") @ self.p[f"{mlp}.down.weight"].T
        y = y * kept(self.key(layer, MLP_OUTPUT), y.shape[1], 1, self.rate("mlp_output"))
        return x + self.drop(y, layer, RESIDUAL, "residual")

    def _experts(self, x_BTD: Tensor, name: str, layer: int, is_token_BT: Tensor) -> Tensor:
        moe = {
            k.removeprefix("model.moe."): v for k, v in self.settings.items() if k.startswith("model.moe.")
        }
        slots, num_experts = moe["top_k"], moe["num_experts"]
        logit_BTE = x_BTD @ self.p[f"{name}.router.weight"].T
        share_BTE = logit_BTE.softmax(-1)
        gate_BTK, expert_BTK = share_BTE.topk(slots, -1)
        if moe["normalize"] if moe["normalize"] is not None else slots > 1:
            gate_BTK = gate_BTK / gate_BTK.sum(-1, keepdim=True)
        output_key = self.key(layer, EXPERT_OUTPUT)
        gate_BTK = gate_BTK * kept(output_key, x_BTD.shape[1], slots, self.rate("expert_output"))
        up, down = self.p[f"{name}.experts.up"], self.p[f"{name}.experts.down"]
        gate = self.p.get(f"{name}.experts.gate")
        key_BTK = fold(self.key(layer, EXPERT)[:, None], np.arange(slots))[:, None]
        key_BTK = fold(key_BTK, np.arange(x_BTD.shape[1])[:, None])
        mask = kept(key_BTK, 1, up.shape[1], self.rate("expert"))
        y_BTD = torch.zeros_like(x_BTD)
        for slot in range(slots):
            expert = expert_BTK[..., slot]
            hidden = torch.einsum("btd,btfd->btf", x_BTD, up[expert])
            opened = None if gate is None else torch.einsum("btd,btfd->btf", x_BTD, gate[expert])
            hidden = self._activated(hidden, opened)
            hidden = hidden * (mask[:, :, slot, 0] if isinstance(mask, Tensor) else mask)
            out = torch.einsum("btf,btdf->btd", hidden, down[expert])
            y_BTD = y_BTD + out * (gate_BTK[..., slot] * is_token_BT)[..., None]
        chosen_BTE = F.one_hot(expert_BTK, num_experts).sum(2) * is_token_BT[..., None]
        own, size = len(self.num_targets_B), moe["group_windows"]
        for rows in (slice(first, min(first + size, own)) for first in range(0, own, size)):
            tokens = is_token_BT[rows].sum().clamp(min=1)
            share_E = (share_BTE[rows] * is_token_BT[rows][..., None]).sum((0, 1)) / tokens
            balance = num_experts * (chosen_BTE[rows].sum((0, 1)) / (tokens * slots) * share_E).sum()
            z = (logit_BTE[rows].logsumexp(-1).square() * is_token_BT[rows]).sum() / tokens
            loss = moe["balance_coefficient"] * balance + moe["z_coefficient"] * z
            self.router_loss = self.router_loss + loss * self.num_targets_B[rows].sum()
        return y_BTD


class Replay:
    """The training of a run folder, step by step.

    Args:
        path: The run folder. One of its checkpoints gives the names and shapes of the parameters.
    """

    def __init__(self, path: Path) -> None:
        self.run, self.settings = Run(path, {}), read_config(path / "config.yaml")
        self._refuse_others()
        self.examples = Examples(self.run, self.settings)
        self.noise = Noise(self.run.stores[0], self.settings)
        manifest = next((path / "checkpoints").glob("step-*/manifest.json")).read_text()
        self.model = Model(self.settings, json.loads(manifest.rstrip().rpartition("\n")[0])["parameters"])
        self.first = {name: torch.zeros_like(p) for name, p in self.model.p.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.model.p.items()}
        self.average: dict[str, Tensor] = {}
        self.total = sum(self._tokens(0, self.run.N))
        self.consumed, self.updates = 0, 0

    def _refuse_others(self) -> None:
        plain = {
            **{
                "optimizer.name": "adamw",
                "model.norm": "rmsnorm",
                "model.parallel_block": False,
                "model.positions": "rope",
            },
            **{"model.bias": False, "model.dropout.path": 0.0, "model.relative_bias_per_layer": False},
            **{"model.moe.capacity_factor": None, "model.moe.jitter": 0.0, "model.moe.bias_rate": 0.0},
            **{"model.moe.score": "softmax", "init_from": None},
            **{"model.mup_base_width": None, "model.sliding_window": None},
        }
        for key, value in plain.items():
            if self.settings.get(key, value) != value:
                raise NotImplementedError(f"{key}={self.settings[key]}")

    def _tokens(self, first: int, end: int) -> list[int]:
        return [int(n) for n in self.run.locate(np.arange(first, end))[3]]

    def step(self, number: int) -> dict[str, float]:
        """Carry out a step; returns what metrics.jsonl should say of it."""
        first = number * self.run.B
        end = min(first + self.run.B, self.run.N)
        streams, rows = self.examples.streams(np.arange(first, end)), np.arange(end - first)
        streams = self.noise(streams, number, rows)
        # Masked copies follow the rows; they are in no routing group.
        num_copies = len(streams[-1].ids) - rows.size
        target = torch.from_numpy(streams[-1].targets)
        scored = target != NO_TARGET
        weight = scored * torch.as_tensor(streams[-1].weights, dtype=torch.float64)
        own = scored[: rows.size]
        rows = np.append(rows, rows[:num_copies] + 2**40)
        logits = self.model.logits(streams, number, rows, own.sum(1))
        log_share = logits.log_softmax(-1)
        nats = -log_share.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        smoothing, z = (float(self.settings[f"regularize.{key}"]) for key in ("label_smoothing", "z_loss"))
        loss = (1 - smoothing) * nats - smoothing * log_share.mean(-1)
        loss = loss + z * logits.logsumexp(-1).square()
        count = int(own.sum())
        total = ((loss * weight).sum() + self.model.router_loss) / count
        names, p = zip(*self.model.p.items(), strict=True)
        gradients = dict(zip(names, torch.autograd.grad(total, p), strict=True))
        tokens = sum(self._tokens(first, end))
        rate, decay = self._rate((self.consumed + tokens / 2) / self.total)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        clip = self.settings["optimizer.clip_grad_norm"]
        self._update(gradients, rate, decay, min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
        self.consumed += tokens
        own_nats = float((nats[: len(own)] * own).sum().detach())
        return {"loss_nats": own_nats / count, "lr": rate, "grad_norm": norm}

    def _rate(self, done: float) -> tuple[float, float]:
        """The learning rate and the weight decay after a share of the run's tokens."""
        keys = ("optimizer.lr", "schedule.warmup_fraction", "schedule.final_ratio")
        peak, warmup, final = (float(self.settings[key]) for key in keys)
        decay, name = float(self.settings["optimizer.weight_decay"]), self.settings["schedule.name"]
        if done < warmup or name == "constant":
            return peak * min(1.0, done / warmup if warmup else 1.0), decay
        after = (done - warmup) / (1 - warmup)
        assert name in ("cosine", "cyclic")
        after = after * self.settings["schedule.cycles"] % 1 if name == "cyclic" else after
        fall = 0.5 - 0.5 * math.cos(math.pi * after)
        ratio = float(self.settings["schedule.weight_decay_ratio"])
        return peak * (1 - (1 - final) * fall), decay * (1 + (ratio - 1) * fall)

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor], rate: float, decay: float, factor: float) -> None:
        """AdamW (Loshchilov & Hutter 2019) and the exponential average of the weights."""
        keys = ("beta1", "beta2", "eps")
        beta1, beta2, eps = (float(self.settings[f"optimizer.{key}"]) for key in keys)
        self.updates += 1
        ema = self.settings.get("average.decay")
        for name, p in self.model.p.items():
            gradient = gradients[name] * factor
            if p.ndim > 1 and "relative_bias" not in name:
                p.mul_(1 - rate * decay)
            self.first[name].lerp_(gradient, 1 - beta1)
            self.second[name].lerp_(gradient.square(), 1 - beta2)
            mean = self.first[name] / (1 - beta1**self.updates)
            p.sub_(rate * mean / ((self.second[name] / (1 - beta2**self.updates)).sqrt() + eps))
            if ema is not None:
                share = 1.0 if self.updates == 1 else 1 - float(ema)
                self.average[name] = torch.lerp(self.average.get(name, p), p, share)

    def state(self) -> dict[str, Tensor]:
        """Weights, moments and average, by `KIND:NAME`."""
        kinds = {
            "weight": self.model.p,
            "exp_avg": self.first,
            "exp_avg_sq": self.second,
            "average": self.average,
        }
        return {f"{kind}:{name}": x.detach() for kind, values in kinds.items() for name, x in values.items()}


def saved_state(folder: Path) -> dict[str, Tensor]:
    """The flat tensors of a checkpoint, joined over its files, by `KIND:NAME`."""
    parts: dict[str, dict[int, Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                name, _, start = key.rpartition("@")
                parts.setdefault(name, {})[int(start)] = file.get_tensor(key).double()
    return {name: torch.cat([x for _, x in sorted(pieces.items())]) for name, pieces in parts.items()}
