"""The page of results, `docs/results.md`, from the files in `bench/results/`."""
