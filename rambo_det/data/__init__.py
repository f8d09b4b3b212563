"""Data sets: a user's own, checked and registered with Detectron2, and the quickstart's shapes."""

from .register import hold_out, register_datasets
from .shapes import register_shapes

__all__ = ["hold_out", "register_datasets", "register_shapes"]
