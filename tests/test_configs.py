"""The COCO configs against those of the installed Detectron2."""

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg

import rambo_det

from .models import CONFIGS

TWINS = {
    "retinanet_focal.yaml": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "cascade_rcnn_rambo.yaml": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "mask_rcnn_rambo.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint_rcnn_rambo.yaml": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_c4_rambo.yaml": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
}


@pytest.mark.parametrize("ours", TWINS)
def test_coco_configs_are_upstreams_by_value(ours):
    """All but the keys that a base file of this package names for itself."""
    cfg, upstream = get_cfg(), get_cfg()
    rambo_det.add_rambo_config(cfg)
    cfg.merge_from_file(str(CONFIGS / ours))
    upstream.merge_from_file(model_zoo.get_config_file(TWINS[ours]))
    del cfg.MODEL["RAMBO"], cfg["RAMBO_TRAIN"]
    upstream.OUTPUT_DIR = cfg.OUTPUT_DIR
    cfg.MODEL.ROI_HEADS.NAME = upstream.MODEL.ROI_HEADS.NAME
    if "mask" not in ours:
        upstream.MODEL.MASK_ON = False
        upstream.MODEL.ROI_MASK_HEAD = cfg.MODEL.ROI_MASK_HEAD
    assert plain(cfg) == plain(upstream)


def plain(value):
    """Nodes and sequences as dicts and lists, floats to 9 digits."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return round(value, 9) if isinstance(value, float) else value
