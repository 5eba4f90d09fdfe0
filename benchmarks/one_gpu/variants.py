"""Variants of a base with random codes: as large and as costly as what `tsugiki compress deltadq`
writes by default (1 bit, 1 of 16 kept, tiles of 16 rows, one mask, 4-bit biases), all different.
"""

import multiprocessing
import os
from functools import partial
from pathlib import Path

import torch

from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import Packed
from tsugiki.compress.job import open_base
from tsugiki.model.checkpoint import LM_HEAD

CODEC = CODECS["deltadq"]
OPTIONS = {
    "alpha": 16,
    "group_size": 64,
    "rows_per_step": 64,
    "bias_bits": 4,
    "bias_scale": 1e-4,
    "gain": 1e-3,
}


def random_variants(base: Path, folder: Path, count: int, cache: Path) -> list[str]:
    """`count` names; writes the files that `folder` lacks, on all cores."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = open_base(base)
    shapes = {n: part.shape for n, part in opened.layout.linears.items() if n != LM_HEAD}
    spec = ArtifactSpec(codec=CODEC.name, base=opened.reference(cache))
    names = [f"v{number:04}" for number in range(count)]
    missing = [name for name in names if not (folder / f"{name}.safetensors").exists()]
    workers = max(1, (os.cpu_count() or 2) - 2)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(partial(write, folder, spec, shapes), missing, chunksize=4)
    return names


def write(folder: Path, spec: ArtifactSpec, shapes: dict[str, tuple[int, int]], name: str) -> None:
    """One file."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(int(name[1:]))
    modules = {linear: drawn(linear, shape, generator) for linear, shape in shapes.items()}
    artifact.write(folder / f"{name}.safetensors", spec, modules)


def drawn(linear: str, shape: tuple[int, int], generator: torch.Generator) -> Packed:
    """One linear."""
    options = {**CODEC.zero(shape).options, **OPTIONS}
    tensors = {}
    for part, (dtype, size) in CODEC.parts(shape, options).items():
        if dtype == torch.uint8:
            tensors[part] = torch.randint(0, 256, size, dtype=dtype, generator=generator)
        else:
            tensors[part] = torch.rand(size, generator=generator).to(dtype)
    return Packed(CODEC.name, shape, options, tensors, linear)
