"""The scores and the positives of a batch, prepared for ranking."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .distributed import Processes
from .sort_keys import make_keys


@dataclass
class RankingInputs:
    """The scores of this process and the positives of all processes, on one device."""

    scores: Tensor  # (N, C) float32 or half precision, without gradient; contiguous or strided
    gt_classes: Tensor  # (N,) int64; C is background, below 0 is ignored
    min_score: float  # the lowest of the scores
    max_score: float  # the highest of the scores
    pos_rows: Tensor  # (Q,) int64, the rows of this process's positives
    pos_columns: Tensor  # (Q,) int64, the columns of this process's positives: their classes
    pos_keys: Tensor  # (P,) int64, see sort_keys.py: the positives of process 0, 1, ...
    first_pos: int  # the index in pos_keys of this process's first positive
    all_finite: bool  # whether all scores of all processes are finite


@torch.no_grad()
def prepare_inputs(scores: Tensor, gt_classes: Tensor, processes: Processes) -> RankingInputs:
    """Finds the positives of a batch. A collective of ``processes``; waits for the device once.

    ``scores`` are ``(N, C)`` of any floating dtype, ``gt_classes`` ``(N,)`` integers. Raises
    InputError for invalid shapes, devices or labels.
    """
    if not isinstance(gt_classes, Tensor):
        raise InputError(f"gt_classes must be a tensor, got {type(gt_classes).__name__}")
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, (scores, gt_classes))):
        raise InputError(
            "RaMBO losses do not support torch.func transforms (grad, vmap): use loss.backward()"
        )
    if scores.dim() != 2 or gt_classes.shape != scores.shape[:1]:
        raise InputError(
            "scores must be (N, C) and gt_classes (N,), "
            f"got {tuple(scores.shape)} and {tuple(gt_classes.shape)}"
        )
    if scores.device != gt_classes.device:
        raise InputError(
            "scores and gt_classes must be on the same device, "
            f"got {scores.device} and {gt_classes.device}"
        )
    if gt_classes.is_floating_point() and gt_classes.numel():
        raise InputError(f"gt_classes must be integers, got {gt_classes.dtype}")
    ranked = scores.detach()
    if ranked.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        ranked = ranked.float()
    # A copy: the backward reads gt_classes too, and the caller may change them before then.
    gt_classes = gt_classes.to(torch.int64, copy=True).contiguous()
    is_positive = (gt_classes >= 0) & (gt_classes < scores.shape[1])
    lowest, highest = ranked.aminmax() if ranked.numel() else ranked.new_zeros(2)  # may be NaN
    top_class = gt_classes.max() if gt_classes.numel() else gt_classes.new_zeros(())
    header = torch.stack([x.double() for x in (is_positive.sum(), lowest, highest, top_class)])
    headers = processes.all_gather(header).tolist()  # waits for the device
    num_pos, lows, highs, top_classes = zip(*headers, strict=True)  # each has a value per process
    counts, top, num_classes = [int(n) for n in num_pos], int(max(top_classes)), scores.shape[1]
    if top > num_classes:
        raise InputError(
            f"gt_classes contains {top}, but with {num_classes} classes the largest valid label is "
            f"{num_classes} (background)"
        )
    index = processes.index
    rows = true_indices(is_positive, counts[index])
    columns = gt_classes.index_select(0, rows)
    keys = make_keys(columns, ranked[rows, columns].float())
    keys = processes.all_gather_uneven(keys, counts)
    first, finite = sum(counts[:index]), all(map(math.isfinite, lows + highs))
    low, high = lows[index], highs[index]
    return RankingInputs(ranked, gt_classes, low, high, rows, columns, keys, first, finite)


def true_indices(mask: Tensor, number: int) -> Tensor:
    """Returns the ``(number,)`` int64 indices of the ``number`` true entries of a mask."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times as fast as in torch
    # nonzero() would wait for the device.
    ordinals = torch.arange(1, number + 1, device=mask.device)
    return torch.searchsorted(mask.cumsum(0), ordinals)
