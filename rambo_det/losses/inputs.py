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
    rows: Tensor  # (Q,) int64, the rows of this process's positives
    columns: Tensor  # (Q,) int64, the columns of this process's positives: their classes
    keys: Tensor  # (P,) int64, see sort_keys.py: the positives of process 0, 1, ...
    first_key: int  # the index in keys of this process's first positive
    all_finite: bool  # whether all scores of all processes are finite


@torch.no_grad()
def prepare_inputs(scores: Tensor, gt_classes: Tensor, processes: Processes) -> RankingInputs:
    """Finds the positives of a batch. A collective of ``processes``; waits for the device once.

    ``scores`` are ``(N, C)`` of any floating dtype, ``gt_classes`` ``(N,)`` integers. Raises
    InputError for invalid shapes, devices or labels.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(scores):
        raise InputError("a ranking has no torch.func transform (grad, vmap): call backward()")
    if scores.dim() != 2 or gt_classes.shape != scores.shape[:1]:
        raise InputError(
            "scores must be (N, C) and gt_classes (N,), "
            f"got {tuple(scores.shape)} and {tuple(gt_classes.shape)}"
        )
    if scores.device != gt_classes.device:
        raise InputError(f"scores are on {scores.device}, gt_classes on {gt_classes.device}")
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
    counts = [int(count) for count, *_ in headers]
    top = int(max(top_class for *_, top_class in headers))
    if top > scores.shape[1]:
        raise InputError(
            f"gt_classes has {top}, but of {scores.shape[1]} classes the highest label is "
            f"{scores.shape[1]}, background"
        )
    rows = true_indices(is_positive, counts[processes.rank])
    columns = gt_classes.index_select(0, rows)
    keys = make_keys(columns, ranked[rows, columns].float())
    keys = processes.all_gather_uneven(keys, counts)
    first = sum(counts[: processes.rank])
    finite = all(math.isfinite(low) and math.isfinite(high) for _, low, high, _ in headers)
    _, low, high, _ = headers[processes.rank]
    return RankingInputs(ranked, gt_classes, low, high, rows, columns, keys, first, finite)


def true_indices(mask: Tensor, number: int = 0) -> Tensor:
    """Returns ``(K,)`` int64 indices of a mask's true entries; on a GPU the first ``number``."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times as fast as in torch
    # nonzero() would wait for the device.
    wanted = torch.arange(1, number + 1, device=mask.device)
    return torch.searchsorted(mask.cumsum(0), wanted)
