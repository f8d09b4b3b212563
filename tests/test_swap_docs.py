"""docs/swap-the-loss.md: the tests execute every line of its tables."""

import re

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.model_zoo import get_config
from detectron2.modeling import build_model

import rambo_det
from rambo_det.engine.setup import read_config

from . import test_lazy_config, test_matrix
from .architectures import ARCHITECTURES, memories, training_losses
from .doc_pages import DOCS, blocks, text_of
from .models import CONFIGS, small_cfg, training_inputs, write_coco

PAGE = DOCS / "swap-the-loss.md"
ROW = re.compile(r"^\| (.+?) \| `(.+?)` \| \[.+?\]\((.+?)\) \| (.+?) \|$", re.M)
ROWS = {(change.split(".")[0], name): (change, DOCS / file, tested)
        for name, change, file, tested in ROW.findall(text_of(PAGE))}  # fmt: skip
# The architecture in tests/architectures.py of each row.
YAML = {
    "Faster R-CNN with FPN": "faster_rcnn", "Mask R-CNN": "mask", "Keypoint R-CNN": "keypoint",
    "Faster R-CNN, C4": "c4", "Cascade R-CNN": "cascade", "RetinaNet": "retinanet",
    "RPN of any of the R-CNNs": "rpn",
}  # fmt: skip
LAZY = {"Faster R-CNN": "mask_rcnn_fpn", "RetinaNet": "retinanet", "FCOS": "fcos"}


def test_there_is_a_row_for_each_architecture():
    assert set(ROWS) == {("cfg", name) for name in YAML} | {("model", name) for name in LAZY}
    for (kind, name), (_, file, tested) in ROWS.items():
        if tested.startswith("drawn, the yaml's losses"):
            assert file.stem in test_lazy_config.SAME_AS_YAML
        else:
            assert tested.startswith("drawn, chess")
            architecture = YAML[name] if kind == "cfg" else {"FCOS": "fcos"}[name]
            cells = {(architecture, data) for data in ("quickstart", "chess")}
            assert file.is_file() and cells <= set(test_matrix.CELLS)


@pytest.mark.parametrize("name", YAML)
def test_yaml_row(name):
    change, file, _ = ROWS["cfg", name]
    scope = {}
    exec(blocks(PAGE, "python")[0], scope)
    cfg = scope["cfg"]
    cfg.merge_from_file(str(CONFIGS / ARCHITECTURES[YAML[name]].stock))
    cfg.MODEL.DEVICE = "cpu"
    exec(change, scope)
    model = build_model(cfg)
    assert len(list(memories(model))) == (3 if "Cascade" in name else 1)
    _, scalars = training_losses(model, training_inputs(1))
    assert any("rambo/" in key for key in scalars)
    # The config that the row links to has this value already.
    shipped = read_config(str(file))
    scope["cfg"] = shipped.clone()
    exec(change, scope)
    assert scope["cfg"] == shipped


@pytest.mark.parametrize("name", LAZY)
def test_lazy_row(name):
    change, file, _ = ROWS["model", name]
    model = get_config(f"common/models/{LAZY[name]}.py").model
    exec(change, {"model": model, "rambo_det": rambo_det})
    shipped = LazyConfig.load(str(file)).model
    if name == "Faster R-CNN":
        model, shipped = model.roi_heads.box_predictor, shipped.roi_heads.box_predictor
    assert model._target_ == shipped._target_


def test_cascade_and_rpn_from_a_lazy_config():
    scope = {"rambo_det": rambo_det, "get_config": get_config}
    exec(blocks(PAGE, "python")[-1], scope)
    scope["model"].backbone.bottom_up.freeze_at = 0
    for part in ("mask_in_features", "mask_pooler", "mask_head"):  # the images have no masks
        scope["model"].roi_heads[part] = None
    model = instantiate(scope["model"])
    assert len(list(memories(model))) == 4
    losses, names = training_losses(model, training_inputs(1))
    assert {"loss_rpn_cls", "loss_cls_stage0", "loss_cls_stage2"} <= set(losses)
    ranges = {f"{part}score_range" for part in ("stage0/rambo/", "stage2/rambo/", "rambo/rpn/")}
    assert ranges <= set(names)


def test_three_lines_in_a_stock_detectron2_script(tmp_path, catalogs):
    """The README promises this for an existing project; ``small_cfg`` has the first two lines."""
    register_coco_instances("few_shapes", {}, *write_coco(tmp_path / "data"))
    keys = ["DATASETS.TRAIN", ("few_shapes",), "DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path)]
    cfg = small_cfg("quickstart/faster_rcnn_ce.yaml", *keys)
    cfg.MODEL.ROI_HEADS.NAME = "RamboROIHeads"
    trainer = DefaultTrainer(cfg)
    before = trainer.model.roi_heads.box_predictor.cls_score.weight.clone()
    trainer.train()
    predictor = trainer.model.roi_heads.box_predictor
    assert not torch.equal(predictor.cls_score.weight, before)
    assert int(predictor.rambo_loss.memory.written) == 3
    scalars = trainer.storage.latest()
    assert 0 < scalars["rambo/AP"][0] < 1 and "loss_cls" in scalars
