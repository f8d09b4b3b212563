"""Fast R-CNN's output layers with the AP loss in place of cross entropy."""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor

from ..errors import InputError
from .config_checks import check_no_fed_loss
from .criterion import RamboCriterion, criterion_for
from .scores import score_function


class RamboFastRCNNOutputLayers(FastRCNNOutputLayers):
    """FastRCNNOutputLayers whose ``loss_cls`` is the batch-wide AP loss.

    The layers are those of the stock class, and so are the weights in a checkpoint.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        rambo_loss: RamboCriterion | None = None,
        score: str = "log_odds",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: as in the stock class.
            num_classes: number of foreground classes K.
            rambo_loss: the loss; None: a RamboCriterion with its defaults.
            score: name of the score that is ranked, see :mod:`.scores`.
            **kwargs: passed to FastRCNNOutputLayers.

        Raises:
            InputError: the ranked score, or the stock loss of the warm-up, does not match the
                scoring of boxes at inference.
        """
        check_no_fed_loss(kwargs.get("use_fed_loss", False))
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        self.set_ranking(criterion_for(num_classes, rambo_loss), score)

    def set_ranking(self, rambo_loss: RamboCriterion, score: str) -> None:
        """Sets the loss and the name of the ranked score; InputError if they do not match."""
        self.rambo_loss, self.rambo_score = rambo_loss, score
        score_function(score)  # raises InputError for an unknown name
        self._sigmoid = score == "logits"
        key = "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"
        use_sigmoid_ce = getattr(self, "use_sigmoid_ce", False)  # Detectron2 v0.6 lacks it
        if use_sigmoid_ce and not self._sigmoid:
            raise InputError(
                f"{key} is True, so a sigmoid scores boxes, but MODEL.RAMBO.SCORE {score} ranks "
                f"softmax scores: set {key} to False, or MODEL.RAMBO.SCORE to logits"
            )
        if self._sigmoid and not use_sigmoid_ce and self.rambo_loss.ce_warmup:
            raise InputError(
                "MODEL.RAMBO.SCORE logits scores boxes by a sigmoid, but the cross entropy of "
                f"MODEL.RAMBO.CE_WARMUP uses a softmax: set {key} to True (Detectron2 v0.6 lacks "
                "this key, main has it), or CE_WARMUP to 0"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        args: dict[str, Any] = super().from_config(cfg, input_shape)
        args["rambo_loss"] = RamboCriterion.from_cfg(cfg, args["num_classes"])
        args["score"] = cfg.MODEL.RAMBO.SCORE
        return args

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Returns the stock losses; ``loss_cls`` is the AP loss of all images' proposals."""
        logits, deltas = predictions
        # super() computes and weighs the box loss and logs statistics. Its logits are detached
        # unless its classification loss is used too.
        stock_logits = logits if self.rambo_loss.stock_loss_weight() else logits.detach()
        stock = partial(super().losses, (stock_logits, deltas), proposals)
        gt_classes = [p.gt_classes for p in proposals] or [logits.new_zeros(0, dtype=torch.int64)]
        inputs = score_function(self.rambo_score)(logits.float()), cat(gt_classes), logits
        scale = self.loss_weight.get("loss_cls", 1.0)
        return self.rambo_loss.replace_stock_loss("loss_cls", stock, *inputs, scale=scale)

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """Returns probabilities by a softmax, or for ``score="logits"`` by a sigmoid per class."""
        # Does not call super(), which torch.jit.script does not support.
        scores = predictions[0]
        probs = scores.sigmoid() if self._sigmoid else scores.softmax(dim=-1)
        # When a model is traced, len() would make the number of proposals a constant. Detectron2
        # patches len() to avoid this, but only in its own modules.
        return probs.split([p.__len__() for p in proposals], dim=0)
