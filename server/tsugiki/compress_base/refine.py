"""Codes and codebooks in turns, each the best for the other: less error of a linear's outputs.

Owns: with E = W' - W and H the damped Gram matrix of inputs, the descent of tr(E H E^T). Codebooks
by least squares with the codes fixed; codes one column at a time with the codebooks fixed, as QuIP#
(arXiv 2402.04396) refines lattice codes. Neither step can raise the error, but for the rounding of
codebooks to float16, so the best pair is kept. Does not know: calibration, files.
"""

import torch
from torch import Tensor

BLOCK = 128  # columns whose steps are pushed on at once
ROWS_AT_ONCE = 128  # bounds the one-hot codes: [rows, entries, in] float32
RIDGE = 1e-6  # of the mean diagonal: cells without columns, or with columns that go together


def refined(
    weight: Tensor, codes: Tensor, codebooks: Tensor, gram: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """Codes int64 [out, in] and codebooks float32 [out, groups, entries], float16 values ascending,
    with at most the error of the given ones; weight float32 [out, in], gram float32 [in, in]."""
    best = codes, codebooks
    least = output_error(weight, *best, gram)
    for _ in range(rounds):
        codebooks = codebooks + least_squares(weight, codes, codebooks, gram)
        codes, codebooks = _ascending(codes, codebooks.half().float())
        codes = descended(weight, codes, codebooks, gram)
        error = output_error(weight, codes, codebooks, gram)
        if error < least:
            best, least = (codes, codebooks), error
    return best


def output_error(weight: Tensor, codes: Tensor, codebooks: Tensor, gram: Tensor) -> float:
    """tr(E H E^T)."""
    error = _looked_up(codes, codebooks) - weight
    return float(((error @ gram) * error).sum(dtype=torch.float64))


def least_squares(weight: Tensor, codes: Tensor, codebooks: Tensor, gram: Tensor) -> Tensor:
    """What to add to the codebooks, [out, groups, entries], so that no other addition leaves less
    error. For each row P H P^T d = P H (w - w'), P [cells, in] telling which column is of which
    cell."""
    pull = (weight - _looked_up(codes, codebooks)) @ gram
    found = torch.empty_like(codebooks)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        cells = _one_hot(codes[rows], codebooks.shape[1], codebooks.shape[2])
        sums = [
            cell @ part.unsqueeze(2)
            for cell, part in zip(cells, _parts(pull[rows], cells), strict=True)
        ]
        wanted = torch.cat(sums, dim=1)
        matrix = _between_cells(cells, gram)
        ridge = RIDGE * matrix.diagonal(dim1=1, dim2=2).mean(1)
        matrix.diagonal(dim1=1, dim2=2).add_(ridge[:, None] + 1e-30)
        found[rows] = torch.linalg.solve(matrix, wanted).view(found[rows].shape)
    return found


def _one_hot(codes: Tensor, groups: int, entries: int) -> list[Tensor]:
    """For each group float32 [rows, entries, width]."""
    numbers = torch.arange(entries, device=codes.device)[None, :, None]
    return [(part[:, None] == numbers).float() for part in codes.chunk(groups, dim=1)]


def _parts(values: Tensor, cells: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.split(values, [cell.shape[2] for cell in cells], dim=1))


def _between_cells(cells: list[Tensor], gram: Tensor) -> Tensor:
    """P H P^T, [rows, groups * entries, groups * entries]."""
    rows, entries, width = cells[0].shape
    lines = []
    for group, cell in enumerate(cells):
        sums = cell.flatten(0, 1) @ gram[group * width : (group + 1) * width]
        parts = _parts(sums, cells)
        line = [
            part.view(rows, entries, width) @ other.transpose(1, 2)
            for part, other in zip(parts, cells, strict=True)
        ]
        lines.append(torch.cat(line, dim=2))
    return torch.cat(lines, dim=1)


def _ascending(codes: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """The same weights with every codebook in order."""
    ordered, places = codebooks.sort(dim=2)
    ranks = torch.empty_like(places)
    numbers = torch.arange(places.shape[2], device=places.device)
    ranks.scatter_(2, places, numbers.expand_as(places))
    rows, groups, _ = codebooks.shape
    return ranks.gather(2, codes.view(rows, groups, -1)).flatten(1), ordered


def descended(weight: Tensor, codes: Tensor, codebooks: Tensor, gram: Tensor) -> Tensor:
    """Codes after one walk over the columns: each takes the entry that leaves the least error, all
    others staying as they are."""
    codes, columns = codes.clone(), weight.shape[1]
    width = columns // codebooks.shape[1]
    middles = (codebooks[..., 1:] + codebooks[..., :-1]) / 2
    now = _looked_up(codes, codebooks)
    pull = (weight - now) @ gram
    for start in range(0, columns, BLOCK):
        block = slice(start, min(start + BLOCK, columns))
        own, within = pull[:, block].clone(), gram[block, block]
        moves = torch.empty_like(own)
        for place in range(own.shape[1]):
            column = start + place
            group = column // width
            wanted = now[:, column] + own[:, place] / within[place, place]
            code = (wanted[:, None] > middles[:, group]).sum(1)
            chosen = codebooks[:, group].gather(1, code[:, None])[:, 0]
            codes[:, column] = code
            moves[:, place] = chosen - now[:, column]
            own -= moves[:, place, None] * within[place]
        pull -= moves @ gram[block]
    return codes


def _looked_up(codes: Tensor, codebooks: Tensor) -> Tensor:
    rows, groups, _ = codebooks.shape
    return codebooks.gather(2, codes.view(rows, groups, -1)).flatten(1)
