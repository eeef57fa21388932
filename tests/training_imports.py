"""What the forks of `forked.training_server` need: everything that training and the commands import."""

import deepspeed.launcher.launch
import deepspeed.module_inject.auto_ep_layer
import deepspeed.ops

# DeepSpeed imports it, and with it torch's compiler, where a ZeRO stage shards an optimizer.
import deepspeed.runtime.zero.muon.muon_optimizer

# PyArrow imports pandas, if installed, when it converts a list or an array.
import pandas
import pyarrow.compute
import rich.progress
import tensorboard.summary.writer.event_file_writer
import torch._dynamo
import typer

import reptrain.auditing.audit
import reptrain.cli.common
import reptrain.evaluation.evaluate
import reptrain.generation
import reptrain.hub.export
import reptrain.report
import reptrain.store
import reptrain.study
import reptrain.tables.list_runs
import reptrain.tasks.finetune
import reptrain.tokenization
import reptrain.training.loop
import reptrain.training.rebuilt_inputs

# All forks have the same commands.
reptrain.cli.common.command()

__all__ = ["deepspeed", "pandas", "pyarrow", "reptrain", "rich", "tensorboard", "torch", "typer"]
