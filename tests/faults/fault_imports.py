"""What the server of `fault_starts` imports beside the commands: what they import when they run."""

import os

# Before torch is loaded; one thread, so that runs beside each other do not fight.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.ops
import tensorboard.summary.writer.event_file_writer
import torch._dynamo

import reptrain.store
import reptrain.training.loop

__all__ = ["deepspeed", "reptrain", "tensorboard", "torch"]
