"""The negatives of a batch that lie highest above the positives of their class."""

import torch
from torch import Tensor

from .inputs import RankingInputs
from .sort_keys import EMPTY_KEY, make_keys

#: More scores than that are not all compared with each other.
_FEW = 1 << 18
#: Scores of the sample for each one that is wanted, in units of (number of scores / wanted): with
#: twice the wanted number expected above the cut-off, too few are four deviations away.
_SAMPLE_RATE, _MIN_SAMPLE = 32, 1 << 15
#: A prime: its multiples, modulo the number of scores, are spread evenly and have no period.
_PRIME = 2654435761


def highest_negatives(inputs: RankingInputs, lowest: Tensor, size: int) -> Tensor:
    """``(size,)`` int64 keys of the negatives that lie highest above ``lowest`` of their class.

    Of many scores only those above an estimated cut-off are compared with each other. If they are
    too few, all are, but not on a GPU, which would have to be waited for: there a few of the lowest
    that belong here may be missing. On a CPU the result is exact.

    Args:
        inputs: the scores of this process.
        lowest: ``(C,)`` float32.

    Returns:
        Keys (:mod:`.sort_keys`), ``EMPTY_KEY`` where there are fewer negatives.
    """
    heights = inputs.scores - lowest
    # A Python number would be copied to a GPU, which would have to be waited for.
    heights[inputs.rows, inputs.columns] = heights.new_full((), -torch.inf)
    heights.masked_fill_((inputs.gt_classes < 0)[:, None], -torch.inf)
    heights = heights.flatten()
    places = _above_cutoff(heights, size) if heights.shape[0] > _FEW else None
    if places is not None:
        heights = heights[places].masked_fill_(places < 0, -torch.inf)
    heights, top = heights.topk(min(size, heights.shape[0]), sorted=False)
    places = top if places is None else places[top]
    rows = places // inputs.scores.shape[1]
    columns = places - rows * inputs.scores.shape[1]
    keys = make_keys(columns, inputs.scores[rows, columns])
    keys.masked_fill_(heights == -torch.inf, EMPTY_KEY)
    return torch.cat([keys, keys.new_full((size - keys.shape[0],), EMPTY_KEY)])


def _above_cutoff(heights: Tensor, size: int) -> Tensor | None:
    """Places of about twice ``size`` heights, -1 for none; None if they turn out to be too few."""
    number = heights.shape[0]
    sample_size = max(_MIN_SAMPLE, _SAMPLE_RATE * number // size)
    wanted = min(2 * size * sample_size // number + 1, sample_size)
    sample = torch.arange(sample_size, device=heights.device).mul_(_PRIME).remainder_(number)
    cutoff = heights[sample].topk(wanted, sorted=False).values.min()
    if heights.device.type == "cpu":
        places = (heights >= cutoff).nonzero()[:, 0]
        return places if places.shape[0] >= size else None
    return _above_without_waiting(heights, cutoff, size)


def _above_without_waiting(heights: Tensor, cutoff: Tensor, size: int) -> Tensor:
    """``(5 size,)`` int64: places above ``cutoff``, then of those at it, which may be very many."""
    at = (heights == cutoff) & (heights > -torch.inf)
    parts = (heights > cutoff, 4 * size), (at, size)
    try:
        found = [torch.nonzero_static(mask, size=room, fill_value=-1) for mask, room in parts]
    except NotImplementedError:  # CUDA has it since torch 2.7; before, this waits
        found = [mask.nonzero()[:room] for mask, room in parts]
    return torch.cat(found)[:, 0]
