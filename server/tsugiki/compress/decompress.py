"""A variant file and its base into a Hugging Face directory.

Owns: the walk and what rounding to 16 bits loses. Does not know: codecs, terminals.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tsugiki.compress.checkpoint_writer import new_directory, write_text_side, write_weights
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import Reconstruction
from tsugiki.compress.report import Deviation


def decompress(
    variant: Reconstruction, out: Path, dtype: torch.dtype, progress: Progress
) -> Deviation:
    """Write the checkpoint that a variant stands for; whole or not at all.

    Returns how far rounding to `dtype` moves the changes of the variant: zero for float32.

    Raises:
        ConfigError: `out` exists and is not empty, or its parent does not exist.
    """
    rounding = _Rounding(variant, dtype)
    names = variant.base.checkpoint.names()
    tensors = progress.track(variant.tensors(), "decompressing", total=len(names))
    with new_directory(out) as directory:
        write_weights(directory, variant.config(), rounding.watch(tensors), dtype)
        write_text_side(directory, variant.base.checkpoint.path, variant.header.text)
    return rounding.total


class _Rounding:
    """Adds up what a dtype loses, held against what the variant changes in the base."""

    def __init__(self, variant: Reconstruction, dtype: torch.dtype) -> None:
        self._base = variant.base.checkpoint
        self._dtype = dtype
        self.total = Deviation()

    def watch(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass the tensors on."""
        for name, tensor in tensors:
            if self._dtype != torch.float32 and name in self._base:
                before = self._base.tensor(name).float()
                exact = tensor[: len(before)]
                rounded = exact.to(self._dtype).float()
                self.total += Deviation.between(exact - before, rounded - before)
            yield name, tensor
