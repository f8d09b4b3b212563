"""The gradient of a rank-based loss, by counting (Rolínek et al., CVPR 2020).

Only the ranks of the positives enter the loss. So the N·C scores are not sorted: they are counted
between thresholds, one for each positive. With α the margin and g the slope of the loss by a rank,

    t_k     = score_k - α                   threshold: a negative b with b >= t_k ranks above k
    rank_k  = r⁺_k + #{b >= t_k}            r⁺ is the rank among the positives alone
    t'_k    = t_k + shift_k                 the step of the λ rule, see lambda_rules
    rank'_k = r'⁺_k + #{b >= t'_k}

    ∂L/∂score_k = (rank'_k - rank_k) / λ_k
    ∂L/∂b       = Σ 1 / λ_k over the k with t_k <= b < t'_k

With one λ and the step λ g_k that is ``(rk(y + λ ∂L/∂rk) - rk(y)) / λ`` of all scores y, Eq. 3, to
the last digit. Where each positive has a λ of its own, r'⁺_k is r⁺_k: it moves alone. The gradient
of a negative is the same for all between two neighbouring thresholds. So a pass of
:func:`.binning.bin_negatives` gives the ranks, another one the new ranks if the step depends on
the ranks, and one in the backward the gradient.

A negative that ties with a positive ranks above it. Positives that tie keep their order, before and
after the step.

Every class has a segment of its own, and one more segment has the scores of all classes.
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
from .lambda_rules import ErrorDriven, FixedLambda, LambdaRule, Pushes
from .listed_positives import ListedPositives
from .objectives import Objective, average_precision
from .score_memory import MemoryContents
from .sort_keys import count_at_or_above, segments_of


@dataclass(frozen=True)
class RankingSpec:
    """What is ranked, and how: arguments of :class:`.rambo_loss.RamboLoss`, and three more."""

    margin: float = 0.5
    lambda_: float | None = None
    lift: float = 20.0
    beta: float = 0.5
    per_class: bool = True  # rank the scores of each class
    interclass: bool = True  # rank those of all classes together; β is its share in the loss
    objective: Objective = average_precision  # value and slope of the loss for each positive

    def __post_init__(self) -> None:
        lambda_ = self.lambda_
        for name, value, right, is_right in (
            ("margin (α)", self.margin, ">= 0 and finite", 0 <= self.margin < math.inf),
            ("lambda_ (λ)", lambda_, "> 0 and finite", lambda_ is None or 0 < lambda_ < math.inf),
            ("lift (δ)", self.lift, "> 0 and finite", 0 < self.lift < math.inf),
            ("beta (β)", self.beta, "in [0, 1]", 0 <= self.beta <= 1),
        ):
            if not is_right:
                raise InputError(f"{name} must be {right}, got {value}")

    @property
    def lambda_rule(self) -> LambdaRule:
        """How far positives move up, and what for."""
        if self.lambda_ is not None:
            return FixedLambda(self.lambda_)
        return ErrorDriven(self.margin + self.lift)


@dataclass
class RankingResult:
    """What :func:`rank` gives, on the device of the scores; segment C is that of all classes.

    The tensors of the P positives of all processes are of the list of their class, if there is one.
    """

    loss: Tensor  # scalar float64, (1-β) · mean over the classes present + β · that of all classes
    segment_losses: Tensor  # (C + 1,) float64; 0 for one that is not ranked or has no positive
    present: Tensor  # (C + 1,) bool, the segments that are ranked and have a positive
    num_above: Tensor  # (P,) int64, the negatives above, those within the margin too
    positive_grad: Tensor  # (P,) float64, of the loss of that list alone
    lists: ListedPositives
    gradient: Gradient  # of the loss by the scores of this process


@torch.inference_mode()
def rank(
    inputs: RankingInputs,
    spec: RankingSpec,
    processes: Processes,
    memory: MemoryContents | None = None,
) -> RankingResult:
    """Losses of all lists, and the gradient of what they add up to.

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
    lists = ListedPositives(torch.cat(keys), num_classes + 1, spec.margin)

    def count(edges: Tensor, order: Tensor) -> Tensor:
        """``(E,)`` int64, negatives of all processes above, in the order before the sort."""
        counts, _ = binning.bin_negatives(
            inputs.scores, inputs.gt_classes, edges, max_score=inputs.max_score
        )
        if memory:
            counts += count_at_or_above(memory.negatives, edges, num_classes + 1)
        return processes.all_reduce_sum(torch.empty_like(counts).index_copy_(0, order, counts))

    # The first ranking. A constant shift is known before it: both rankings then share one pass.
    rule, threshold_keys = spec.lambda_rule, lists.threshold_keys(lists.start)
    shift = rule.constant_shift
    if shift is None:
        num_above, num_overtaken = count(*threshold_keys.sort(stable=True)), None
    else:
        moved_keys = lists.threshold_keys(lists.start + shift)
        edges, order = torch.cat([threshold_keys, moved_keys]).sort(stable=True)
        num_above, num_at_moved = count(edges, order).view(2, -1)
        num_overtaken = num_above - num_at_moved
    ranks = num_above + lists.rank_pos
    per_positive_loss, dloss_drank = spec.objective(
        ranks.double(), lists.rank_pos.double(), lists.per_place(lists.num_pos.double())
    )
    losses = lists.sum_by_segment(per_positive_loss)
    present, weight = _weigh(lists, num_classes, spec)
    shifts, divisor = rule(per_positive_loss, dloss_drank, num_overtaken)

    # The second ranking, and the gradient.
    if num_overtaken is not None:
        positive_grad = -num_overtaken / divisor
    else:
        moved = lists.start + shifts
        moved_keys = lists.threshold_keys(moved)
        num_at_moved = count(*moved_keys.sort(stable=True))
        edges, order = torch.cat([threshold_keys, moved_keys]).sort(stable=True)
        # The ranks among the positives of a list stay the same, but go to other positives.
        by_moved = lists.argsort(moved)
        rank_pos = torch.empty_like(ranks).index_copy_(0, by_moved, lists.rank_pos)
        positive_grad = (num_at_moved + rank_pos - ranks) / divisor
    pushes = Pushes(divisor, lists.per_place(weight), one_per_segment=shift is None)
    own = _own(lists.unsort(positive_grad * pushes.weight), inputs, spec)
    return RankingResult(
        loss=(losses * weight).sum(),
        segment_losses=losses[:-1],
        present=present,
        num_above=lists.unsort(num_above)[: len(inputs.keys)],
        positive_grad=lists.unsort(positive_grad)[: len(inputs.keys)],
        lists=lists,
        gradient=Gradient(
            replace(inputs, scores=inputs.scores.new_empty(0)), edges, pushes.at(order), own
        ),
    )


def _own(of_positive: Tensor, inputs: RankingInputs, spec: RankingSpec) -> Tensor:
    """``(Q,)``, the gradient of this process's own positives, from ``(T,)`` of all lists."""
    own = slice(inputs.first, inputs.first + len(inputs.rows))
    if spec.per_class and spec.interclass:
        return of_positive[own] + of_positive[len(of_positive) - len(inputs.keys) :][own]
    return of_positive[own]


def _weigh(lists: ListedPositives, num_classes: int, spec: RankingSpec) -> tuple[Tensor, Tensor]:
    """Segments present ``(C + 1,)`` bool; weight of each in the loss ``(C + 2,)`` float64."""
    present, beta = lists.num_pos[:-1] > 0, spec.beta * spec.interclass
    share = (1 - beta) / present[:num_classes].sum(dtype=torch.float64).clamp_(min=1)
    weight = torch.nn.functional.pad(present.double(), (0, 1))  # the last one has none
    weight[:num_classes] *= share
    weight[num_classes] *= beta
    return present, weight
