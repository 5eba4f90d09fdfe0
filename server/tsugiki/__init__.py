"""tsugiki: one base language model in memory, hundreds of compressed fine-tunes on it."""

__version__ = "0.1.0"
