"""The gradient of a rank-based loss, computed by counting (Rolínek et al., CVPR 2020).

Only the ranks of the positives enter the loss. So the N·C scores are not sorted: they are counted
between thresholds, one per positive. With the margin α and the slope g_k = ∂L/∂rank_k of the loss:

    t_k     = score_k - α                   threshold: a negative b with b >= t_k ranks above k
    rank_k  = r⁺_k + #{b >= t_k}            r⁺ is the rank among the positives alone
    t'_k    = t_k + λ g_k                   the step of the blackbox rule
    rank'_k = r'⁺_k + #{b >= t'_k}

    ∂L/∂score_k = (rank'_k - rank_k) / λ
    ∂L/∂b       = #{k: t_k <= b < t'_k} / λ

This equals ``(rk(y + λ ∂L/∂rk) - rk(y)) / λ`` of all scores y, Eq. 3, to the last digit. If no λ is
given, each positive moves alone, above all negatives, and the size of its gradient is its summand
L_k of the loss; for AP, L_k is ``(1 - r⁺/r) / P``. In general no λ gives both. This is the
error-driven update of AP-Loss (Chen et al., CVPR 2019), which has a gradient wherever there is a
loss:

    ∂L/∂score_k = -L_k
    ∂L/∂b       = Σ L_k / #{b >= t_k} over the k with t_k <= b

Remembered scores count in the ranks of the batch's positives, so in L_k and g_k. P is the number of
the batch's positives. So without a λ the gradient is not divided by the number of remembered
scores; with a fixed λ, the steps λ g_k become smaller with it. A positive passes and pushes down
only scores of the batch, so the gradient of a list sums to 0. If remembered positives pushed
negatives down too, no positive would be pushed up in return, and the scores of rare classes would
fall without end.

All negatives between two neighbouring thresholds have the same gradient. So one pass of
:func:`.binning.bin_negatives` counts the ranks. With a fixed λ, a second pass counts the new ranks.
One pass in the backward writes the gradient.

A negative with the score of a threshold ranks above the positive. Positives with equal scores keep
their order, before and after the step. A remembered positive ranks above an equal one of the batch.

A segment is one ranked list. Each class is a segment; one more, C, has the scores of all classes.
"""

import math
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from ..errors import InputError
from . import binning
from .distributed import Processes
from .gradient import Gradient
from .inputs import RankingInputs
from .listed_positives import ListedPositives
from .objectives import Objective, average_precision
from .score_memory import ScoreMemory
from .sort_keys import count_at_or_above, key_segments, make_keys_ceil


@dataclass(frozen=True)
class RankingSpec:
    """Settings of a ranking: arguments of :class:`.rambo_loss.RamboLoss`, and three more."""

    margin: float = 0.5
    lambda_: float | None = None
    beta: float = 0.5
    per_class: bool = True  # rank the scores of each class in their own segment
    interclass: bool = True  # rank all classes' scores in segment C if β, its share, is above 0
    objective: Objective = average_precision  # loss and slope of each positive

    def __post_init__(self) -> None:
        lambda_ = 1 if self.lambda_ is None else self.lambda_
        if not (isinstance(self.margin, Real) and 0 <= self.margin < math.inf):
            raise InputError(f"margin must be >= 0 and finite, got {self.margin!r}")
        if not (isinstance(lambda_, Real) and 0 < lambda_ < math.inf):
            raise InputError(f"lambda_ must be > 0 and finite, or None, got {lambda_!r}")
        if not (isinstance(self.beta, Real) and 0 <= self.beta <= 1):
            raise InputError(f"beta must be in [0, 1], got {self.beta!r}")


@dataclass
class RankingResult:
    """The result of :func:`compute_ranking`, on the device of the scores.

    The values of the P positives of all processes come from the segment of the positive's class,
    or from segment C if the classes are not ranked.
    """

    loss: Tensor  # scalar float64, (1-β) · mean over the present classes + β · segment C
    segment_losses: Tensor  # (C + 1,) float64; 0 for a segment not ranked or without positives
    present: Tensor  # (C + 1,) bool, the segments that are ranked and have a positive
    num_above: Tensor  # (P,) int64, negatives of the batch above, also within the margin
    positive_grad: Tensor  # (P,) float64, gradient of the loss of that segment alone
    lowest_thresholds: Tensor  # (C + 1,) float32, lowest of each segment; infinite if empty
    gradient: Gradient  # of the loss, with respect to the scores of this process


@torch.inference_mode()
def compute_ranking(
    inputs: RankingInputs,
    spec: RankingSpec,
    processes: Processes,
    memory: ScoreMemory | None = None,
) -> RankingResult:
    """Computes the losses of all segments, and the gradient of their weighted sum.

    A collective of ``processes``. It never waits for the device of the scores.

    Args:
        inputs: the scores of this process and the positives of all processes.
        memory: its scores count in the ranks of the classes' segments. Its positives are the same
            in all processes; its negatives are those of this process.
    """
    num_classes = inputs.scores.shape[1]
    keys = inputs.pos_keys if spec.per_class else inputs.pos_keys[:0]
    if spec.interclass and spec.beta > 0:
        of_all_classes = inputs.pos_keys + ((num_classes - key_segments(inputs.pos_keys)) << 32)
        keys = torch.cat([keys, of_all_classes])
    positives = ListedPositives(keys, num_classes + 1, spec.margin)

    def count(edges: Tensor) -> Tensor:
        """Returns ``(E,)`` int64: negatives of this process at or above each sorted edge."""
        counts, _ = binning.bin_negatives(
            inputs.scores, inputs.gt_classes, edges, max_score=inputs.max_score
        )
        return counts

    edges = make_keys_ceil(positives.segment, positives.threshold)
    counts, rank_pos = [count(edges)], positives.rank_pos
    if memory:
        counts.append(count_at_or_above(memory.negatives, edges, num_classes + 1))
        rank_pos = rank_pos + count_at_or_above(memory.positives, positives.keys, num_classes + 1)
    num_above, *remembered = processes.all_reduce_sum(torch.stack(counts))
    per_positive_loss, dloss_drank = spec.objective(
        sum(remembered, num_above + rank_pos).double(),
        rank_pos.double(),
        positives.gather_by_segment(positives.num_pos.double()),
    )
    losses = per_positive_loss.new_zeros(num_classes + 1)
    losses.index_add_(0, positives.segment, per_positive_loss)
    present, segment_weight = _segment_weights(positives, spec)
    weight = positives.gather_by_segment(segment_weight)
    # From here on only the batch counts: no positive passes a remembered score.
    if spec.lambda_ is None:
        grad_size = per_positive_loss * (num_above > 0)
        positive_grad = -grad_size
        values = positives.cumsum(weight * grad_size / num_above.clamp(min=1))
    else:
        # On a GPU, torch divides by a number less exactly than by a tensor.
        lambda_ = dloss_drank.new_full((), spec.lambda_)
        ranks = num_above + positives.rank_pos
        shifted = positives.threshold + lambda_ * dloss_drank
        shifted_keys, by_key = make_keys_ceil(positives.segment, shifted).sort(stable=True)
        num_at_shifted = processes.all_reduce_sum(count(shifted_keys))
        num_at_shifted = torch.empty_like(ranks).index_copy_(0, by_key, num_at_shifted)
        # After the step, the positives of a segment have the same ranks r⁺, but in another order.
        by_shifted = positives.argsort(shifted)
        shifted_rank_pos = torch.empty_like(ranks).index_copy_(0, by_shifted, positives.rank_pos)
        positive_grad = (num_at_shifted + shifted_rank_pos - ranks).double() / lambda_
        # Sums integers and divides once, which equals the blackbox rule to the last digit.
        edges, order = torch.cat([edges, shifted_keys]).sort(stable=True)
        num_pushing = ((order < len(ranks)) * 2 - 1).cumsum(0)
        values = num_pushing.double() / lambda_ * torch.cat([weight, weight[by_key]])[order]
    local_grad = _local_positive_grad(positives.unsort(positive_grad * weight), inputs)
    without_scores = replace(inputs, scores=inputs.scores.new_empty(0))
    return RankingResult(
        loss=(losses * segment_weight).sum(),
        segment_losses=losses,
        present=present,
        num_above=positives.unsort(num_above)[: len(inputs.pos_keys)],
        positive_grad=positives.unsort(positive_grad)[: len(inputs.pos_keys)],
        lowest_thresholds=positives.lowest_thresholds(),
        gradient=Gradient(without_scores, edges, values, local_grad),
    )


def _local_positive_grad(of_positive: Tensor, inputs: RankingInputs) -> Tensor:
    """Returns the ``(Q,)`` gradient of this process's positives, from ``(T,)`` of all segments."""
    own = slice(inputs.first_pos, inputs.first_pos + len(inputs.pos_rows))
    # A positive is in the segment of its class, in segment C, or in both.
    return of_positive.view(-1, max(len(inputs.pos_keys), 1))[:, own].sum(dim=0)


def _segment_weights(positives: ListedPositives, spec: RankingSpec) -> tuple[Tensor, Tensor]:
    """Returns ``(C + 1,)`` bool, the segments with a positive, and ``(C + 1,)`` float64 weights."""
    present, beta = positives.num_pos > 0, spec.beta * spec.interclass
    weight = present.double()
    weight[:-1] *= (1 - beta) / weight[:-1].sum().clamp(min=1)
    weight[-1] *= beta
    return present, weight
