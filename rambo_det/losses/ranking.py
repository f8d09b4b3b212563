"""The gradient of a rank-based loss, by counting (Rolínek et al., CVPR 2020).

Only the ranks of the positives enter the loss. So the N·C scores are not sorted: they are counted
between thresholds, one for each positive. With α the margin and g the slope of the loss by a rank,

    t_k     = score_k - α                   threshold: a negative b with b >= t_k ranks above k
    rank_k  = r⁺_k + #{b >= t_k}            r⁺ is the rank among the positives alone
    t'_k    = t_k + shift_k                 the step of the blackbox rule, λ g_k, see lambda_rules
    rank'_k = r'⁺_k + #{b >= t'_k}

    ∂L/∂score_k = (rank'_k - rank_k) / λ
    ∂L/∂b       = (#{k: t_k <= b} - #{k: t'_k <= b}) / λ

which is ``(rk(y + λ ∂L/∂rk) - rk(y)) / λ`` of all scores y, Eq. 3, to the last digit. The gradient
of a negative is the same for all between two neighbouring thresholds. So one pass of
:func:`.binning.bin_negatives` gives the ranks, and a second one the new ranks and the gradient.

A negative that ties with a positive ranks above it. Positives that tie keep their order, before and
after the step.

Every class has a segment of its own, and one more segment has the scores of all classes. With IoU
thresholds a segment has several lists (:mod:`.listed_positives`), which share its negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .binning import bin_negatives
from .distributed import Processes
from .inputs import RankingInputs
from .lambda_rules import FirstRanking, LambdaRule
from .listed_positives import ListedPositives
from .objectives import Objective
from .pushes import Pushes
from .score_memory import MemoryContents
from .sort_keys import count_at_or_above, make_keys_ceil, segments_of


@dataclass(frozen=True)
class RankingSpec:
    """What is ranked, and how.

    Attributes:
        per_class: rank the scores of each class.
        interclass: rank the scores of all classes together.
        beta: β in [0, 1], the share of the interclass term in the loss.
        objective: value and slope of the loss for each positive, see :mod:`.objectives`.
        lambda_rule: see :mod:`.lambda_rules`.
        margin: α >= 0, in units of score: a positive must beat a negative by more than it.
        num_iou_thresholds: J; 0: none, every positive is one.
    """

    per_class: bool
    interclass: bool
    beta: float
    objective: Objective
    lambda_rule: LambdaRule
    margin: float
    num_iou_thresholds: int = 0


@dataclass
class RankingResult:
    """What :func:`rank` gives, on the device of the scores; segment C is that of all classes.

    Attributes:
        loss: scalar float64, (1-β) · mean over the classes present + β · that of all classes.
        segment_losses: ``(C + 1,)`` float64, the mean over the lists of each segment; 0 for one
            that is not ranked or has no positive.
        present: ``(C + 1,)`` bool, the segments that are ranked and have a positive.
        num_above: ``(J, P)`` int64, negatives above each positive of all processes (within the
            margin), in the lists of its class if those are ranked.
        rank_change: ``(J, P)`` int64, by how much the step changes its rank there.
        lists: the positives.
        grad: ``(N, C)``, gradient of ``loss`` by the scores of this process.
    """

    loss: Tensor
    segment_losses: Tensor
    present: Tensor
    num_above: Tensor
    rank_change: Tensor
    lists: ListedPositives
    grad: Tensor


@torch.inference_mode()
def rank(
    inputs: RankingInputs,
    spec: RankingSpec,
    processes: Processes,
    memory: MemoryContents | None = None,
) -> RankingResult:
    """Losses of all lists, and the gradient of what they add up to at unit upstream gradient.

    A collective of ``processes``. It never waits for the device that the scores are on.

    Args:
        inputs: the scores of this process and the positives of all.
        memory: joins the lists of the classes, without a gradient of its own: remembered positives,
            the same in all processes, and this process's remembered negatives.
    """
    num_classes = inputs.scores.shape[1]
    keys = [inputs.keys] * spec.per_class + ([memory.positives] if memory else [])
    if spec.interclass:
        keys.append(inputs.keys + ((num_classes - segments_of(inputs.keys)) << 32))
    lists = ListedPositives(torch.cat(keys), num_classes + 1, spec.num_iou_thresholds, spec.margin)
    if lists.list.shape[0] == 0:
        return _nothing_to_rank(inputs, lists)

    def bin_at(*thresholds: Tensor, pushes: Pushes | None = None) -> tuple[Tensor, Tensor | None]:
        """``(K, T)``, of K keys for each place: negatives of this process above; the gradient."""
        edges, order = torch.cat(thresholds).sort(stable=True)
        values = pushes.at(order)[1] if pushes else None
        counts, grad = bin_negatives(
            inputs.scores, inputs.gt_classes, edges, values, inputs.grad_dtype, inputs.max_score
        )
        if memory:
            counts += count_at_or_above(memory.negatives, edges, num_classes + 1)
        counts = torch.empty_like(counts).index_copy_(0, order, counts)
        return counts.view(len(thresholds), -1), grad

    # The first ranking. A constant shift is known before it: both rankings then share one pass.
    shift, start_keys, moved_keys = spec.lambda_rule.constant_shift, lists.start_keys, None
    if shift is not None:
        moved = lists.start + shift
        moved_keys = lists.threshold_keys(moved)
    counts, _ = bin_at(start_keys) if moved_keys is None else bin_at(start_keys, moved_keys)
    counts = processes.all_reduce_sum(counts)
    num_above = counts[0] + lists.count_below_iou(lists.start)
    if shift is not None:
        num_above_moved = counts[1] + lists.count_below_iou(moved)
    ranks = num_above + lists.rank_pos
    per_positive_loss, dloss_drank = spec.objective(
        ranks.double(), lists.rank_pos.double(), lists.per_place(lists.num_pos.double())
    )
    losses = lists.sum_by_list(per_positive_loss)
    present, list_weight = _weigh(lists, num_classes, spec)
    num_overtaken = None if shift is None else num_above - num_above_moved
    shifts, divisor = spec.lambda_rule(
        FirstRanking(lists, per_positive_loss, dloss_drank, losses, num_overtaken)
    )

    # The second ranking, and the gradient.
    one_per_segment = shift is None and lists.one_per_segment
    pushes = Pushes(divisor, lists.per_place(list_weight), one_per_segment)
    if moved_keys is None:
        moved = lists.start + shifts
        counts, grad = bin_at(start_keys, lists.threshold_keys(moved), pushes=pushes)
        num_above_moved = processes.all_reduce_sum(counts[1]) + lists.count_below_iou(moved)
        # The ranks among the positives of a list stay the same, but go to other positives.
        rank_pos = torch.empty_like(ranks).index_copy_(0, lists.argsort(moved), lists.rank_pos)
        rank_change = num_above_moved + rank_pos - ranks
    else:
        _, grad = bin_at(start_keys, moved_keys, pushes=pushes)
        rank_change = num_above_moved - num_above
    rank_change, positive_grad = _by_positive(lists, rank_change, moved, pushes)
    assert grad is not None
    grad[inputs.rows, inputs.columns] = _own(positive_grad, inputs, spec).to(grad.dtype)
    if spec.num_iou_thresholds:
        # If no positive of a class that is present reaches a threshold, its AP there is 0.
        losses = losses.masked_fill((lists.num_pos == 0) & (list_weight > 0), 1.0)
    return RankingResult(
        loss=(losses * list_weight).sum(),
        segment_losses=losses[:-1].view(num_classes + 1, -1).mean(dim=1),
        present=present,
        num_above=lists.unsort(num_above)[:, : len(inputs.keys)],
        rank_change=rank_change[:, : len(inputs.keys)],
        lists=lists,
        grad=grad,
    )


def _by_positive(
    lists: ListedPositives, rank_change: Tensor, moved: Tensor, pushes: Pushes
) -> tuple[Tensor, Tensor]:
    """Rank change and gradient ``(J, I)`` of each positive in each list of its segment."""
    grad = lists.unsort(rank_change / pushes.divisor * pushes.weight)
    change = lists.unsort(rank_change)
    if lists.below_iou_keys is not None:  # where they are pushed as negatives are
        keys = torch.cat([make_keys_ceil(lists.list, each) for each in (lists.start, moved)])
        edges, order = keys.sort(stable=True)
        found = torch.searchsorted(edges, lists.below_iou_keys, right=True)
        num_pushing, pushed = (pad(x, (1, 0))[found] for x in pushes.at(order))
        change, grad = change + num_pushing.view_as(change), grad + pushed.view_as(grad)
    return change, grad


def _own(positive_grad: Tensor, inputs: RankingInputs, spec: RankingSpec) -> Tensor:
    """``(Q,)``, the gradient of this process's own positives, from ``(J, I)`` of all lists."""
    of_positive, own = (
        positive_grad.sum(dim=0),
        slice(inputs.first, inputs.first + len(inputs.rows)),
    )
    if spec.per_class and spec.interclass:
        return of_positive[own] + of_positive[len(of_positive) - len(inputs.keys) :][own]
    return of_positive[own]


def _weigh(lists: ListedPositives, num_classes: int, spec: RankingSpec) -> tuple[Tensor, Tensor]:
    """Segments present ``(C + 1,)`` bool; weight of each list in the loss ``(L + 1,)`` float64."""
    levels = max(spec.num_iou_thresholds, 1)
    present = lists.num_pos[:-1:levels] > 0
    share = (1 - spec.beta) / present[:num_classes].sum(dtype=torch.float64).clamp_(min=1)
    weight = torch.nn.functional.pad(present.double(), (0, 1))  # the last list has none
    weight[:num_classes] *= share / levels
    weight[num_classes] *= spec.beta / levels
    if levels > 1:
        weight = weight.repeat_interleave(levels)[: lists.num_lists + 1]
    return present, weight


def _nothing_to_rank(inputs: RankingInputs, lists: ListedPositives) -> RankingResult:
    losses = inputs.scores.new_zeros(inputs.scores.shape[1] + 1, dtype=torch.float64)
    none = inputs.keys.new_zeros((1, 0))
    grad = torch.zeros_like(inputs.scores, dtype=inputs.grad_dtype)
    return RankingResult(losses.sum(), losses, losses > 0, none, none, lists, grad)
