"""The first minutes on a GPU: one command that goes on whatever fails; see `docs/gpu.md`.

    python -m bench.gpu.harvest --archive harvest.tgz

`jobs` lists what is done and in which order, `drive` does it within a bound, `archive` packs what
came of it. `checks` has one file per launch; every other file answers one question: what the
machine is, what compiles, what a launch costs, how long ours and the others take, which constants
and parts of a kernel cost what, and whether a replay is always the same.
"""
