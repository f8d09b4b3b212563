"""The losses as functions. All of them rank in float32 or better and count in integers.

Arguments they share:
    lambda_: λ > 0 of the blackbox rule, fixed, on ranks that are not divided by the list's length
        (the authors divide: their λ is ours divided by N); or None for the rule that follows the
        scale of each list's scores, see ``lift``.
    lift: δ > 0, in units of score: without ``lambda_`` and ``each``, λ is chosen for each list so
        that its median positive is moved up by the margin and δ more, and the gradient of an AP
        loss is that of ``-log AP`` (:class:`.step.MedianLift`).
    each: without ``lambda_``: every positive is moved up by the margin and δ, and if it passes a
        negative then its gradient is the loss it has (:class:`.step.EachLift`).
    margin: α >= 0, in units of score: in training a positive counts as ranked above a negative only
        if it beats it by more than α.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from ..errors import InputError
from .batch import Batch
from .lists import Ranking
from .objectives import Objective, average_precision, recall_log, recall_loglog
from .step import EachLift, FixedStep, MedianLift, Step

_RECALL: dict[str, Objective] = {"log": recall_log, "loglog": recall_loglog}


def make_step(
    lambda_: float | None, lift: float, margin: float, log: bool = True, each: bool = False
) -> Step | EachLift:
    """The λ rule from its parameters; raises InputError if they are out of range."""
    if not 0 <= margin < inf:
        raise InputError(f"margin (α) must be >= 0 and finite, got {margin}")
    if lambda_ is not None:
        if each:
            raise InputError(f"lambda_ (λ) must be None with each, got {lambda_}")
        if not 0 < lambda_ < inf:
            raise InputError(f"lambda_ (λ) must be > 0 and finite, got {lambda_}")
        return FixedStep(lambda_)
    if not 0 < lift < inf:
        raise InputError(f"lift (δ) must be > 0 and finite, got {lift}")
    return EachLift(margin + lift) if each else MedianLift(margin + lift, log)


@torch.compiler.disable  # as RamboLoss.forward
def _lose(scores: Tensor, gt_classes: Tensor, how: Ranking) -> Tensor:
    batch = Batch.of(scores, gt_classes)
    return batch.lose(batch.rank(how))


def class_ap_loss(
    scores: Tensor,
    gt_classes: Tensor,
    *,
    lambda_: float | None = None,
    lift: float = 2.0,
    each: bool = False,
    margin: float = 0.5,
) -> Tensor:
    """L_APC: the mean of L_AP over the classes that have a positive, one list a class.

    Args:
        scores: ``(N, C)``, any floating dtype.
        gt_classes: ``(N,)`` integers; ``C`` is background, below 0 is ignored.
        lambda_, lift, each, margin: see the module.

    Returns:
        Scalar float32 in [0, 1); 0, still connected to ``scores``, if there is no positive.
    """
    how = Ranking(
        True, False, 0.0, average_precision, make_step(lambda_, lift, margin, each=each), margin
    )
    return _lose(scores, gt_classes, how)


def interclass_ap_loss(
    scores: Tensor,
    gt_classes: Tensor,
    *,
    lambda_: float | None = None,
    lift: float = 2.0,
    each: bool = False,
    margin: float = 0.5,
) -> Tensor:
    """L_AP over the scores of all classes in one list; arguments as :func:`class_ap_loss`."""
    how = Ranking(
        False, True, 1.0, average_precision, make_step(lambda_, lift, margin, each=each), margin
    )
    return _lose(scores, gt_classes, how)


def _one_list(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if scores.dim() != 1 or targets.shape != scores.shape:
        raise InputError(
            "scores and targets must both be (N,), "
            f"got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    return scores[:, None], (targets == 0).long()


def ap_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    lambda_: float | None = None,
    lift: float = 2.0,
    each: bool = False,
    margin: float = 0.5,
) -> Tensor:
    """L_AP = 1 - (1/P) Σ_{i positive} r⁺_i / r_i of one list (RaMBO, Eq. 6).

    Args:
        scores: ``(N,)``, any floating dtype.
        targets: ``(N,)``, bool or number; not 0 is positive.
        lambda_, lift, each, margin: see the module.

    Returns:
        Scalar float32 in [0, 1); 0, still connected to ``scores``, if there is no positive.
    """
    return class_ap_loss(
        *_one_list(scores, targets), lambda_=lambda_, lift=lift, each=each, margin=margin
    )


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
        lambda_, lift, each, margin: see the module.

    Returns:
        Scalar float32 >= 0; 0, still connected to ``scores``, if there is no positive.
    """
    if weighting not in _RECALL:
        raise InputError(f"weighting must be one of {sorted(_RECALL)}, got {weighting!r}")
    step = make_step(lambda_, lift, margin, log=False, each=each)
    return _lose(
        *_one_list(scores, targets), Ranking(True, False, 0.0, _RECALL[weighting], step, margin)
    )
