"""The COCO configs equal those of the installed Detectron2; unsupported configs are refused."""

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import rambo_det
from rambo_det.cli.train import main
from rambo_det.compare.plan import flat_settings
from rambo_det.engine.setup import read_config
from rambo_det.errors import InputError
from rambo_det.modeling import RamboCriterion

from .command_line import refused
from .models import CONFIGS, QUICKSTART, small_cfg

META = "MODEL.META_ARCHITECTURE"

TWINS = {
    "retinanet_focal.yaml": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "cascade_rcnn_rambo.yaml": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "mask_rcnn_rambo.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint_rcnn_rambo.yaml": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_c4_rambo.yaml": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
}


@pytest.mark.parametrize("ours", TWINS)
def test_coco_configs_are_upstreams_by_value(ours):
    """The values are equal, except for keys that this package's base files set themselves."""
    cfg, upstream = get_cfg(), get_cfg()
    rambo_det.add_rambo_config(cfg)
    cfg.merge_from_file(str(CONFIGS / ours))
    upstream.merge_from_file(model_zoo.get_config_file(TWINS[ours]))
    del cfg.MODEL["RAMBO"], cfg["RAMBO_TRAIN"]
    upstream.OUTPUT_DIR, upstream.SOLVER.CLIP_GRADIENTS = cfg.OUTPUT_DIR, cfg.SOLVER.CLIP_GRADIENTS
    cfg.MODEL.ROI_HEADS.NAME = upstream.MODEL.ROI_HEADS.NAME
    if "mask" not in ours:
        upstream.MODEL.MASK_ON = False
        upstream.MODEL.ROI_MASK_HEAD = cfg.MODEL.ROI_MASK_HEAD
    assert flat_settings(cfg) == flat_settings(upstream)


def test_the_papers_constants_begin_with_cross_entropy():
    cfg = read_config(str(CONFIGS / "paper_voc.yaml"))
    loss = RamboCriterion.from_cfg(cfg, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    assert (loss.spec.margin, loss.spec.beta, loss.num_classes) == (0.5, 0.3333, 20)
    assert 2 * loss.ce_warmup == cfg.SOLVER.MAX_ITER


# If RaMBO has no loss to replace, an error of one line names the key and the remedy.


@pytest.mark.parametrize(
    "config, keys, message",
    [
        *((QUICKSTART, [META, name], "MODEL.ROI_HEADS.NAME is RamboROIHeads, but "
           f"{META} {name} has no ROI heads: set {META} to GeneralizedRCNN{others}, or MODEL")
          for name, others in (("RetinaNet", " or RamboRetinaNet"), ("RamboRetinaNet", ""),
           ("ProposalNetwork", " or RamboRetinaNet"),
           ("SemanticSegmentor", " or RamboRetinaNet"))),
        ("configs/quickstart/retinanet_rambo.yaml",
         ["MODEL.PROPOSAL_GENERATOR.NAME", "RamboRPN"], f"{META} RamboRetinaNet has no RPN"),
    ],
)  # fmt: skip
def test_an_architecture_without_the_loss(config, keys, message, capsys, catalogs):
    assert message in refused(capsys, main, "--config", config, *keys)


@pytest.mark.parametrize("name", ["faster_rcnn", "faster_rcnn_c4", "cascade_rcnn"])
def test_federated_loss(name):
    cfg = small_cfg(f"quickstart/{name}_rambo.yaml")
    if "USE_FED_LOSS" not in cfg.MODEL.ROI_BOX_HEAD:
        pytest.skip("this Detectron2 has no federated loss")
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
    with pytest.raises(InputError, match="USE_FED_LOSS cannot .* set USE_FED_LOSS to False"):
        build_model(cfg)


def test_a_config_without_the_node_names_the_remedy():
    cfg = small_cfg()
    del cfg.MODEL["RAMBO"]
    with pytest.raises(InputError, match="add_rambo_config"):
        build_model(cfg)


@pytest.mark.parametrize(
    "key, value", [("IOU_THRESHOLDS", "[0.5, 0.75]"), ("LIFT", "20.0"), ("CE_WEIGHT", "0.0")]
)
def test_a_config_with_a_key_that_is_gone_is_read_with_a_warning(tmp_path, caplog, key, value):
    file = tmp_path / "old.yaml"
    file.write_text(f"MODEL: {{RAMBO: {{{key}: {value}, MARGIN: 0.25}}}}\n")
    cfg = read_config(str(file))
    assert cfg.MODEL.RAMBO.MARGIN == 0.25 and key not in cfg.MODEL.RAMBO
    assert f"MODEL.RAMBO.{key}" in caplog.text


def test_only_the_nodes_are_added(caplog):
    stock, ours = get_cfg(), get_cfg()
    rambo_det.add_rambo_config(ours)
    ours.MODEL.RAMBO.BETA = 0.25
    rambo_det.add_rambo_config(ours)  # as if a notebook's cell is run again
    assert ours.MODEL.RAMBO.BETA == 0.25
    del ours.MODEL["RAMBO"], ours["RAMBO_TRAIN"]
    assert ours.dump() == stock.dump() and not caplog.text


def test_a_rule_for_lambda_says_what_replaces_it(tmp_path):
    """Ignored, it would leave a λ that the rule 'each' did not use."""
    file = tmp_path / "old.yaml"
    file.write_text("MODEL: {RAMBO: {LAMBDA_RULE: each, LAMBDA: 1000.0}}")
    with pytest.raises(InputError, match=r"MODEL.RAMBO.LAMBDA_RULE was renamed .* LAMBDA 0.0 is"):
        read_config(str(file))
