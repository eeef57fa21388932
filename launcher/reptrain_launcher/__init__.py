"""Launching ranks and other processes. Imports no torch."""

from reptrain_launcher.hostfile import read_hostfile
from reptrain_launcher.local import launch_command, launch_environment, run_launch, shell_line
from reptrain_launcher.process import Ended, run_process

__all__ = [
    "Ended",
    "launch_command",
    "launch_environment",
    "read_hostfile",
    "run_launch",
    "run_process",
    "shell_line",
]
