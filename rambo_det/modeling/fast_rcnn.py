"""Fast R-CNN's output layers with the AP loss in place of cross entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor

from ..core import RamboLoss
from .build import loss_from_config, rambo_node, refuse_fed_loss
from .log_scalars import log_scalars
from .scores import score_function


class RamboFastRCNNOutputLayers(FastRCNNOutputLayers):
    """FastRCNNOutputLayers whose ``loss_cls`` is the batch-wide AP loss.

    The layers, hence the weights of a checkpoint, are those of the stock class.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        rambo_loss: RamboLoss | None = None,
        score: str = "log_odds",
        rambo_weight: float = 2.0,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: as the stock class.
            num_classes: number of foreground classes K.
            rambo_loss: the loss; None: one with its defaults.
            score: name of what is ranked, see :mod:`.scores`.
            rambo_weight: weight of the loss.
            class_names: K names for the training scalars; None: their indices.
            **kwargs: passed to FastRCNNOutputLayers.
        """
        refuse_fed_loss(kwargs.get("use_fed_loss", False))
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        self.rambo_loss = rambo_loss or RamboLoss(num_classes, persistent=False)
        self.rambo_weight = rambo_weight
        self.rambo_score = score
        self._score = score_function(score)
        self._class_names = list(class_names or map(str, range(num_classes)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        rambo = rambo_node(cfg)
        args: dict[str, Any] = super().from_config(cfg, input_shape)
        num_classes = args["num_classes"]
        names = _training_classes(cfg)
        args.update(
            rambo_loss=loss_from_config(cfg, num_classes),
            score=rambo.SCORE,
            rambo_weight=rambo.LOSS_WEIGHT,
            class_names=names if names and len(names) == num_classes else None,
        )
        return args

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """As the stock method; ``loss_cls`` is the AP loss of all images' proposals together."""
        logits, deltas = predictions
        # Detached logits: super() gives the box loss, its weights and the logged statistics.
        losses: dict[str, Tensor] = super().losses((logits.detach(), deltas), proposals)
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals], dim=0)
        else:
            gt_classes = torch.zeros(0, dtype=torch.int64, device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            loss = self.rambo_loss(self._score(logits.float()), gt_classes)
        log_scalars(self.rambo_loss, self._class_names)
        weights = getattr(self, "loss_weight", {})
        losses["loss_cls"] = loss * (self.rambo_weight * weights.get("loss_cls", 1.0))
        return losses

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """As the stock method: softmax, or for ``score="logits"`` a sigmoid of each class."""
        if self.rambo_score != "logits":
            probs: tuple[Tensor, ...] = super().predict_probs(predictions, proposals)
            return probs
        return predictions[0].sigmoid().split([len(p) for p in proposals], dim=0)


def _training_classes(cfg: CfgNode) -> list[str] | None:
    for name in cfg.DATASETS.TRAIN:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names:
            return list(names)
    return None
