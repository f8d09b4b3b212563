"""The number of key points of a model, from one's own data."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..errors import InputError

#: How many key points COCO's persons have, for which pycocotools brings the tolerances.
_COCO = 17


def set_keypoints(cfg: CfgNode, names: Sequence[str]) -> None:
    """Sets the number of key points of a model that has them to that of one's own data.

    Args:
        cfg: changed in place.
        names: of the data sets.

    Raises:
        InputError: a set has none, another number than the first, or there is no tolerance for
            each in ``TEST.KEYPOINT_OKS_SIGMAS``, as only COCO's 17 have one.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return
    numbers = {name: len(MetadataCatalog.get(name).get("keypoint_names", ())) for name in names}
    for name, number in numbers.items():
        if number == 0:
            raise InputError(
                f"MODEL.KEYPOINT_ON is True, but {name} has no key points: the category in its "
                "json needs 'keypoints', a list of their names"
            )
        first = next(iter(numbers))
        if number != numbers[first]:
            raise InputError(f"{name} has {number} key points, {first} {numbers[first]}")
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = number
        given = len(cfg.TEST.KEYPOINT_OKS_SIGMAS)
        if given != number and (given or number != _COCO):
            raise InputError(
                f"TEST.KEYPOINT_OKS_SIGMAS must be {number} numbers, the tolerance of each key "
                f"point of {name}, not {given}: COCO's, which are the default, are of {_COCO}"
            )
