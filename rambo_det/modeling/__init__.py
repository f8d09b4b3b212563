"""Adapters that put the loss into Detectron2's models; importing them registers them."""

from .fast_rcnn import RamboFastRCNNOutputLayers
from .roi_heads import RamboROIHeads

__all__ = ["RamboFastRCNNOutputLayers", "RamboROIHeads"]
