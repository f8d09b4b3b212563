"""The one place where a detector's scores become a loss."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..errors import InputError
from ..losses import RamboLoss
from .config_checks import rambo_node
from .training_log import current_storage, log_scalars, not_finite

_RULES = ("each", "lift", "fixed")
#: The keys of MODEL.RAMBO, by the argument that each of them sets.
_KEYS = {
    "margin": "MARGIN",
    "lambda_": "LAMBDA",
    "lift": "LIFT",
    "beta": "BETA",
    "memory_length": "MEMORY_LENGTH",
    "memory_size": "MEMORY_SIZE",
    "global_ranking": "GLOBAL_RANKING",
    "weight": "LOSS_WEIGHT",
    "ce_weight": "CE_WEIGHT",
    "ce_warmup": "CE_WARMUP",
}


class RamboCriterion(RamboLoss):
    """RamboLoss as a detector calls it: in float32, weighted, with its scalars logged.

    Its memory is no entry of a state dict: a checkpoint of a detector with a criterion is one of
    the stock detector.

    Args:
        num_classes: number of foreground classes C.
        weight: > 0, weight of the loss.
        memory_length: τ, as RamboLoss's.
        class_names: C names for the training scalars; None: their indices.
        prefix: of the training scalars, see :func:`.training_log.log_scalars`; "": whoever calls
            the loss calls :meth:`log` too.
        name: of the loss, for the error if scores are not finite.
        ce_weight: >= 0, weight of the stock loss beside this one, see :meth:`loss_weights`.
        ce_warmup: >= 0, iterations in which the stock loss passes over to this one.
        checkpoint_period, max_iter: when a trainer saves, which saves its model in the main process
            alone, as Detectron2's do. The checkpoint then has the memories of all processes. None:
            unknown.
        **kwargs: of RamboLoss.

    Raises:
        InputError: a parameter out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        weight: float = 0.4,
        memory_length: int = 4,
        class_names: Sequence[str] | None = None,
        prefix: str = "rambo",
        name: str = "loss_cls",
        ce_weight: float = 0.0,
        ce_warmup: int = 0,
        checkpoint_period: int | None = None,
        max_iter: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, memory_length=memory_length, **kwargs)
        if not 0 < weight < math.inf:
            raise InputError(f"weight must be > 0 and finite, got {weight}")
        if not 0 <= ce_weight < math.inf:
            raise InputError(f"ce_weight must be >= 0 and finite, got {ce_weight}")
        if not 0 <= ce_warmup < math.inf:
            raise InputError(f"ce_warmup must be >= 0 and finite, got {ce_warmup}")
        self.weight, self.ce_weight, self.ce_warmup = weight, ce_weight, ce_warmup
        self.prefix = prefix
        self.name = name
        self._saved = checkpoint_period, max_iter
        self.class_names = list(class_names or map(str, range(num_classes)))
        if len(self.class_names) != num_classes:
            raise InputError(f"class_names must be {num_classes}, got {len(self.class_names)}")

    @classmethod
    def from_cfg(cls, cfg: CfgNode, num_classes: int, **kwargs: Any) -> "RamboCriterion":
        """What ``cfg.MODEL.RAMBO`` describes; ``kwargs`` take precedence.

        Raises:
            InputError: the node is missing, or a key is out of its range.
        """
        node = rambo_node(cfg)
        if node.LAMBDA_RULE not in _RULES:
            raise InputError(
                f"MODEL.RAMBO.LAMBDA_RULE must be one of {_RULES}, got {node.LAMBDA_RULE!r}"
            )
        arguments = {argument: node[key] for argument, key in _KEYS.items()}
        if node.LAMBDA_RULE != "fixed":
            arguments["lambda_"] = None
        arguments.update(
            each=node.LAMBDA_RULE == "each",
            class_names=_training_classes(cfg, num_classes),
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            max_iter=cfg.SOLVER.MAX_ITER,
        )
        try:
            return cls(num_classes, **{**arguments, **kwargs})
        except InputError as error:
            # The message begins with the argument, as in "margin (α) must be ...".
            found = re.match(r"(\w+)(?: \(.\))?(?= must be )", str(error))
            if found is None or found[1] not in _KEYS:
                raise
            key = f"MODEL.RAMBO.{_KEYS[found[1]]}"
            raise InputError(key + str(error)[found.end() :]) from None

    @torch.jit.unused  # no part of inference, and autograd.Function cannot be scripted
    def forward(self, scores: Tensor, gt_classes: Tensor, *logits: Tensor) -> Tensor:
        """The weighted loss, a scalar.

        Args:
            scores: ``(N, C)``, what is ranked.
            gt_classes: ``(N,)`` integers; C is background, below 0 is ignored.
            *logits: what the scores were made of, if it is not they themselves: see
                :func:`.training_log.not_finite`.

        Raises:
            FloatingPointError: a score is not finite; on every process, if their batches are ranked
                as one.
        """
        storage = current_storage()
        if self.training and storage is not None and storage.iter == 0:
            self.memory.start_anew()  # it came with the weights that this training starts from
        with torch.autocast(scores.device.type, enabled=False):
            loss = super().forward(scores.float(), gt_classes)
        if self.stats is not None and not self.stats.finite:
            raise not_finite(self.name, self.class_names, *logits, scores)
        if self.prefix:
            self.log(self.prefix)
        if self.training and torch.is_grad_enabled():
            self._gather_for_checkpoint()
        return loss * self.weight

    @torch.jit.unused
    def put_into(
        self, losses: dict[str, Tensor], name: str, *inputs: Tensor, scale: float = 1.0
    ) -> None:
        """Puts the loss of ``inputs``, see :meth:`forward`, where the stock loss ``name`` was.

        As much of the stock loss stays in it as :meth:`loss_weights` says; ``scale`` is a weight
        that the detector gives to that loss.
        """
        weight, stock_weight = self.loss_weights()
        loss = self(*inputs) * (scale * weight)
        losses[name] = loss + losses[name] * stock_weight if stock_weight else loss

    @torch.jit.unused
    def loss_weights(self) -> tuple[float, float]:
        """The weights of this loss and of the stock one in this iteration.

        The iteration is that of Detectron2's event storage; outside of a training the warm-up is
        over.
        """
        storage = current_storage()
        done = 1.0
        if self.ce_warmup and storage is not None:
            done = min(storage.iter / self.ce_warmup, 1.0)
        return done, (1 - done) + self.ce_weight

    @torch.jit.unused
    def _gather_for_checkpoint(self) -> None:
        # Every process comes by here; the checkpointer of a stock trainer runs in one of them.
        period, max_iter = self._saved
        storage = current_storage()
        if storage is None or period is None or max_iter is None:
            return
        done = storage.iter + 1
        if (period > 0 and done % period == 0) or done >= max_iter:
            self.memory.all_gather_for_checkpoint()

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
