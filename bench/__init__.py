"""Benchmarks: `python -m bench.kernels`, `.serve`; the byte model `.model`; the page `.report`."""
