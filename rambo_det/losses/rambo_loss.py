"""RamboLoss: the batch-wide AP loss as a module, with its score memory."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from ..errors import InputError
from .distributed import Processes
from .functional import make_lambda_rule
from .inputs import attach_gradient, prepare_inputs
from .objectives import average_precision
from .ranking import RankingResult, RankingSpec, rank
from .score_memory import ScoreMemory
from .sort_keys import MAX_FAILED_IOUS


def _is_integer(value: object, lowest: int) -> bool:
    return isinstance(value, Integral) and int(value) >= lowest


class LossStats:
    """What the last call of :class:`RamboLoss` saw; tensors on the device of the scores.

    Attributes:
        class_ap: ``(C,)`` float64, batch AP of each class, margin and memory included.
        present: ``(C,)`` bool, the classes that have a positive.
        zero_gradient: scalar, the fraction of this batch's positives with zero gradient.
        starved: scalar, the fraction with zero gradient *and* a negative above.
        bytes_sent: what this process has sent to the others.
        finite: whether all scores, of all processes, were finite.
    """

    def __init__(self, result: RankingResult, bytes_sent: int, finite: bool) -> None:
        # Not all of the result: its gradient is as large as the scores.
        self.class_ap, self.present = 1 - result.segment_losses[:-1], result.present[:-1]
        self._num_above, self._rank_change = result.num_above, result.rank_change
        self.bytes_sent, self.finite = bytes_sent, finite

    @property
    def zero_gradient(self) -> Tensor:
        return (self._rank_change == 0).all(dim=0).double().mean()

    @property
    def starved(self) -> Tensor:
        starved = (self._rank_change == 0).all(dim=0) & (self._num_above > 0).any(dim=0)
        return starved.double().mean()


class RamboLoss(nn.Module):
    """(1-β)·L_APC + β·L_AP of a batch (Rolínek et al., CVPR 2020, Sec. 4.3).

    Args:
        num_classes: C.
        margin: α >= 0, in units of score.
        lambda_: λ > 0, fixed as in the paper; None: ``lift`` says how far positives move.
        lift: δ > 0, in units of score: how far past the margin the median positive of a list moves.
        each: move every positive by the margin and ``lift``, and give it the gradient of its own
            part of the loss (:class:`.lambda_rules.ErrorDriven`). Requires ``lambda_`` None.
        beta: β in [0, 1], the share of the interclass term.
        memory_length: τ >= 0, the number of past batches whose scores join the lists of L_APC.
        memory_size: >= 8, negatives kept of a batch, see :class:`.score_memory.ScoreMemory`.
        iou_thresholds: rising, in (0, 1]. L_APC and L_AP are then means over them, as COCO's AP
            is: for each, the positives that fail it are negatives.
        global_ranking: rank the batches of several processes (``torch.distributed``) as one. Each
            gives the loss of all, and after DistributedDataParallel's mean the parameters have its
            gradient. Every process has to call the loss at every step, be its batch empty.

    The memory is saved and loaded with ``state_dict``, in its metadata. With several processes each
    calls ``memory.all_gather_for_checkpoint()`` before one of them saves.

    Raises:
        InputError: a parameter out of its range.

    Example:
        >>> scores = torch.randn(100, 3, requires_grad=True)  # 100 boxes, 3 classes
        >>> gt_classes = torch.full((100,), 3)  # 3 is background
        >>> gt_classes[:10] = torch.arange(10) % 3
        >>> loss = RamboLoss(3, memory_length=4)(scores, gt_classes)
        >>> loss.backward()
        >>> loss.shape, scores.grad.shape
        (torch.Size([]), torch.Size([100, 3]))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        margin: float = 0.5,
        lambda_: float | None = None,
        lift: float = 2.0,
        each: bool = False,
        beta: float = 0.5,
        memory_length: int = 0,
        memory_size: int = 1 << 13,
        iou_thresholds: Sequence[float] = (),
        global_ranking: bool = True,
    ) -> None:
        super().__init__()
        thresholds = tuple(iou_thresholds)
        rise = all(isinstance(t, Real) and 0 < t <= 1 for t in thresholds)
        rise = rise and sorted(set(thresholds)) == list(thresholds)
        for name, value, right, is_right in (
            ("num_classes", num_classes, "an integer >= 1", _is_integer(num_classes, 1)),
            ("beta (β)", beta, "in [0, 1]", 0 <= beta <= 1),
            ("memory_length (τ)", memory_length, "an integer >= 0", _is_integer(memory_length, 0)),
            ("memory_size", memory_size, "an integer >= 8", _is_integer(memory_size, 8)),
            ("iou_thresholds", thresholds, "numbers in (0, 1] that rise", rise),
            ("iou_thresholds", thresholds, "127 at most", len(thresholds) <= MAX_FAILED_IOUS),
        ):
            if not is_right:
                raise InputError(f"{name} must be {right}, got {value}")
        self.num_classes = num_classes
        self.iou_thresholds = thresholds
        self.margin = margin
        self.beta = beta
        self.global_ranking = global_ranking
        self._lambda_rule = make_lambda_rule(lambda_, lift, each, margin)
        self.memory = ScoreMemory(memory_length, memory_size, num_classes, len(thresholds))
        self.stats: LossStats | None = None

    @torch.compiler.disable  # counts in C++ or Triton: nothing in it that could be compiled
    def forward(self, scores: Tensor, gt_classes: Tensor, ious: Tensor | None = None) -> Tensor:
        """The loss of a batch. In training, with gradients on, the batch enters the memory.

        Args:
            scores: ``(N, C)``, any floating dtype; ranked in float32. Without rows, any C.
            gt_classes: ``(N,)`` integers; ``C`` is background, below 0 is ignored.
            ious: ``(N,)``, for each row with a positive the IoU of its box, as now predicted, with
                its ground truth. Required with ``iou_thresholds``.

        Returns:
            Scalar float32 in [0, 1); 0, still connected to ``scores``, if nothing is positive, here
            or in the memory; NaN if a score is not finite.
        """
        to_rank = scores
        if scores.dim() == 2 and len(scores) == 0:
            to_rank = scores.new_zeros((0, self.num_classes))
        elif scores.dim() != 2 or scores.shape[1] != self.num_classes:
            raise InputError(f"scores must be (N, {self.num_classes}), got {tuple(scores.shape)}")
        memory = self.memory.contents()
        if memory is not None and memory.positives.device != scores.device:
            raise InputError(
                f"scores are on {scores.device}, the memory of RamboLoss on "
                f"{memory.positives.device}: move it there with .to(...)"
            )
        training = self.training and torch.is_grad_enabled()
        if training and memory is not None and torch._C._current_graph_task_id() != -1:
            raise InputError(
                "RamboLoss is computed anew during backward(), which would put the batch into its "
                "memory twice: leave the loss out of torch.utils.checkpoint"
            )
        # Only in training can each process be expected to call this.
        processes = Processes(self.global_ranking and training)
        inputs = prepare_inputs(
            to_rank, gt_classes, processes, self._num_failed_ious(ious, len(scores))
        )
        # With one class and no memory, the list of all classes is that of the class.
        interclass = self.beta > 0 and (self.num_classes > 1 or memory is not None)
        spec = RankingSpec(
            per_class=True,
            interclass=interclass,
            beta=self.beta if interclass else 0.0,
            objective=average_precision,
            lambda_rule=self._lambda_rule,
            margin=self.margin,
            num_iou_thresholds=len(self.iou_thresholds),
        )
        result = rank(inputs, spec, processes, memory)
        self.stats = LossStats(result, processes.bytes_sent, inputs.finite)
        if training and inputs.finite:
            self.memory.write(inputs, result.lists.lowest()[:-1])
        return attach_gradient(scores, result.loss, result.grad, inputs.finite, processes)

    def _num_failed_ious(self, ious: Tensor | None, number: int) -> Tensor | None:
        """``(N,)``, how many of the IoU thresholds each row fails; None without thresholds."""
        if not self.iou_thresholds:
            return None
        if ious is None or ious.shape != (number,):
            shape = None if ious is None else tuple(ious.shape)
            raise InputError(f"iou_thresholds ask for ious of shape ({number},), got {shape}")
        ious = ious.detach().float()
        # A tensor of the thresholds would be copied to a GPU. An IoU that is NaN reaches none.
        reached = torch.stack([ious >= threshold for threshold in self.iou_thresholds])
        return len(reached) - reached.sum(dim=0)
