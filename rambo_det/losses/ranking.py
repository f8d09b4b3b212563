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
given, each positive moves alone, above all negatives. Its λ_k makes the size of its gradient equal
to its summand L_k of the loss; for AP, L_k is ``(1 - r⁺/r) / P``. This is the error-driven update
of AP-Loss (Chen et al., CVPR 2019), which has a gradient wherever there is a loss:

    ∂L/∂score_k = -L_k
    ∂L/∂b       = Σ L_k / #{b >= t_k} over the k with t_k <= b

Remembered scores count in the ranks of the batch's positives, so in L_k and g_k. P is the number of
the batch's positives, so the size of the gradient does not depend on the number of remembered
scores. A positive passes and pushes down only scores of the batch. So the gradient of a list sums
to 0. If remembered positives pushed negatives down too, no positive would be pushed up in return,
and the scores of rare classes would fall without end.

All negatives between two neighbouring thresholds have the same gradient. So one pass of
:func:`.binning.bin_negatives` counts the ranks. With a fixed λ, a second pass counts the new ranks.
One pass in the backward writes the gradient.

A negative with the score of a threshold ranks above the positive. Positives with equal scores keep
their order, before and after the step. A remembered positive ranks above an equal one of the batch.

Each class is one segment. One more segment, C, has the scores of all classes.
"""

import math
from dataclasses import dataclass, replace

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
from .sort_keys import count_at_or_above, key_segments


@dataclass(frozen=True)
class RankingSpec:
    """Settings of a ranking: arguments of :class:`.rambo_loss.RamboLoss`, and three more."""

    margin: float = 0.5
    lambda_: float | None = None
    beta: float = 0.5
    per_class: bool = True  # rank the scores of each class in its own list
    interclass: bool = True  # rank all classes' scores in one list; β is its share of the loss
    objective: Objective = average_precision  # loss and slope of each positive

    def __post_init__(self) -> None:
        lambda_ = self.lambda_
        for name, value, right, is_right in (
            ("margin (α)", self.margin, ">= 0 and finite", 0 <= self.margin < math.inf),
            ("lambda_ (λ)", lambda_, "> 0 and finite", lambda_ is None or 0 < lambda_ < math.inf),
            ("beta (β)", self.beta, "in [0, 1]", 0 <= self.beta <= 1),
        ):
            if not is_right:
                raise InputError(f"{name} must be {right}, got {value}")


@dataclass
class RankingResult:
    """The result of :func:`rank`, on the device of the scores; segment C has all classes.

    The values of the P positives of all processes come from the list of the positive's class, or
    from the list of all classes if the classes are not ranked.
    """

    loss: Tensor  # scalar float64, (1-β) · mean over the present classes + β · segment C
    segment_losses: Tensor  # (C + 1,) float64; 0 for a segment not ranked or without positives
    present: Tensor  # (C + 1,) bool, the segments that are ranked and have a positive
    num_above: Tensor  # (P,) int64, negatives of the batch above, also within the margin
    positive_grad: Tensor  # (P,) float64, gradient of the loss of that list alone
    lowest_thresholds: (
        Tensor  # (C + 1,) float32, lowest threshold of each segment; infinite if empty
    )
    gradient: Gradient  # of the loss, with respect to the scores of this process


@torch.inference_mode()
def compute_ranking(
    inputs: RankingInputs,
    spec: RankingSpec,
    processes: Processes,
    memory: ScoreMemory | None = None,
) -> RankingResult:
    """Computes the losses of all lists, and the gradient of their weighted sum.

    A collective of ``processes``. It never waits for the device of the scores.

    Args:
        inputs: the scores of this process and the positives of all processes.
        memory: its scores count in the ranks of the classes' lists. Its positives are the same in
            all processes; its negatives are those of this process.
    """
    num_classes = inputs.scores.shape[1]
    keys = inputs.keys if spec.per_class else inputs.keys[:0]
    if spec.interclass:
        of_all_classes = inputs.keys + ((num_classes - key_segments(inputs.keys)) << 32)
        keys = torch.cat([keys, of_all_classes])
    lists = ListedPositives(keys, num_classes + 1, spec.margin)

    def count(edges: Tensor) -> Tensor:
        """Returns ``(E,)`` int64: negatives of this process at or above each sorted edge."""
        counts, _ = binning.bin_negatives(
            inputs.scores, inputs.gt_classes, edges, max_score=inputs.max_score
        )
        return counts

    edges = lists.threshold_keys(lists.start)
    remembered_neg = remembered_pos = torch.zeros_like(edges)
    if memory:
        remembered_neg = count_at_or_above(memory.negatives, edges, num_classes + 1)
        remembered_pos = count_at_or_above(memory.positives, lists.keys, num_classes + 1)
    num_above, remembered_neg = processes.all_reduce_sum(
        torch.stack([count(edges), remembered_neg])
    )
    rank_pos = lists.rank_pos + remembered_pos
    per_positive_loss, dloss_drank = spec.objective(
        (num_above + remembered_neg + rank_pos).double(),
        rank_pos.double(),
        lists.per_place(lists.num_pos.double()),
    )
    losses = lists.sum_by_segment(per_positive_loss)
    present, of_segment = _segment_weights(lists, spec)
    weight = lists.per_place(of_segment)
    # From here on only the batch counts: no positive passes a remembered score.
    if spec.lambda_ is None:
        pull = per_positive_loss * (num_above > 0)
        positive_grad = -pull
        values = lists.cumsum(weight * pull / num_above.clamp(min=1))
    else:
        ranks = num_above + lists.rank_pos
        moved = lists.start + spec.lambda_ * dloss_drank
        moved_keys, by_key = lists.threshold_keys(moved).sort(stable=True)
        num_at_moved = processes.all_reduce_sum(count(moved_keys))
        num_at_moved = torch.empty_like(ranks).index_copy_(0, by_key, num_at_moved)
        # After the step, the positives of a list have the same ranks r⁺, but in another order.
        by_moved = lists.argsort(moved)
        moved_rank_pos = torch.empty_like(ranks).index_copy_(0, by_moved, lists.rank_pos)
        positive_grad = (num_at_moved + moved_rank_pos - ranks).double() / spec.lambda_
        # Sums integers and divides once, which equals the blackbox rule to the last digit.
        edges, order = torch.cat([edges, moved_keys]).sort(stable=True)
        num_pushing = ((order < len(ranks)) * 2 - 1).cumsum(0)
        values = num_pushing.double() / spec.lambda_ * torch.cat([weight, weight[by_key]])[order]
    own = _local_positive_grad(lists.unsort(positive_grad * weight), inputs, spec)
    return RankingResult(
        loss=(losses * of_segment).sum(),
        segment_losses=losses,
        present=present,
        num_above=lists.unsort(num_above)[: len(inputs.keys)],
        positive_grad=lists.unsort(positive_grad)[: len(inputs.keys)],
        lowest_thresholds=lists.lowest_thresholds(),
        gradient=Gradient(replace(inputs, scores=inputs.scores.new_empty(0)), edges, values, own),
    )


def _local_positive_grad(of_positive: Tensor, inputs: RankingInputs, spec: RankingSpec) -> Tensor:
    """Returns the ``(Q,)`` gradient of this process's positives, from ``(T,)`` of all lists."""
    own = slice(inputs.first_key, inputs.first_key + len(inputs.rows))
    if spec.per_class and spec.interclass:
        return of_positive[own] + of_positive[len(of_positive) - len(inputs.keys) :][own]
    return of_positive[own]


def _segment_weights(lists: ListedPositives, spec: RankingSpec) -> tuple[Tensor, Tensor]:
    """Returns ``(C + 1,)`` bool, the segments with a positive, and ``(C + 1,)`` float64 weights."""
    present, beta = lists.num_pos > 0, spec.beta * spec.interclass
    weight = present.double()
    weight[:-1] *= (1 - beta) / weight[:-1].sum().clamp(min=1)
    weight[-1] *= beta
    return present, weight
