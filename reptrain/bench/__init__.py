"""Benchmarks: this trainer and its alternatives, measured in one run on the same data."""
