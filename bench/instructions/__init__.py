"""What the compiled kernels do, counted in their machine code: no GPU is needed."""
