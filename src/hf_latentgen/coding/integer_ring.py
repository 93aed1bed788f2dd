"""Attention to keys and values that are kept as whole numbers: half of the memory to read, and sums that are exact.

A float32 holds every whole number up to 2^24. Where no sum can pass that, a product of matrices in float32 is exact,
in whichever order a processor adds. Of a ring larger than the caches it reads half of the bytes of float64, and takes
two thirds of the time; a smaller one would only lose by the work between the products.
"""

import torch
from torch import Tensor

from hf_latentgen.models.position_steps import Ring

EXACT = 2**24
# A number of a query has two parts of at most this, coarse and fine, a number of a value one.
QUERY_LIMIT, VALUE_LIMIT = 128, 1024
# Sum of the weights of all places, and the most places between which it is divided.
WEIGHT = EXACT // VALUE_LIMIT
MOST_PLACES = WEIGHT // 4
# Of a ring in float64 that the caches of a core may hold.
CACHE_BYTES = 2**24


class IntegerRing(Ring):
    """A `Ring` of whole numbers in float32; what lies between its two products is in the arithmetic of the weights.

    What a unit stands for follows from the bounds: keys and values have eleven to fourteen bits, queries fifteen, and
    weights share 2^14 units. See `new_ring`.
    """

    def __init__(self, pair: Tensor, window: int, bounds: Tensor):
        super().__init__(pair.float(), window, bounds)
        groups, size = pair.shape[2:]
        # A head whose weights are zero has a bound of zero, and a unit that stands for next to nothing.
        bounds = bounds.clamp(min=1e-30)
        query, pairs = bounds[: -2 * groups].view(groups, -1, 1), bounds[-2 * groups :].view(2, 1, groups, 1)
        self.limits = pair.new_tensor([EXACT // (QUERY_LIMIT * size), VALUE_LIMIT]).view(2, 1, 1, 1)
        self.units, self.query_units = self.limits / pairs, QUERY_LIMIT**2 / query
        key, self.value = 1 / self.units.view(2, groups, 1, 1)
        self.score = (key / self.query_units).float()

    def write(self, place: int, pair: Tensor) -> None:
        """Keep key and value of a position, rounded. [B, 2, G, D]."""
        # Weights that learn may pass what was their bound.
        whole = (pair.transpose(0, 1) * self.units).round_().clamp_(-self.limits, self.limits)
        self.places[:, :, :, place] = whole

    def attend(self, query: Tensor, filled: int, bias: Tensor | None) -> Tensor:
        """See `Ring.attend`."""
        keys, values = self.places.flatten(1, 2)[:, :, :filled]
        whole = (query * self.query_units).round_().clamp_(-(QUERY_LIMIT**2), QUERY_LIMIT**2)
        coarse = (whole / QUERY_LIMIT).round_()
        parts = torch.cat([coarse, whole - QUERY_LIMIT * coarse], 2).flatten(0, 1).float()
        coarse, fine = torch.bmm(parts, keys.mT).unflatten(0, query.shape[:2]).chunk(2, 2)
        # One rounding in each of these two, which all processors do alike.
        scores = torch.add(fine, coarse, alpha=QUERY_LIMIT).mul_(self.score).to(query.dtype)
        if bias is not None:
            scores.add_(bias)
        # Rounding adds half of a unit to each place at most.
        total = WEIGHT - filled / 2
        weights = scores.softmax(-1).mul_(total).round_().float().flatten(0, 1)
        return torch.bmm(weights, values).view(query.shape) * (self.value / total)


def new_ring(pair: Tensor, window: int, bounds: Tensor) -> Ring:
    """The ring of a layer that takes one position after the other: of whole numbers where that is faster."""
    is_large = 8 * pair.numel() * window > CACHE_BYTES
    return (IntegerRing if is_large and window <= MOST_PLACES else Ring)(pair, window, bounds)


def bytes_of_ring(values: int, window: int) -> int:
    """Memory of a large ring whose places hold `values` numbers each."""
    return (4 if window <= MOST_PLACES else 8) * values * window
