"""Adapters that put the loss into Detectron2's models; importing them registers them."""

from .criterion import RamboCriterion
from .fast_rcnn import RamboFastRCNNOutputLayers
from .focal import FocalCascadeROIHeads, FocalRes5ROIHeads, FocalROIHeads
from .retinanet import RamboRetinaNet
from .roi_heads import RamboCascadeROIHeads, RamboRes5ROIHeads, RamboROIHeads
from .rpn import RamboRPN

__all__ = [
    "FocalCascadeROIHeads",
    "FocalROIHeads",
    "FocalRes5ROIHeads",
    "RamboCascadeROIHeads",
    "RamboCriterion",
    "RamboFastRCNNOutputLayers",
    "RamboROIHeads",
    "RamboRPN",
    "RamboRes5ROIHeads",
    "RamboRetinaNet",
]
