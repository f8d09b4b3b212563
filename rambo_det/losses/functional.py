"""The losses as functions, without a memory. All of them rank in float32 and count in integers.

Arguments they share:
    lambda_: λ > 0 of the blackbox rule, fixed, on ranks that are not divided by the list's length
        (the authors divide: their λ is ours divided by N). None: ``lift`` says how far.
    lift: δ > 0, in units of score. λ is chosen for each list so that its median positive moves up
        by the margin and δ, see :class:`.lambda_rules.MedianShift`.
    each: every positive moves up by the margin and δ, and its gradient is its own part of the loss,
        see :class:`.lambda_rules.ErrorDriven`. Requires that ``lambda_`` is None.
    margin: α >= 0, in units of score: a positive counts as ranked above a negative only if it beats
        it by more than α.
    ious: (N,), for each positive the IoU of its box with its object. Required with an ``iou_gap``
        below 1.
    iou_gap: in [0, 1]: a positive above another is an error too if its IoU is lower by more than
        that. 1: none is.

They return a scalar float32, >= 0 and for AP < 1. Without a positive it is 0, still connected to
the scores. They raise InputError, a ValueError, for values, shapes and devices that do not fit.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from ..errors import InputError
from .distributed import Processes
from .inputs import attach_gradient, prepare_inputs
from .lambda_rules import ErrorDriven, FixedLambda, LambdaRule, MedianShift
from .objectives import Objective, average_precision, recall_log, recall_loglog
from .ranking import RankingSpec, rank

_RECALL: dict[str, Objective] = {"log": recall_log, "loglog": recall_loglog}


def make_lambda_rule(
    lambda_: float | None, lift: float, each: bool, margin: float, log: bool = True
) -> LambdaRule:
    """The λ rule from the arguments of this module; ``log`` as in MedianShift."""
    if lambda_ is not None:
        if each:
            raise InputError(f"lambda_ (λ) must be None with each, got {lambda_}")
        if not 0 < lambda_ < inf:
            raise InputError(f"lambda_ (λ) must be > 0 and finite, got {lambda_}")
        return FixedLambda(lambda_)
    if not 0 < lift < inf:
        raise InputError(f"lift (δ) must be > 0 and finite, got {lift}")
    return ErrorDriven(margin + lift) if each else MedianShift(margin + lift, log)


@torch.compiler.disable  # C++ and Triton cannot be compiled
def _loss(
    scores: Tensor, gt_classes: Tensor, spec: RankingSpec, ious: Tensor | None = None
) -> Tensor:
    alone = Processes(together=False)
    inputs = prepare_inputs(scores, gt_classes, alone, ious, spec.iou_gap)
    result = rank(inputs, spec, alone)
    return attach_gradient(scores, result.loss, result.grad, inputs.finite, alone)


def class_ap_loss(
    scores: Tensor,
    gt_classes: Tensor,
    *,
    lambda_: float | None = None,
    lift: float = 2.0,
    each: bool = False,
    margin: float = 0.5,
    ious: Tensor | None = None,
    iou_gap: float = 1.0,
) -> Tensor:
    """L_APC: the mean of L_AP over the classes that have a positive, one list a class.

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
    rule = make_lambda_rule(lambda_, lift, each, margin)
    spec = RankingSpec(True, False, 0.0, average_precision, rule, margin, iou_gap)
    return _loss(scores, gt_classes, spec, ious)


def interclass_ap_loss(
    scores: Tensor,
    gt_classes: Tensor,
    *,
    lambda_: float | None = None,
    lift: float = 2.0,
    each: bool = False,
    margin: float = 0.5,
    ious: Tensor | None = None,
    iou_gap: float = 1.0,
) -> Tensor:
    """L_AP of the scores of all classes in one list; arguments and example: class_ap_loss."""
    rule = make_lambda_rule(lambda_, lift, each, margin)
    spec = RankingSpec(False, True, 1.0, average_precision, rule, margin, iou_gap)
    return _loss(scores, gt_classes, spec, ious)


def ap_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    lambda_: float | None = None,
    lift: float = 2.0,
    each: bool = False,
    margin: float = 0.5,
    ious: Tensor | None = None,
    iou_gap: float = 1.0,
) -> Tensor:
    """L_AP = 1 - (1/P) Σ_{i positive} r⁺_i / r_i of one list (RaMBO, Eq. 6).

    Args:
        scores: ``(N,)``, any floating dtype.
        targets: ``(N,)``, bool or number; not 0 is positive.

    Example:
        >>> scores = torch.tensor([3.0, 2.0, -1.0], requires_grad=True)
        >>> loss = ap_loss(scores, torch.tensor([0, 1, 0]))
        >>> loss.backward()
        >>> loss.item(), bool(scores.grad[0] > 0), bool(scores.grad[1] < 0)
        (0.5, True, True)
    """
    scores, gt_classes = _as_one_class(scores, targets)
    return class_ap_loss(
        scores, gt_classes, lambda_=lambda_, lift=lift, each=each, margin=margin, ious=ious,
        iou_gap=iou_gap,
    )  # fmt: skip


def recall_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    weighting: str = "log",
    lambda_: float | None = None,
    lift: float = 2.0,
    each: bool = False,
    margin: float = 0.5,
) -> Tensor:
    """Recall loss of one list: the mean over positives of ``w(r - r⁺)`` (RaMBO, Eq. 9).

    Args:
        scores, targets: as :func:`ap_loss`.
        weighting: ``"log"``: w(k) = log(1 + k); ``"loglog"``: w(k) = log(1 + log(1 + k)).

    Example:
        >>> loss = recall_loss(torch.tensor([3.0, 2.0, -1.0]), torch.tensor([0, 1, 0]))
        >>> round(loss.item(), 4)  # one negative above: log(2)
        0.6931
    """
    if weighting not in _RECALL:
        raise InputError(f"weighting must be one of {sorted(_RECALL)}, got {weighting!r}")
    rule = make_lambda_rule(lambda_, lift, each, margin, log=False)
    spec = RankingSpec(True, False, 0.0, _RECALL[weighting], rule, margin)
    return _loss(*_as_one_class(scores, targets), spec)


def _as_one_class(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if scores.dim() != 1 or targets.shape != scores.shape:
        raise InputError(
            "scores and targets must both be (N,), "
            f"got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    return scores[:, None], (targets == 0).long()
