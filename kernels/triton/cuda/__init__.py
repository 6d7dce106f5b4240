"""Kernels of this device in CUDA C++, beside those in Triton that do the same.

There is one, `select.cu`. `tuning.SELECT_BY` says on which GPUs it serves: on none, as long as
nothing was measured. `nvrtc` compiles it where the server runs, `driver` launches it; without a GPU
`emulation` runs the same source on the CPU, as Triton's interpreter runs the others.
"""
