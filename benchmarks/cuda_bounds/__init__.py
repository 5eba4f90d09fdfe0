"""What bounds each CUDA kernel on each GPU: estimates, from formulas and machine code."""
