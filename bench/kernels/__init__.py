"""CPU kernels of one layer against the reference, memory and SGLang's `torch_native`."""
