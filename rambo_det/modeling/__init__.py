"""Detectron2 models and heads that use the loss; importing this package registers them."""

from .criterion import RamboCriterion
from .one_stage import RamboFCOS, RamboRetinaNet
from .output_layers import RamboFastRCNNOutputLayers
from .roi_heads import RamboCascadeROIHeads, RamboRes5ROIHeads, RamboROIHeads
from .rpn import RamboRPN

__all__ = [
    "RamboCascadeROIHeads",
    "RamboCriterion",
    "RamboFCOS",
    "RamboFastRCNNOutputLayers",
    "RamboROIHeads",
    "RamboRPN",
    "RamboRes5ROIHeads",
    "RamboRetinaNet",
]
