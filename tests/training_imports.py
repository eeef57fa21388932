"""What the forks of `forked.training_server` need: everything that training and the commands import."""

import deepspeed.launcher.launch
import deepspeed.ops

# DeepSpeed imports it, and with it torch's compiler, where a ZeRO stage shards an optimizer.
import deepspeed.runtime.zero.muon.muon_optimizer
import tensorboard.summary.writer.event_file_writer
import torch._dynamo

import reptrain.cli
import reptrain.evaluation.evaluate
import reptrain.generation
import reptrain.hub.export
import reptrain.report
import reptrain.store
import reptrain.tokenization
import reptrain.training.loop

__all__ = ["deepspeed", "reptrain", "tensorboard", "torch"]
