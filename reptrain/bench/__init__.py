"""Benchmarks of this trainer and its alternatives, measured together on the same data."""
