"""ROI heads whose box heads are trained with the AP loss."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)

from ..errors import InputError
from .config_checks import check_no_fed_loss
from .criterion import RamboCriterion
from .output_layers import RamboFastRCNNOutputLayers


class _RamboPredictorMixin:
    """A mixin that turns each stock box predictor into a :class:`RamboFastRCNNOutputLayers`.

    The mixin must be the first base class. The predictors keep their layers and settings. Heads
    that are made from arguments, as in a LazyConfig, need such predictors; other predictors raise
    InputError.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_predictors()

    def train(self, mode: bool = True) -> Any:
        """As in nn.Module; checks again, as a subclass may have set another predictor."""
        if mode:
            self._check_predictors()
        return super().train(mode)

    def _check_predictors(self) -> None:
        made = self.box_predictor
        is_cascade = isinstance(made, torch.nn.ModuleList)
        for stage, predictor in enumerate(made if is_cascade else [made]):
            if not isinstance(predictor, RamboFastRCNNOutputLayers):
                name = f"{type(self).__name__} got a {type(predictor).__name__}"
                layers = "rambo_det.RamboFastRCNNOutputLayers"
                lazy = f"in a LazyConfig, set box_predictor._target_ to {layers}"
                raise InputError(f"{name}: derive it from {layers}; {lazy}")
            if is_cascade:
                predictor.rambo_loss.name = f"loss_cls_stage{stage}"

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        check_no_fed_loss(cfg.MODEL.ROI_BOX_HEAD.get("USE_FED_LOSS", False))
        if cls is RamboROIHeads and not cfg.MODEL.ROI_BOX_HEAD.NAME:
            raise InputError(
                "MODEL.ROI_BOX_HEAD.NAME is empty, as in configs of C4 models: set "
                "MODEL.ROI_HEADS.NAME to RamboRes5ROIHeads, or name a box head"
            )
        args: dict[str, Any] = super().from_config(cfg, input_shape)
        for made in args.get("box_predictors") or [args["box_predictor"]]:
            if type(made) is FastRCNNOutputLayers:  # else of a user's subclass of the heads
                made.__class__ = RamboFastRCNNOutputLayers  # keeps its layers and its settings
                rambo_loss = RamboCriterion.from_cfg(cfg, made.num_classes)
                made.set_ranking(rambo_loss, cfg.MODEL.RAMBO.SCORE)
        return args


@ROI_HEADS_REGISTRY.register()
class RamboROIHeads(_RamboPredictorMixin, StandardROIHeads):
    """StandardROIHeads with :class:`RamboFastRCNNOutputLayers`; same masks and keypoints."""

    # For torch.jit.script; Detectron2 annotates only StandardROIHeads itself.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]


@ROI_HEADS_REGISTRY.register()
class RamboRes5ROIHeads(_RamboPredictorMixin, Res5ROIHeads):
    """Res5ROIHeads, the heads of C4 models, with :class:`RamboFastRCNNOutputLayers`."""


@ROI_HEADS_REGISTRY.register()
class RamboCascadeROIHeads(_RamboPredictorMixin, CascadeROIHeads):
    """CascadeROIHeads with a :class:`RamboFastRCNNOutputLayers`, hence a memory, for each stage."""
