"""RamboLoss: the batch-wide AP loss as a module, with its score memory."""

from numbers import Integral

import torch
from torch import Tensor, nn

from ..errors import InputError
from .distributed import Processes
from .gradient import attach_gradient
from .inputs import RankingInputs, prepare_inputs
from .ranking import RankingResult, RankingSpec, compute_ranking
from .score_memory import ScoreMemory


class LossStats:
    """Statistics of the last call of :class:`RamboLoss`.

    The first four are tensors on the device of the scores; the two fractions are NaN without a
    positive.

    Attributes:
        class_ap: ``(C,)`` float64, batch AP of each class, margin and memory included.
        present: ``(C,)`` bool, the classes that have a positive.
        zero_gradient: scalar, fraction of the positives with zero gradient in their class's list.
        starved: scalar, fraction with zero gradient there *and* a negative above.
        score_range: highest minus lowest score of this process, in units of score.
        bytes_sent: number of bytes that this process has given to collectives.
        finite: whether all scores, of all processes, were finite.
    """

    def __init__(self, result: RankingResult, inputs: RankingInputs, bytes_sent: int) -> None:
        # Keeps only these tensors; the rest of the result is not used later.
        self.class_ap, self.present = 1 - result.segment_losses[:-1], result.present[:-1]
        is_zero = result.positive_grad == 0
        self.zero_gradient = is_zero.double().mean()
        self.starved = (is_zero & (result.num_above > 0)).double().mean()
        self.score_range = inputs.max_score - inputs.min_score
        self.bytes_sent, self.finite = bytes_sent, inputs.all_finite


class RamboLoss(nn.Module):
    """The AP loss (1-β)·L_APC + β·L_AP of a batch (Rolínek et al., CVPR 2020, Sec. 4.3).

    Args:
        num_classes: C.
        margin: α >= 0, in units of score.
        lambda_: λ > 0, one constant as in the paper. Ranks are not divided by the list's length N
            (the authors divide them, so their λ is ours divided by N). None: there is no λ. Every
            positive moves above all negatives, and the size of its gradient is its part of the loss
            (:mod:`.ranking`).
        beta: β in [0, 1], the share of the interclass term L_AP.
        memory_length: τ >= 0, the number of past batches whose scores count in the ranks of L_APC.
        memory_size: >= 8, negatives kept per batch, see :class:`.score_memory.ScoreMemory`.
        global_ranking: whether to rank the batches of all processes (``torch.distributed``) as one.
            Each process then returns the loss of the global batch, and DistributedDataParallel's
            mean gives its gradient. Every process must call the loss at every step, even if its
            batch is empty.

    The memory is saved and loaded in the metadata of ``state_dict``. With several processes, every
    process must call ``memory.all_gather_for_checkpoint()`` before one of them saves. A copy of a
    state dict has the memory only if it has the ``_metadata`` of the original.

    Attributes:
        spec: a :class:`.ranking.RankingSpec`: margin, λ and β. To change one during a training,
            replace the spec: ``loss.spec = dataclasses.replace(loss.spec, margin=1.0)``.
        stats: the :class:`LossStats` of the last call; None before it.

    Raises:
        InputError: a parameter is out of its range.

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
        beta: float = 0.5,
        memory_length: int = 0,
        memory_size: int = 1 << 13,
        global_ranking: bool = True,
    ) -> None:
        super().__init__()
        integers = ("num_classes", num_classes, 1), ("memory_length", memory_length, 0)
        for name, value, lowest in (*integers, ("memory_size", memory_size, 8)):
            if not isinstance(value, Integral) or int(value) < lowest:
                raise InputError(f"{name} must be an integer >= {lowest}, got {value!r}")
        self.num_classes, self.global_ranking = num_classes, global_ranking
        # With one class and no memory, the list of all classes equals the list of that class.
        interclass = num_classes > 1 or memory_length > 0
        self.spec = RankingSpec(margin, lambda_, beta, interclass=interclass)
        self.memory = ScoreMemory(memory_length, memory_size, num_classes)
        self.stats: LossStats | None = None

    @torch.compiler.disable  # torch.compile cannot compile C++ and Triton
    def forward(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        """Returns the loss of a batch; in training, with gradients on, remembers the batch.

        Args:
            scores: ``(N, C)``, any floating dtype; ranked in float32. If N is 0, C may differ.
            gt_classes: ``(N,)`` integers; ``C`` is background, below 0 is ignored.

        Returns:
            Scalar float32 in [0, 1]. Without a positive the loss is 0, still connected to
            ``scores``. If a score is not finite, the loss is NaN.
        """
        to_rank = scores
        if scores.dim() == 2 and len(scores) == 0:
            to_rank = scores.new_zeros((0, self.num_classes))
        elif scores.dim() != 2 or scores.shape[1] != self.num_classes:
            raise InputError(f"scores must be (N, {self.num_classes}), got {tuple(scores.shape)}")
        memory = self.memory if self.memory.length else None
        if memory is not None and memory.positives.device != scores.device:
            raise InputError(
                f"scores are on {scores.device}, but the score memory of RamboLoss is on "
                f"{memory.positives.device}: move the loss with .to({str(scores.device)!r})"
            )
        training = self.training and torch.is_grad_enabled()
        if training and memory is not None and torch._C._current_graph_task_id() != -1:
            raise InputError(
                "RamboLoss was recomputed during backward() (torch.utils.checkpoint). This would "
                "store the batch in the score memory twice: keep the loss outside of checkpointed "
                "code"
            )
        # Only in training is every process sure to call the loss.
        processes = Processes(self.global_ranking and training)
        inputs = prepare_inputs(to_rank, gt_classes, processes)
        result = compute_ranking(inputs, self.spec, processes, memory)
        self.stats = LossStats(result, inputs, processes.bytes_sent)
        if memory is not None and training and inputs.all_finite:
            memory.write(inputs, result.lowest_thresholds[:-1])
        return attach_gradient(scores, inputs.scores, result.loss, result.gradient, processes)
