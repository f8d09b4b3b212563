"""RamboLoss: the batch-wide AP loss as a module, with its memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from .batch import Batch
from .functional import make_step
from .keys import MOST_MISSED
from .lists import ListResult, Ranking
from .memory import ScoreMemory
from .objectives import average_precision
from .processes import Processes


class LossStats:
    """What the last call of :class:`RamboLoss` saw; tensors on the CPU.

    Attributes:
        class_ap: ``(C,)`` float64, batch AP of each class, margin and memory included.
        present: ``(C,)`` bool, the classes that have a positive.
        zero_gradient: scalar, the fraction of this batch's positives with zero gradient.
        starved: scalar, the fraction that has zero gradient *and* a negative above it.
        bytes_sent: what this process has sent to the others.
        finite: whether all scores, of all processes, were finite.
    """

    def __init__(self, result: ListResult, bytes_sent: int, finite: bool) -> None:
        # Not the result as a whole: its gradient is as large as the scores.
        self._losses, self._present = result.losses, result.present
        self._above, self._change = result.above, result.change
        self.bytes_sent, self.finite = bytes_sent, finite

    @property
    def class_ap(self) -> Tensor:
        return 1 - self._losses[:-1]

    @property
    def present(self) -> Tensor:
        return self._present[:-1]

    @property
    def zero_gradient(self) -> Tensor:
        return (self._change == 0).all(dim=0).double().mean()

    @property
    def starved(self) -> Tensor:
        starved = (self._change == 0).all(dim=0) & (self._above > 0).any(dim=0)
        return starved.double().mean()


class RamboLoss(nn.Module):
    """(1-β)·L_APC + β·L_AP of a batch (Rolínek et al., CVPR 2020, Sec. 4.3).

    Args:
        num_classes: C.
        margin: α >= 0, in units of score.
        lambda_: λ > 0, fixed as in the paper; None: a rule with ``lift``.
        lift: δ > 0, in units of score: how far past the margin the median positive of a list is
            moved.
        each: without ``lambda_``: move every positive up by the margin and ``lift``, and pull those
            that pass a negative by the loss they have (:class:`.step.EachLift`).
        beta: β in [0, 1], the share of the interclass term.
        memory_length: τ >= 0, the number of batches whose scores join the lists of L_APC.
        memory_size: >= 8, negatives kept of a batch, see :class:`.memory.ScoreMemory`.
        persistent: whether the memory is part of ``state_dict``: the negatives of the process that
            takes it. With several processes use False: the memory then travels in the metadata of
            the state dict, that of all of them after ``memory.collect()`` in each.
        iou_thresholds: rising, in (0, 1]: L_APC and L_AP are the means over these of those whose
            positives are the ones that reach the threshold, the others being negatives, as COCO's
            AP is; none: all are positives.
        global_ranking: where several processes train (``torch.distributed``), rank their batches as
            one: each gives the loss of all, and after DistributedDataParallel's mean the parameters
            have its gradient. Every process has to call the loss at every step, be its batch empty.

    Raises:
        InputError: a parameter out of its range.
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
        persistent: bool = True,
        iou_thresholds: Sequence[float] = (),
        global_ranking: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise InputError(f"beta (β) must be in [0, 1], got {beta}")
        if memory_length < 0:
            raise InputError(f"memory_length (τ) must be >= 0, got {memory_length}")
        if memory_size < 8:
            raise InputError(f"memory_size must be >= 8, got {memory_size}")
        if num_classes < 1:
            raise InputError(f"num_classes must be >= 1, got {num_classes}")
        thresholds = tuple(iou_thresholds)
        if any(not 0 < t <= 1 for t in thresholds) or sorted(set(thresholds)) != list(thresholds):
            raise InputError(f"iou_thresholds must rise and be in (0, 1], got {thresholds}")
        if len(thresholds) > MOST_MISSED:
            raise InputError(
                f"iou_thresholds must be {MOST_MISSED} at most, got {len(thresholds)} of them"
            )
        self.num_classes = num_classes
        self.iou_thresholds = thresholds
        self.margin = margin
        self.beta = beta
        self.global_ranking = global_ranking
        self._step = make_step(lambda_, lift, margin, each=each)
        self.memory = ScoreMemory(
            memory_length, memory_size, persistent, num_classes, len(thresholds)
        )
        self.stats: LossStats | None = None

    @torch.compiler.disable  # counts in C++ or Triton: nothing in it that could be compiled
    def forward(self, scores: Tensor, gt_classes: Tensor, ious: Tensor | None = None) -> Tensor:
        """The loss of a batch; in training, with gradients on, the batch enters the memory.

        Args:
            scores: ``(N, C)``, any floating dtype; ranked in float32.
            gt_classes: ``(N,)`` integers; ``C`` is background, below 0 is ignored.
            ious: ``(N,)``, where a row is positive the IoU of its box, as now predicted, with its
                ground truth; needed if there are ``iou_thresholds``.

        Returns:
            Scalar float32 in [0, 1); 0, still connected to ``scores``, if nothing is positive, here
            or in the memory; NaN if a score is not finite.
        """
        if scores.dim() != 2 or scores.shape[1] != self.num_classes:
            raise InputError(f"scores must be (N, {self.num_classes}), got {tuple(scores.shape)}")
        learning = self.training and torch.is_grad_enabled()
        # Only where every process learns can each be expected to call this.
        processes = Processes(self.global_ranking and learning)
        batch = Batch.of(scores, gt_classes, processes, self._missed(ious, len(scores)))
        stored = self.memory.stored()
        if stored is not None and stored.scores.device != scores.device:
            raise InputError(
                f"scores are on {scores.device}, the memory of RamboLoss on "
                f"{stored.scores.device}: move it there with .to(...)"
            )
        # With one class and no memory, the list of all classes is that of the class.
        interclass = self.beta > 0 and (self.num_classes > 1 or stored is not None)
        beta = self.beta if interclass else 0.0
        levels = len(self.iou_thresholds)
        how = Ranking(True, interclass, beta, average_precision, self._step, self.margin, levels)
        result = batch.rank(how, stored)
        self.stats = LossStats(result, batch.processes.bytes_sent, batch.found.finite)
        if learning and batch.found.finite:
            self.memory.write(batch.ranked, batch.gt_classes, batch.found.keys, result.thresholds)
        return batch.lose(result)

    def _missed(self, ious: Tensor | None, number: int) -> Tensor | None:
        """``(N,)``, how many of the thresholds each row misses; None where there are none."""
        if not self.iou_thresholds:
            return None
        if ious is None or ious.shape != (number,):
            shape = None if ious is None else tuple(ious.shape)
            raise InputError(f"iou_thresholds ask for ious of shape ({number},), got {shape}")
        thresholds = torch.tensor(self.iou_thresholds, dtype=torch.float32, device=ious.device)
        # An IoU that is not a number reaches none.
        return len(thresholds) - (ious.detach().float()[:, None] >= thresholds).sum(dim=1)
