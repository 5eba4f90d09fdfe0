"""What every backend demands of compressed weights of a base.

Owns: dtypes, shapes and ranges that codebooks.py and lattice.py promise. Kernels trust what passed
here.
"""

import torch

from tsugiki_kernels.check import check_tensor
from tsugiki_kernels.codebooks import INDEX_BITS, CodebookWeight, IndexMap
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.lattice import GROUP, LATTICE_BITS, RESIDUAL_DTYPE, LatticeWeight


def check_index(index: IndexMap) -> None:
    """The map of a sketched linear.

    Raises:
        BadArgument: naming what does not fit.
    """
    rows, columns = index.shape
    if index.bits not in INDEX_BITS:
        raise BadArgument(f"bits: expected 2, 3 or 4, found {index.bits}")
    if index.groups < 1 or columns % index.groups:
        raise BadArgument(f"groups: expected a divisor of {columns} columns, found {index.groups}")
    check_tensor("codes", index.codes, (torch.uint8,), (rows, -(-columns * index.bits // 8)))


def check_codebook_weight(weight: CodebookWeight) -> None:
    """A sketched linear.

    Raises:
        BadArgument: naming what does not fit.
    """
    check_index(weight.index)
    check_tensor("codebooks", weight.codebooks, (torch.float16,), weight.index.codebook_shape)


def check_lattice_weight(weight: LatticeWeight) -> None:
    """A linear of lattice codes.

    Raises:
        BadArgument: naming what does not fit.
    """
    rows, columns = weight.shape
    if weight.bits not in LATTICE_BITS or columns % GROUP:
        raise BadArgument(f"a lattice of {weight.bits} bits with {columns} columns")
    groups = (rows, columns // GROUP)
    check_tensor("codes", weight.codes, (torch.int16,), groups)
    check_tensor("scales", weight.scales, (torch.bfloat16,), (rows,))
    if (weight.residual is None) != (weight.bits == 2):
        raise BadArgument(f"a lattice of {weight.bits} bits: residual is {weight.residual}")
    if weight.residual is not None:
        check_tensor("residual", weight.residual, (RESIDUAL_DTYPE[weight.bits],), groups)
