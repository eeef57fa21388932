"""Ranks and DeepSpeed: process groups, watchdog, stop requests, configuration, expert and
sequence parallelism."""
