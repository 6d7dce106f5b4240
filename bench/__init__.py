"""Benchmarks: `python -m bench.kernels`, `python -m bench.serve`."""
