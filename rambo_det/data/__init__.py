"""Registers datasets with Detectron2: the user's own, after checks, and the quickstart's shapes."""

from .register import hold_out, register_datasets
from .shapes import register_shapes

__all__ = ["hold_out", "register_datasets", "register_shapes"]
