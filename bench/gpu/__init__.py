"""Everything a GPU must tell, in one command: `python -m bench.gpu`; see `docs/gpu.md`.

`parts.PARTS` lists what is done. Each part runs in a process of its own, so that one which fails,
hangs or breaks its CUDA context takes nothing else with it.
"""
