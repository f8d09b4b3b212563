"""The criterion that computes the loss from a detector's scores, for all heads and models."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

from ..config import check_has_rambo
from ..errors import InputError
from ..losses import RamboLoss

#: Reading scalars waits for the GPU. They are read at the period of Detectron2's writers.
_GPU_PERIOD = 20
#: Upper limit of the classes that an error names.
_MAX_NAMED = 5
#: For each constructor argument, the key of MODEL.RAMBO that sets the argument.
_KEYS = {
    "margin": "MARGIN", "lambda_": "LAMBDA", "beta": "BETA", "memory_length": "MEMORY_LENGTH",
    "memory_size": "MEMORY_SIZE", "global_ranking": "GLOBAL_RANKING", "weight": "LOSS_WEIGHT",
    "ce_warmup": "CE_WARMUP",
}  # fmt: skip


class RamboCriterion(RamboLoss):
    """RamboLoss for a detector: multiplied by a weight, with logged scalars.

    The memory adds no entry to a state dict. So a checkpoint of a detector with a criterion loads
    into the stock detector, and vice versa.

    Args:
        num_classes: number of foreground classes C.
        weight: > 0, weight of the loss.
        class_names: C names for the training scalars, or a function that returns them or None, and
            is called when they are needed; None: their indices.
        ce_warmup: >= 0, iterations in which the stock loss changes to this loss.
        checkpoint_period, max_iter: when the trainer saves, in iterations. Detectron2's trainers
            save in the main process alone; with these arguments, their checkpoints have the
            memories of all processes. None: unknown.
        **kwargs: passed to RamboLoss.

    Attributes:
        name: of the loss in the detector's dict of losses.
        prefix: of the training scalars, see :meth:`_log`.

    Raises:
        InputError: a parameter is out of its range.
    """

    name, prefix = "loss_cls", "rambo"

    def __init__(
        self,
        num_classes: int,
        *,
        weight: float = 0.2,
        class_names: Sequence[str] | Callable[[], Sequence[str] | None] | None = None,
        ce_warmup: int = 0,
        checkpoint_period: int | None = None,
        max_iter: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if not (isinstance(weight, Real) and 0 < weight < math.inf):
            raise InputError(f"weight must be > 0 and finite, got {weight!r}")
        if not (isinstance(ce_warmup, Real) and 0 <= ce_warmup < math.inf):
            raise InputError(f"ce_warmup must be >= 0 and finite, got {ce_warmup!r}")
        self.weight, self.ce_warmup = weight, ce_warmup
        self._checkpoint_period, self._max_iter = checkpoint_period, max_iter
        self._class_names = class_names
        if not callable(class_names) and len(self.class_names) != num_classes:
            raise InputError(
                f"class_names must have {num_classes} entries, got {len(self.class_names)}"
            )

    @classmethod
    def from_cfg(cls, cfg: CfgNode, num_classes: int, **kwargs: Any) -> "RamboCriterion":
        """Builds the criterion of ``cfg.MODEL.RAMBO``; ``kwargs`` take precedence.

        Raises:
            InputError: the node is missing, or a key is out of its range.
        """
        check_has_rambo(cfg)
        node = cfg.MODEL.RAMBO
        arguments = {argument: node[key] for argument, key in _KEYS.items()}
        arguments.update(
            lambda_=node.LAMBDA or None,
            class_names=partial(_training_classes, cfg.DATASETS.TRAIN, num_classes),
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            max_iter=cfg.SOLVER.MAX_ITER,
        )
        try:
            return cls(num_classes, **{**arguments, **kwargs})
        except InputError as error:
            # The message begins with the argument, as in "margin must be ...".
            argument, _, rest = str(error).partition(" ")
            if argument not in _KEYS:
                raise
            rest = rest.replace("or None", "or 0")  # the config's value for no λ
            raise InputError(f"MODEL.RAMBO.{_KEYS[argument]} {rest}") from None

    @torch.jit.unused  # TorchScript compiles properties
    @property
    def class_names(self) -> list[str]:
        """The C names of the classes, or their indices."""
        names = self._class_names() if callable(self._class_names) else self._class_names
        return list(names or map(str, range(self.num_classes)))

    @class_names.setter
    def class_names(self, names: Sequence[str]) -> None:
        self._class_names = names

    @torch.jit.unused  # not used at inference; autograd.Function cannot be scripted
    def forward(self, scores: Tensor, gt_classes: Tensor, *logits: Tensor) -> Tensor:
        """Returns the weighted loss, a scalar.

        Args:
            scores: ``(N, C)``, the scores that are ranked.
            gt_classes: ``(N,)`` integers; C is background, below 0 is ignored.
            *logits: the tensors that the scores were computed from, if any. They may have a last
                column of background. The error names the classes of values that are not finite.

        Raises:
            FloatingPointError: a score is not finite. Every process raises this error if the
                batches are ranked as one.
        """
        storage = current_storage()
        is_step = self.training and torch.is_grad_enabled()  # else it may be a validation loss
        if is_step and storage is not None and storage.iter == 0:
            self.memory.reset_if_loaded()  # it was loaded with the initial weights
        with torch.autocast(scores.device.type, enabled=False):
            loss = super().forward(scores, gt_classes)
        if not self.stats.finite:
            raise self._not_finite(*logits, scores)
        if torch.is_grad_enabled():  # a validation loss is no scalar of the training
            self._log()
            if is_step:
                self._gather_for_checkpoint()
        return loss * self.weight

    def replace_stock_loss(
        self,
        name: str,
        stock_losses: Callable[[], dict[str, Tensor]],
        *inputs: Tensor,
        scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """Returns the stock losses, in which this loss of ``inputs`` replaces the loss ``name``.

        ``inputs`` are those of :meth:`forward`; ``scale`` is the detector's weight of the loss. The
        stock losses come last: for an invalid label, this loss has the clearer error.
        """
        stock_share = self.stock_loss_weight()
        loss = self(*inputs) * (scale * (1 - stock_share))
        losses = stock_losses()
        losses[name] = loss + losses[name] * stock_share if stock_share else loss
        return losses

    def stock_loss_weight(self) -> float:
        """Returns the stock loss's weight w in this iteration; the weight of this loss is 1 - w.

        Reads the iteration from Detectron2's event storage. Outside of a training loop, w is 0.
        """
        storage = current_storage()
        if not self.ce_warmup or storage is None:
            return 0.0
        return max(1 - storage.iter / self.ce_warmup, 0.0)

    def _gather_for_checkpoint(self) -> None:
        # Every process runs this code; a stock trainer's checkpointer runs in the main one alone.
        period, max_iter, storage = self._checkpoint_period, self._max_iter, current_storage()
        if storage is None or period is None or max_iter is None:
            return
        iteration = storage.iter + 1
        if (period > 0 and iteration % period == 0) or iteration >= max_iter:
            self.memory.all_gather_for_checkpoint()

    def _log(self) -> None:
        """Writes the scalars of the last call to Detectron2's storage, under ``prefix/``.

        The scalars are ``AP`` (mean over the classes present), ``AP-<class>`` of the classes
        present, ``zero_gradient``, ``starved`` and ``score_range``; with a memory ``memory_fill``;
        with several processes ``bytes_sent``. See :class:`.losses.rambo_loss.LossStats`.
        """
        stats, storage, prefix = self.stats, current_storage(), self.prefix
        if storage is None:
            return
        if stats.present.is_cuda and (storage.iter + 1) % _GPU_PERIOD:
            return
        fractions = torch.stack([stats.zero_gradient, stats.starved])
        of_classes = torch.stack([stats.class_ap, stats.present.double()])
        zero_gradient, starved, *rest = torch.cat([fractions, of_classes.flatten()]).tolist()
        scalars = {"score_range": stats.score_range}
        if self.memory.length:
            scalars["memory_fill"] = self.memory.fill_fraction
        if stats.bytes_sent:
            scalars["bytes_sent"] = stats.bytes_sent
        if zero_gradient == zero_gradient:  # NaN if the batch has no positive
            scalars |= {"zero_gradient": zero_gradient, "starved": starved}
        classes = zip(self.class_names, rest, rest[self.num_classes :], strict=False)
        present = [(f"AP-{name}", ap) for name, ap, is_present in classes if is_present]
        if present:  # two classes may have one name
            scalars["AP"] = sum(ap for _, ap in present) / len(present)
        scalars = {f"{prefix}/{name}": x for name, x in {**scalars, **dict(present)}.items()}
        # Detectron2 v0.6 writes the median of 20 values. On a GPU they are of 400 iterations.
        storage.put_scalars(smoothing_hint=not stats.present.is_cuda, **scalars)

    def _not_finite(self, *scores: Tensor) -> FloatingPointError:
        """Returns the error for scores that are not finite, with the classes that have them."""
        storage = current_storage()
        at = "" if storage is None else f" at iteration={storage.iter}"
        where = "in the batch of another process"
        for tensor in scores:
            counts = (~tensor.detach().float().isfinite()).sum(dim=0).tolist()
            named = zip([*self.class_names, "background"], counts, strict=False)
            bad = [f"{name} ({count} of {tensor.shape[0]})" for name, count in named if count]
            if bad:
                more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
                where = f"of class {', '.join(bad[:_MAX_NAMED])}{more}"
                break
        return FloatingPointError(
            f"Loss became infinite or NaN{at}! {self.name}: some scores are not finite, {where}"
        )


def current_storage() -> EventStorage | None:
    """Returns Detectron2's event storage; None outside of a training loop."""
    try:
        return get_event_storage()
    except AssertionError:  # Detectron2 v0.6 has no has_event_storage()
        return None


def criterion_for(num_classes: int, given: RamboCriterion | None) -> RamboCriterion:
    """Returns the given criterion, or one with the defaults; InputError if its classes differ."""
    if given is not None and given.num_classes != num_classes:
        raise InputError(
            f"rambo_loss.num_classes is {given.num_classes}, but the scores are of {num_classes}: "
            f"set it to {num_classes}"
        )
    return given or RamboCriterion(num_classes)


def _training_classes(train: str | Sequence[str], num_classes: int) -> list[str] | None:
    # Many datasets register their names only when they are loaded, after the model was built.
    for name in [train] if isinstance(train, str) else train:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names:
            return list(names) if len(names) == num_classes else None
    return None
