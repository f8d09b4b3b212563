"""Data sets: a user's own, checked and registered with Detectron2, and the quickstart's shapes."""

from .holdout import hold_out
from .register import register_datasets
from .shapes import register_shapes

__all__ = ["hold_out", "register_datasets", "register_shapes"]
