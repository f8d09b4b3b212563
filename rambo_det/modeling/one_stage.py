"""RetinaNet and FCOS with the AP loss in place of focal loss.

Shapes: N images, R anchors (FCOS: locations) over all levels, K classes.
"""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from .config_checks import check_architecture
from .criterion import RamboCriterion, criterion_for
from .scores import add_background, log_odds, score_function, softmax_log_odds


class _RamboOneStageMixin:
    """A mixin for one-stage detectors: the classification loss is the AP loss of all anchors.

    The mixin must be the first base class.
    """

    _loss_name = "loss_cls"
    #: The score that is ranked, see :mod:`.scores`. "logits": the class logits as they are.
    rambo_score = "logits"

    def __init__(
        self, *, num_classes: int, rambo_loss: RamboCriterion | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            num_classes: number of foreground classes K.
            rambo_loss: the loss; None: a RamboCriterion with its defaults.
            **kwargs: passed to the stock class.
        """
        super().__init__(num_classes=num_classes, **kwargs)
        self.rambo_loss = criterion_for(num_classes, rambo_loss)
        self.rambo_loss.name = self._loss_name

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        *more_per_level: list[Tensor],
    ) -> dict[str, Tensor]:
        """Returns the stock losses, except the classification loss, which is the AP loss.

        If the stock classification loss is not used, the stock method gets only the anchors that
        are positive in some image. The other anchors contribute only to that loss; box losses,
        normaliser and statistics are the same without them.

        Args:
            anchors: Boxes of each level.
            pred_logits: of each level ``(N, R of the level, K)``.
            gt_labels: N tensors ``(R,)`` int64; K is background, -1 is ignored.
            pred_anchor_deltas: of each level ``(N, R of the level, 4)``.
            gt_boxes: N tensors ``(R, 4)`` in px.
            *more_per_level: the stock method's other arguments, in the form of the deltas.
        """
        logits, classes = flatten_levels(pred_logits, gt_labels)
        scores, num_classes = logits, self.num_classes
        if self.rambo_score != "logits":
            scores = score_function(self.rambo_score)(add_background(logits))
        if not self.rambo_loss.stock_loss_weight():
            labels = torch.stack(gt_labels)
            used = ((labels >= 0) & (labels != num_classes)).any(dim=0)
            used = used.nonzero()[:, 0]  # one wait for a GPU; each mask below would wait again
            gt_labels, anchors = list(labels[:, used]), [Boxes.cat(anchors)[used]]
            # Zeros replace the logits; an expanded tensor takes no memory.
            no_logits = pred_logits[0].new_zeros(())
            pred_logits = [no_logits.expand(len(gt_labels), len(anchors[0]), num_classes)]
            pred_anchor_deltas = [cat(pred_anchor_deltas, dim=1)[:, used]]
            gt_boxes = [of_image[used] for of_image in gt_boxes]
            more_per_level = tuple([cat(levels, dim=1)[:, used]] for levels in more_per_level)
        elif self.rambo_score != "logits":  # the stock loss of the same probabilities
            odds = log_odds(add_background(logits))
            pred_logits = [odds.reshape(len(gt_labels), -1, num_classes)]
        inputs = (anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, *more_per_level)
        stock = partial(super().losses, *inputs)
        return self.rambo_loss.replace_stock_loss(self._loss_name, stock, scores, classes, logits)


@META_ARCH_REGISTRY.register()
class RamboRetinaNet(_RamboOneStageMixin, RetinaNet):
    """RetinaNet whose ``loss_cls`` is the batch-wide AP loss of all anchors.

    Ignored anchors are not ranked. The loss lies in [0, 1] times its weight. Unlike the focal loss,
    it is not divided by the moving average of the number of positives.

    A box is scored by a softmax over the classes and a background whose logit is 0. With the score
    "logits", a sigmoid of each class scores it, as in the stock model.
    """

    @configurable
    def __init__(self, *, score: str = "log_odds", **kwargs: Any) -> None:
        """
        Args:
            score: the score that is ranked, see :mod:`.scores`.
            **kwargs: ``num_classes``, ``rambo_loss``, and the arguments of the stock class.
        """
        super().__init__(**kwargs)
        score_function(score)  # raises InputError for an unknown name
        self.rambo_score = score

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Returns what the stock method does, with the scores of the softmax."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        if self.rambo_score != "logits":
            logits = [softmax_log_odds(x) for x in logits]
        anchors = self.anchor_generator(features)
        results: list[Instances] = []
        for i, image_size in enumerate(images.image_sizes):
            scores = [x[i].sigmoid_() for x in logits]
            of_image = [x[i] for x in deltas]
            results.append(self.inference_single_image(anchors, scores, of_image, image_size))
        return results

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_architecture(cfg)
        args: dict[str, Any] = super().from_config(cfg)
        args["rambo_loss"] = RamboCriterion.from_cfg(cfg, args["num_classes"])
        args["score"] = cfg.MODEL.RAMBO.SCORE
        return args


class RamboFCOS(_RamboOneStageMixin, FCOS):
    """FCOS whose ``loss_fcos_cls`` is the batch-wide AP loss of all locations' logits.

    A LazyConfig builds RamboFCOS, as it builds FCOS; no yaml config exists for them.
    """

    _loss_name = "loss_fcos_cls"


def flatten_levels(pred_logits: list[Tensor], gt_labels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Flattens logits ``(N, R of the level, K)`` of each level and N labels ``(R,)`` to one batch.

    Returns:
        ``(N * R, K)`` and ``(N * R,)``.
    """
    return cat(pred_logits, dim=1).flatten(0, 1), torch.stack(gt_labels).flatten()
