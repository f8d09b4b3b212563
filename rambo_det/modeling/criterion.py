"""The one place where a detector's scores become a loss."""

# No `from __future__ import annotations`: torch.jit.script reads unused methods' as they are.
import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..config import add_rambo_config
from ..core import RamboLoss
from ..errors import InputError
from .build import loss_arguments, rambo_node
from .log_scalars import current_storage, log_scalars
from .not_finite import not_finite


class RamboCriterion(RamboLoss):
    """RamboLoss as a detector calls it: in float32, weighted, with its scalars logged.

    Its memory is no entry of a state dict, see :class:`rambo_det.core.memory.ScoreMemory`: to a
    checkpoint, a detector with a criterion is the stock one.

    Args:
        num_classes: number of foreground classes C.
        weight: weight of the loss; None, here and for what is not named: the default of
            ``MODEL.RAMBO``, see :mod:`rambo_det.config`.
        class_names: C names for the training scalars; None: their indices.
        prefix: of the training scalars, see :func:`.log_scalars.log_scalars`; "": whoever calls
            the loss calls :meth:`log` too.
        name: of the loss, for the error where scores are not finite.
        ce_weight: weight of the stock loss beside this one, see :meth:`shares`.
        ce_warmup: iterations in which the stock loss passes over to this one.
        checkpoint_period, max_iter: of a trainer that saves its model in the main process alone, as
            Detectron2's do: after which iterations. Then that has the memories of all processes.
            None: unknown.
        **kwargs: of RamboLoss: ``margin``, ``lambda_``, ``lift``, ``each``, ``beta``,
            ``memory_length``, ``memory_size``, ``iou_thresholds``, ``global_ranking``.

    Raises:
        InputError: a parameter out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        weight: float | None = None,
        class_names: Sequence[str] | None = None,
        prefix: str = "rambo",
        name: str = "loss_cls",
        ce_weight: float | None = None,
        ce_warmup: int | None = None,
        checkpoint_period: int | None = None,
        max_iter: int | None = None,
        **kwargs: Any,
    ) -> None:
        defaults = CfgNode({"MODEL": CfgNode()})
        add_rambo_config(defaults)
        super().__init__(num_classes, persistent=False, **{**loss_arguments(defaults), **kwargs})
        node = defaults.MODEL.RAMBO
        self.weight = node.LOSS_WEIGHT if weight is None else weight
        self.ce_weight = node.CE_WEIGHT if ce_weight is None else ce_weight
        self.ce_warmup = node.CE_WARMUP if ce_warmup is None else ce_warmup
        self.prefix = prefix
        self.name = name
        self._saved = checkpoint_period, max_iter
        self.class_names = list(class_names or map(str, range(num_classes)))
        for key, least in (("weight", "> 0"), ("ce_weight", ">= 0"), ("ce_warmup", ">= 0")):
            value = getattr(self, key)
            if not (0 <= value < math.inf and (value or least == ">= 0")):
                raise InputError(f"{key} must be {least} and finite, got {value}")
        if len(self.class_names) != num_classes:
            raise InputError(f"class_names must be {num_classes}, got {len(self.class_names)}")

    @classmethod
    def from_cfg(cls, cfg: CfgNode, num_classes: int, **kwargs: Any) -> "RamboCriterion":
        """What ``cfg.MODEL.RAMBO`` describes; ``kwargs`` come before it.

        Raises:
            InputError: the node is missing, or a key is out of its range.
        """
        arguments = {
            "class_names": _training_classes(cfg, num_classes),
            **loss_arguments(cfg),
            "weight": rambo_node(cfg).LOSS_WEIGHT,
            "ce_weight": rambo_node(cfg).CE_WEIGHT,
            "ce_warmup": rambo_node(cfg).CE_WARMUP,
            "checkpoint_period": cfg.SOLVER.CHECKPOINT_PERIOD,
            "max_iter": cfg.SOLVER.MAX_ITER,
        }
        return cls(num_classes, **{**arguments, **kwargs})

    @torch.jit.unused  # no part of inference, and autograd.Function cannot be scripted
    def forward(
        self,
        scores: Tensor,
        gt_classes: Tensor,
        *made_of: Tensor,
        ious: Tensor | None = None,
    ) -> Tensor:
        """The weighted loss, a scalar.

        Args:
            scores, gt_classes, ious: as those of :meth:`RamboLoss.forward`.
            *made_of: what the scores were made of, if not of one number each: see
                :func:`.not_finite.not_finite`.

        Raises:
            FloatingPointError: a score is not finite; on every process, if their batches are ranked
                as one.
        """
        with torch.autocast(scores.device.type, enabled=False):
            loss = super().forward(scores.float(), gt_classes, ious)
        if self.stats is not None and not self.stats.finite:
            raise not_finite(self.name, self.class_names, *made_of, scores)
        if self.prefix:
            self.log(self.prefix)
        if self.global_ranking and self.training and torch.is_grad_enabled():
            self._collect_for_checkpoint()
        return loss * self.weight

    @torch.jit.unused
    def shares(self) -> tuple[float, float]:
        """What this loss and the stock one are multiplied by in this iteration.

        The iteration is that of Detectron2's event storage; outside of a training the warm-up is
        over.
        """
        storage = current_storage()
        done = 1.0
        if self.ce_warmup and storage is not None:
            done = min(storage.iter / self.ce_warmup, 1.0)
        return done, (1 - done) + self.ce_weight

    @torch.jit.unused
    def _collect_for_checkpoint(self) -> None:
        # Here every process still comes by; a stock trainer's checkpointer runs in one of them.
        period, max_iter = self._saved
        storage = current_storage()
        if storage is None or period is None or max_iter is None:
            return
        done = storage.iter + 1
        if done % period == 0 or done >= max_iter:
            self.memory.collect()

    @torch.jit.unused
    def log(self, prefix: str) -> None:
        """Puts what the last call saw into Detectron2's event storage, if there is one."""
        log_scalars(self, self.class_names, prefix)


def _training_classes(cfg: CfgNode, num_classes: int) -> list[str] | None:
    for name in cfg.DATASETS.TRAIN:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names:
            return list(names) if len(names) == num_classes else None
    return None
