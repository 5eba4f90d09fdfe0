"""The operations on an NVIDIA GPU: CUDA sources, the Python that launches them, one backend."""
