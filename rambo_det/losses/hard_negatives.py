"""The negatives of a batch that lie highest above the positives of their class.

Its height is its score less the lowest positive's of its class, its place that in all scores.
"""

import numpy as np
import torch
from torch import Tensor

from .inputs import RankingInputs, positions
from .sort_keys import EMPTY_KEY, make_keys

#: Up to so many times the wanted number, all are compared with each other.
_FEW = 4
#: Scores of the sample for each one that is wanted, in units of (number of scores / wanted): with
#: twice the wanted number expected above the cut-off, too few are four deviations away.
_SAMPLE_RATE, _MIN_SAMPLE = 32, 1 << 12
#: A prime: its multiples, modulo the number of scores, are spread evenly and have no period.
_PRIME = 2654435761


def highest_negatives(inputs: RankingInputs, lowest: Tensor, size: int) -> Tensor:
    """``(size,)`` int64 keys of the negatives that lie highest above ``lowest`` of their class.

    Only those that reach an estimated cut-off are compared with each other. If they are too few,
    all are, but not on a GPU, which would have to be waited for: there a few of the lowest that
    belong here may be missing. On a CPU the result is exact. ``lowest`` is ``(C,)`` float32; where
    there are fewer negatives, the keys (:mod:`.sort_keys`) are ``EMPTY_KEY``.
    """
    found = lowest.new_full((size,), EMPTY_KEY, dtype=torch.int64)
    if inputs.scores.numel() == 0:
        return found
    places = _highest_places(inputs, lowest, _cutoff(inputs, lowest, size), size)
    columns, scores, heights = _look_up(inputs, lowest, places)
    heights.masked_fill_(places < 0, -torch.inf)
    keys = make_keys(columns, scores).masked_fill_(places < 0, EMPTY_KEY)
    surplus = len(keys) - size
    if surplus > 0 and keys.device.type == "cpu":  # several times as fast as torch
        keys = keys[torch.from_numpy(np.argpartition(heights.numpy(), surplus)[surplus:])]
    elif surplus > 0:
        keys = keys[heights.topk(size, sorted=False).indices]
    found[: len(keys)] = keys
    return found


def _look_up(inputs: RankingInputs, lowest: Tensor, places: Tensor) -> tuple[Tensor, ...]:
    """Column, score and height at each of ``(K,)`` places, ``(K,)``."""
    rows = places // inputs.scores.shape[1]
    columns = places - rows * inputs.scores.shape[1]
    scores = inputs.scores[rows, columns].float()
    return columns, scores, scores - lowest[columns]


def _cutoff(inputs: RankingInputs, lowest: Tensor, size: int) -> Tensor:
    """A height, scalar float32, that about twice ``size`` negatives reach; -inf: all are wanted."""
    number = inputs.scores.numel()
    if number <= _FEW * size:
        return lowest.new_full((), -torch.inf)
    sample_size = max(_MIN_SAMPLE, _SAMPLE_RATE * number // size)
    wanted = min(2 * size * sample_size // number + 1, sample_size)
    sample = torch.arange(sample_size, device=lowest.device).mul_(_PRIME).remainder_(number)
    columns, _, heights = _look_up(inputs, lowest, sample)
    classes = inputs.gt_classes[sample // inputs.scores.shape[1]]
    heights.masked_fill_((classes < 0) | (classes == columns), -torch.inf)
    return heights.topk(wanted, sorted=False).values.min()


def _highest_places(inputs: RankingInputs, lowest: Tensor, cutoff: Tensor, size: int) -> Tensor:
    """``(K,)`` int64, the negatives that reach the cut-off; all if they are fewer than ``size``."""
    if cutoff.device.type != "cpu":
        return _places_without_waiting(inputs, lowest, cutoff, size)
    places = positions(_negatives_from(inputs, _threshold(lowest, cutoff, -torch.inf)))
    if len(places) < size and cutoff > -torch.inf:
        places = positions(_negatives_from(inputs, torch.full_like(lowest, -torch.inf)))
    return places


def _places_without_waiting(
    inputs: RankingInputs, lowest: Tensor, cutoff: Tensor, size: int
) -> Tensor:
    """``(5 size,)``, -1 for none: places above the cut-off, then at it, which may be very many."""
    reached, above = (
        _negatives_from(inputs, _threshold(lowest, cutoff, end)) for end in (-torch.inf, torch.inf)
    )
    parts = (above, 4 * size), (reached & ~above, size)
    try:
        found = [torch.nonzero_static(mask, size=room, fill_value=-1) for mask, room in parts]
    except NotImplementedError:  # CUDA has it since torch 2.7; before, this waits
        found = [mask.nonzero()[:room] for mask, room in parts]
    return torch.cat(found)[:, 0]


def _threshold(lowest: Tensor, height: Tensor, end: float) -> Tensor:
    """``(C,)`` float32, the scores of that height, a little beyond them towards -inf or inf.

    However a height is rounded, scores that reach it are at the lower one or above, and scores that
    do not exceed it are below the upper one.
    """
    to = torch.full_like(height, end)
    return torch.nextafter(lowest + torch.nextafter(height, to), to)


def _negatives_from(inputs: RankingInputs, thresholds: Tensor) -> Tensor:
    """``(N * C,)`` bool: the negatives at or above the ``(C,)`` threshold of their class."""
    found = inputs.scores >= thresholds
    found &= (inputs.gt_classes >= 0)[:, None]
    # A Python value would be copied to a GPU, which would have to be waited for.
    found[inputs.rows, inputs.columns] = found.new_zeros(())
    return found.flatten()
