"""RaMBO asked for where it has nothing to replace: one line that names key and remedy."""

import pytest
from detectron2.modeling import build_model

from rambo_det.cli.train import main
from rambo_det.errors import InputError

from .command_line import refused
from .models import small_cfg

RCNN = "configs/quickstart/faster_rcnn_rambo.yaml"
CE = "configs/quickstart/faster_rcnn_ce.yaml"
META = "MODEL.META_ARCHITECTURE"


@pytest.mark.parametrize(
    "config, keys, message",
    [
        (RCNN, [META, "RetinaNet"], f"MODEL.ROI_HEADS.NAME RamboROIHeads: {META} RetinaNet has no"
         " ROI heads: set MODEL.META_ARCHITECTURE RamboRetinaNet"),
        (RCNN, [META, "ProposalNetwork"], "scores objectness alone, which MODEL.RAMBO.RPN True"),
        (RCNN, [META, "SemanticSegmentor"], "detects nothing; use MODEL.META_ARCHITECTURE"),
        (CE, [META, "RetinaNet", "MODEL.RAMBO.RPN", "True"], "MODEL.RAMBO.RPN: "
         "MODEL.META_ARCHITECTURE RetinaNet has no RPN: set it to False"),
        (CE, ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.RAMBO.RPN", "True"],
         "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals has no objectness"),
    ],
)  # fmt: skip
def test_an_architecture_without_the_loss(config, keys, message, capsys, catalogs):
    assert message in refused(capsys, main, "--config", config, *keys)


@pytest.mark.parametrize("name", ["faster_rcnn_rambo", "faster_rcnn_c4_rambo"])
def test_class_agnostic_heads(name):
    with pytest.raises(InputError, match="CLS_AGNOSTIC_BBOX_REG cannot .* set it to False, or use"):
        build_model(small_cfg(f"quickstart/{name}.yaml", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
                              True))  # fmt: skip


@pytest.mark.parametrize(
    "name", ["faster_rcnn_rambo", "faster_rcnn_c4_rambo", "cascade_rcnn_rambo"]
)
def test_federated_loss(name):
    cfg = small_cfg(f"quickstart/{name}.yaml")
    if "USE_FED_LOSS" not in cfg.MODEL.ROI_BOX_HEAD:
        pytest.skip("this Detectron2 has no federated loss")
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
    with pytest.raises(InputError, match="USE_FED_LOSS cannot .* set it to False"):
        build_model(cfg)


def test_the_rpn_key_is_not_ignored_by_a_stock_script():
    """Where anything of ours is built; with stock heads nothing is, see rambo_det/config.py."""
    with pytest.raises(InputError, match="MODEL.PROPOSAL_GENERATOR.NAME RamboRPN in its place"):
        build_model(small_cfg("quickstart/faster_rcnn_rambo.yaml", "MODEL.RAMBO.RPN", True))
    with pytest.raises(InputError, match="MODEL.RAMBO.RPN: .* RamboRetinaNet has no RPN"):
        build_model(small_cfg("quickstart/retinanet_rambo.yaml", "MODEL.RAMBO.RPN", True))
