"""Kernels that apply or rebuild compressed weights: one interface, several backends."""
