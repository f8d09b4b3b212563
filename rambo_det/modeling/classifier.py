"""The last layers of a detector's classifier: reads their logits per detection, rescales them.

Shapes: D detections, R boxes, K classes, S last layers (one, or one for each cascade stage).
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import InputError
from .scores import add_background


@dataclass(frozen=True)
class Rescaling:
    """A rescaling: ``factor * logit + shift`` replaces the logit of each class.

    All classes share one factor. With its own factor, a class could be far above or below the
    others where scores are near 0. The class would then gain or lose places among the detections
    that are kept per image. If the score is a sigmoid of one logit, the boxes of a class keep their
    order. They nearly keep it under a softmax, where the shifts of the other classes matter too, in
    a cascade, which takes the mean over its stages, and in FCOS, whose score has another factor.
    """

    factor: Tensor  # scalar float64, > 0
    shift: Tensor  # (K,) float64


class Classifier:
    """The last layers that score the K classes of an R-CNN, RetinaNet or FCOS.

    Attributes:
        num_classes: K.
        is_softmax: whether a softmax over K + 1 logits scores a box. The last is background; a
            RetinaNet has no output for it, its logit is 0.

    Raises:
        InputError: the model is none of these, or has no layer ``cls_score``.
    """

    def __init__(self, model: nn.Module) -> None:
        roi_heads = getattr(model, "roi_heads", None)
        predictor = getattr(roi_heads, "box_predictor", None)
        self._is_dense = isinstance(model, (RetinaNet, FCOS))
        self._is_fcos = isinstance(model, FCOS)
        if self._is_dense:
            self._heads: list[Any] = [model.head]
            self.num_classes: int = model.num_classes
        elif predictor is not None:
            self._heads = list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]
            self.num_classes = roi_heads.num_classes
        else:
            raise InputError(
                f"{type(model).__name__} cannot be calibrated: only R-CNN, RetinaNet and FCOS "
                "models have scores to calibrate"
            )
        for head in self._heads:
            if getattr(getattr(head, "cls_score", None), "bias", None) is None:
                problem = "has no layer cls_score with a bias to rescale"
                raise InputError(f"{type(head).__name__} {problem}")
        # A stock one-stage detector scores by a sigmoid, a stock R-CNN by a softmax.
        scored_by, stock = (model, "logits") if self._is_dense else (self._heads[0], "log_odds")
        self.is_softmax = getattr(scored_by, "rambo_score", stock) != "logits" and not getattr(
            scored_by, "use_sigmoid_ce", False
        )
        self._model = model
        self._captured: list[Any] = []

    def detect(self, image: dict[str, Any]) -> tuple[Any, Tensor]:
        """Returns the detections in one image and the outputs of the last layers for them.

        Args:
            image: an input of the model.

        Returns:
            Detectron2's ``Instances`` of D detections, and the outputs for :meth:`scores`: of an
            R-CNN, or a RetinaNet with a softmax, ``(D, S, K + 1)`` logits; of FCOS ``(D, 2)``
            logits of the class and the centre-ness; of a stock RetinaNet ``(D, 1)`` logits of the
            class.
        """
        self._captured.clear()
        with ExitStack() as hooks, torch.no_grad():
            for head in self._heads:
                hooks.enter_context(head.register_forward_hook(self._capture_outputs))
            detections = self._model([image])[0]["instances"]
        if self._is_dense and not (self._is_fcos or self.is_softmax):
            scores = detections.scores.double().clamp(1e-38, 1 - 1e-7)  # float32 may be 0 or 1
            return detections, scores.logit()[:, None]
        # Detectron2 selects and suppresses boxes; the score of a detection identifies its box.
        classes = detections.pred_classes
        if self._is_fcos:
            (outputs,) = self._captured  # (R, K, 2)
            scores = outputs.sigmoid().prod(dim=-1).sqrt()
        else:
            outputs = torch.stack(self._captured, dim=1)  # (R, S, K + 1)
            scores = self._box_scores(outputs)
        pairs = zip(detections.scores, classes, strict=True)
        row = [(scores[:, k] - score).abs().argmin() for score, k in pairs]
        row = torch.stack(row) if row else classes
        return detections, outputs[row, classes] if self._is_fcos else outputs[row]

    def _capture_outputs(self, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
        if not self._is_dense:
            self._captured.append(outputs[0])  # (R, K + 1)
        elif self.is_softmax:
            levels = [permute_to_N_HWA_K(x, self.num_classes)[0] for x in outputs[0]]
            self._captured.append(add_background(torch.cat(levels)))
        elif self._is_fcos:
            logits, _, centres = (
                torch.cat([x[0].flatten(1).T for x in levels]) for levels in outputs
            )  # (R, K) and (R, 1)
            self._captured.append(torch.stack([logits, centres.expand_as(logits)], dim=-1))

    def _box_scores(self, logits: Tensor) -> Tensor:
        """Returns ``(R, K + 1)`` scores of an R-CNN's boxes from ``(R, S, K + 1)`` logits."""
        return (logits.softmax(dim=-1) if self.is_softmax else logits.sigmoid()).mean(dim=1)

    def scores(self, outputs: Tensor, classes: Tensor, new: Rescaling) -> Tensor:
        """Returns the ``(D,)`` float64 scores of detections after a rescaling.

        Args:
            outputs: the outputs that :meth:`detect` returned.
            classes: ``(D,)`` int64.
            new: the rescaling.
        """
        outputs = outputs.double()
        if self.is_softmax or not self._is_dense:
            logits = outputs * new.factor + pad(new.shift, (0, 1))
            return self._box_scores(logits).gather(1, classes[:, None])[:, 0]
        scores = (outputs[:, 0] * new.factor + new.shift[classes]).sigmoid()
        return (scores * outputs[:, 1].sigmoid()).sqrt() if self._is_fcos else scores

    @torch.no_grad()
    def apply(self, new: Rescaling) -> None:
        """Writes a rescaling into the weights of the last layers; their shapes do not change."""
        for layer in (head.cls_score for head in self._heads):
            if self._is_dense:  # K channels for each anchor of a location
                shift = new.shift.repeat(layer.weight.shape[0] // self.num_classes)
            else:  # the last output is background
                shift = pad(new.shift, (0, 1))
            factor, shift = new.factor.to(layer.weight.device), shift.to(layer.weight.device)
            layer.weight.copy_(layer.weight.double() * factor)
            layer.bias.copy_(layer.bias.double() * factor + shift)
