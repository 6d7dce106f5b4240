"""What commands, evaluations and benchmarks share: servers, progress, the machine, charts."""
