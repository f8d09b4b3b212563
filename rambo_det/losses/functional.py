"""The losses as functions, without a memory. All losses rank in float32 and count in integers.

``margin`` and ``lambda_`` are those of :class:`.rambo_loss.RamboLoss`. Every loss returns a float32
scalar >= 0; an AP loss is at most 1. Without a positive the loss is 0, still connected to the
scores. Invalid values, shapes and devices raise InputError, which is a ValueError.
"""

import torch
from torch import Tensor

from ..errors import InputError
from .distributed import Processes
from .gradient import attach_gradient
from .inputs import prepare_inputs
from .objectives import Objective, recall_log, recall_loglog
from .ranking import RankingSpec, compute_ranking

_RECALL: dict[str, Objective] = {"log": recall_log, "loglog": recall_loglog}


@torch.compiler.disable  # torch.compile cannot compile C++ and Triton
def _loss(scores: Tensor, gt_classes: Tensor, spec: RankingSpec) -> Tensor:
    alone = Processes(together=False)
    inputs = prepare_inputs(scores, gt_classes, alone)
    result = compute_ranking(inputs, spec, alone)
    return attach_gradient(scores, inputs.scores, result.loss, result.gradient, alone)


def class_ap_loss(
    scores: Tensor, gt_classes: Tensor, *, margin: float = 0.5, lambda_: float | None = None
) -> Tensor:
    """Returns L_APC: the mean of L_AP over the classes with a positive, one list per class.

    Args:
        scores: ``(N, C)``, any floating dtype.
        gt_classes: ``(N,)`` integers; ``C`` is background, below 0 is ignored.

    Example:
        Each class is ranked perfectly, but a negative of class 1 is above the positive of class 0.

        >>> scores = torch.tensor([[1.0, 5.0], [-3.0, 9.0]], requires_grad=True)
        >>> class_ap_loss(scores, torch.tensor([0, 1])).item()
        0.0
        >>> round(interclass_ap_loss(scores, torch.tensor([0, 1])).item(), 4)  # 1 - (1 + 2/3) / 2
        0.1667
    """
    return _loss(scores, gt_classes, RankingSpec(margin, lambda_, interclass=False))


def interclass_ap_loss(
    scores: Tensor, gt_classes: Tensor, *, margin: float = 0.5, lambda_: float | None = None
) -> Tensor:
    """Returns L_AP of one list with the scores of all classes; arguments: see class_ap_loss."""
    return _loss(scores, gt_classes, RankingSpec(margin, lambda_, beta=1.0, per_class=False))


def ap_loss(
    scores: Tensor, targets: Tensor, *, margin: float = 0.5, lambda_: float | None = None
) -> Tensor:
    """Returns L_AP = 1 - (1/P) Σ_{i positive} r⁺_i / r_i of one list (RaMBO, Eq. 6).

    Args:
        scores: ``(N,)``, any floating dtype.
        targets: ``(N,)``, bool or number; every value except 0 is positive.

    Example:
        >>> scores = torch.tensor([3.0, 2.0, -1.0], requires_grad=True)
        >>> loss = ap_loss(scores, torch.tensor([0, 1, 0]))
        >>> loss.backward()
        >>> loss.item(), bool(scores.grad[0] > 0), bool(scores.grad[1] < 0)
        (0.5, True, True)
    """
    return class_ap_loss(*_as_one_class(scores, targets), margin=margin, lambda_=lambda_)


def recall_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    weighting: str = "log",
    margin: float = 0.5,
    lambda_: float | None = None,
) -> Tensor:
    """Returns the recall loss of one list: the positives' mean of ``w(r - r⁺)`` (RaMBO, Eq. 9).

    Args:
        scores, targets: as in :func:`ap_loss`.
        weighting: ``"log"``: w(k) = log(1 + k); ``"loglog"``: w(k) = log(1 + log(1 + k)).

    Example:
        >>> loss = recall_loss(torch.tensor([3.0, 2.0, -1.0]), torch.tensor([0, 1, 0]))
        >>> round(loss.item(), 4)  # one negative above: log(2)
        0.6931
    """
    if weighting not in _RECALL:
        raise InputError(f"weighting must be one of {sorted(_RECALL)}, got {weighting!r}")
    spec = RankingSpec(margin, lambda_, interclass=False, objective=_RECALL[weighting])
    return _loss(*_as_one_class(scores, targets), spec)


def _as_one_class(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if scores.dim() != 1 or targets.shape != scores.shape:
        raise InputError(
            "scores and targets must both be (N,), "
            f"got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    return scores[:, None], (targets == 0).long()
