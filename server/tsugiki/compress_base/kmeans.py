"""Weighted one-dimensional k-means for many rows at once.

Owns: codebooks that minimise the weighted squared error of their row (LeanQuant, arXiv 2407.10032,
section 3; weights from sensitivity.py). Does not know: linears, calibration, files.

Sorted once, a row's clusters are intervals: an iteration costs a binary search for each boundary
and two differences of running sums, whatever the row's length.
"""

import torch
from torch import Tensor

ITERATIONS = 100
TOLERANCE = 1e-6  # of the largest centroid's move, relative to the row's range


def weighted_kmeans(values: Tensor, weights: Tensor, entries: int) -> Tensor:
    """Centroids float32 [rows, entries], ascending, of values [rows, n] with weights [n] > 0.

    Lloyd's iterations from two starts, equally spaced and equally heavy; each row keeps the better.
    """
    ordered, places = values.double().sort(dim=1)
    heavy = weights.double()[places]
    sums = _Sums(ordered, heavy)
    starts = (_equally_spaced(ordered, entries), sums.quantiles(entries))
    found = [sums.settled(start) for start in starts]
    losses = torch.stack([sums.loss(centroids) for centroids in found])
    best = losses.argmin(0)
    return torch.stack(found)[best, torch.arange(len(values), device=values.device)].float()


def _equally_spaced(ordered: Tensor, entries: int) -> Tensor:
    low, high = ordered[:, :1], ordered[:, -1:]
    return low + (high - low) * _shares(entries, ordered.device)


def _shares(entries: int, device: torch.device) -> Tensor:
    return (torch.arange(entries, dtype=torch.float64, device=device) + 0.5) / entries


class _Sums:
    """Running sums over sorted rows: of weights, of weight times value, and times its square."""

    def __init__(self, ordered: Tensor, weights: Tensor) -> None:
        self.ordered = ordered
        powers = [weights, weights * ordered, weights * ordered.square()]
        self.running = [torch.nn.functional.pad(power.cumsum(1), (1, 0)) for power in powers]

    def settled(self, centroids: Tensor) -> Tensor:
        """Where Lloyd's iterations end; a centroid without values stays where it is."""
        least = TOLERANCE * (self.ordered[:, -1:] - self.ordered[:, :1])
        for _ in range(ITERATIONS):
            mass, moment, _ = self._within(centroids)
            moved = torch.where(mass > 0, moment / mass.clamp_min(1e-300), centroids)
            settled = bool(((moved - centroids).abs() <= least).all())
            centroids = moved.sort(dim=1).values
            if settled:
                break
        return centroids

    def loss(self, centroids: Tensor) -> Tensor:
        """The weighted squared error of each row."""
        mass, moment, square = self._within(centroids)
        return (square - 2 * centroids * moment + centroids.square() * mass).sum(1)

    def quantiles(self, entries: int) -> Tensor:
        """Values that cut the weight of a row into equal shares."""
        running = self.running[0]
        wanted = _shares(entries, running.device) * running[:, -1:]
        places = torch.searchsorted(running[:, 1:].contiguous(), wanted.contiguous())
        return self.ordered.gather(1, places.clamp(max=self.ordered.shape[1] - 1))

    def _within(self, centroids: Tensor) -> list[Tensor]:
        """The three sums over what is nearest to each centroid."""
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        cuts = torch.searchsorted(self.ordered, middles.contiguous())
        ends = torch.nn.functional.pad(cuts, (0, 1), value=self.ordered.shape[1])
        starts = torch.nn.functional.pad(cuts, (1, 0))
        return [running.gather(1, ends) - running.gather(1, starts) for running in self.running]
