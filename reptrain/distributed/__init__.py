"""Ranks and DeepSpeed: process groups, watchdog, stop requests, configuration, expert parallelism."""
