"""The format of a model's masks, from one's own data."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..errors import InputError


def set_masks(cfg: CfgNode, names: Sequence[str]) -> None:
    """Sets ``INPUT.MASK_FORMAT`` of a model that has masks to ``bitmask`` where data have RLE.

    Args:
        cfg: changed in place.
        names: of the data sets, one's own.

    Raises:
        InputError: an object has no mask.
    """
    if not cfg.MODEL.MASK_ON:
        return
    for name in names:
        metadata = MetadataCatalog.get(name)
        if where := metadata.get("without_mask"):
            raise InputError(
                f"MODEL.MASK_ON is True, but {where} has no mask: give each object a "
                "'segmentation' in COCO's format, or set MODEL.MASK_ON False"
            )
        # The default, polygon, cannot hold RLE; bitmask holds both.
        cfg.INPUT.MASK_FORMAT = metadata.get("mask_format", cfg.INPUT.MASK_FORMAT)
