"""The CPU backend: C++ kernels, how they are built and loaded, and the calls into them."""
