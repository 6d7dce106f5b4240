"""Whole servers, timed: `python -m bench.serve` sweeps SGLang's own benchmark tools over methods,
budgets, contexts, concurrency and dense peers; `python -m bench.serve.decode` times one stream."""
