"""What CUDA kernels take of a GPU, read from their machine code."""
