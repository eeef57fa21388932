"""Steps of other trainers, with the sizes of a reptrain run."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import torch

from reptrain.bench.measure import Missing, installed
from reptrain.bench.peers.torch_loop import torch_loop
from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig, T5Config
from reptrain.sizes import embedding_rows


def transformers_loop(config: RunConfig, device: str = "cpu") -> Iterator[float] | Missing:
    """Steps of a transformers model of the same sizes on random tokens, with clipping and AdamW.

    Args:
        config: The run: a T5 or a decoder of the Llama family.
        device: Where to train.

    Returns:
        An endless iterator of the loss of each step, or why there is none.
    """
    if installed("transformers") is None:
        return Missing("not installed")
    return _steps(config, torch.device(device))


def transformers_trainer(config: RunConfig, *, steps: int, compiled: bool) -> Iterator[float] | Missing:
    """Steps of the `Trainer` of transformers on a CPU, with its data loader; the model is that of the loop.

    Args:
        config: The run: a T5 or a decoder of the Llama family.
        steps: Number of steps it may be asked for.
        compiled: Whether it compiles the model.

    Returns:
        An iterator of the number of each step, or why there is none.
    """
    if any(installed(package) is None for package in ("transformers", "accelerate")):
        return Missing("not installed")
    return _trainer_steps(config, steps, compiled)


def _trainer_steps(config: RunConfig, steps: int, compiled: bool) -> Iterator[float]:
    """The trainer runs in a thread, which waits after each step until the next one is asked for."""
    asked: queue.Queue[bool] = queue.Queue()
    done: queue.Queue[float | BaseException] = queue.Queue()
    threads = torch.get_num_threads()

    def run() -> None:
        try:
            torch.set_num_threads(threads)
            asked.get()
            _train(config, steps, compiled, asked, done)
        except BaseException as error:
            done.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        for _ in range(steps):
            asked.put(True)
            step = done.get()
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        asked.put(False)


def _train(
    config: RunConfig,
    steps: int,
    compiled: bool,
    asked: queue.Queue[bool],
    done: queue.Queue[float | BaseException],
) -> None:
    import transformers

    class AfterEachStep(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done.put(float(state.global_step))
            control.should_training_stop = not asked.get()

    model, inputs = _model_and_inputs(config)
    # With the variables of a launcher, which DeepSpeed leaves, it would train as one of several ranks.
    before = dict(os.environ)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    rows = [{name: ids[row] for name, ids in inputs.items()} for row in range(config.train.batch_windows)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=config.train.batch_windows,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=config.train.precision == "bf16",
            torch_compile=compiled,
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=rows, callbacks=[AfterEachStep()]
        )
        # It prints a summary, also to the output of a command with --json.
        trainer.remove_callback(transformers.PrinterCallback)
        os.environ.clear()
        os.environ.update(before)
        trainer.train()


def _model_and_inputs(config: RunConfig) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    model_config, shape, rows = config.model, config.example_shape, config.train.batch_windows
    torch.manual_seed(0)
    vocab_size = model_config.vocab_size or embedding_rows(model_config, 256)
    model, inputs, targets = _model(model_config, vocab_size, shape.target_tokens), {}, shape.target_tokens
    if isinstance(model_config, T5Config):
        inputs["input_ids"] = torch.randint(2, vocab_size, (rows, shape.input_tokens))
        inputs["labels"] = torch.randint(2, vocab_size, (rows, targets))
    else:
        inputs["input_ids"] = inputs["labels"] = torch.randint(2, vocab_size, (rows, targets))
    return model, inputs


def _steps(config: RunConfig, device: torch.device) -> Iterator[float]:
    model, inputs = _model_and_inputs(config)
    model = model.to(device)
    inputs = {name: ids.to(device) for name, ids in inputs.items()}

    def loss_of_batch() -> torch.Tensor:
        loss: torch.Tensor = model(**inputs).loss
        return loss

    return torch_loop(model, loss_of_batch, precision=config.train.precision, device=device.type)


def _model(config: DecoderConfig | T5Config, vocab_size: int, positions: int) -> torch.nn.Module:
    import transformers

    if isinstance(config, T5Config):
        special: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0, "dropout_rate": 0.0}
        t5 = transformers.T5Config(
            vocab_size=vocab_size,
            d_model=config.d_model,
            d_kv=config.head_dim,
            d_ff=config.d_ff,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
            **special,
        )
        t5.tie_word_embeddings = config.tie_embeddings
        return transformers.T5ForConditionalGeneration(t5)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=positions,
            tie_word_embeddings=config.tie_embeddings,
        )
    )
