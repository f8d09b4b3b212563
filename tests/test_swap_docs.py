"""docs/swap-the-loss.md: every line of its tables is executed as it stands."""

import re

import pytest

pytest.importorskip("detectron2")

from detectron2.config import LazyConfig, instantiate
from detectron2.model_zoo import get_config
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import rambo_det

from .architectures import ARCHITECTURES, assert_same_predictions, config, memories
from .doc_pages import DOCS, blocks, text_of
from .models import CONFIGS, training_inputs

PAGE = DOCS / "swap-the-loss.md"
TEXT = text_of(PAGE)
ROWS = re.findall(r"^\| (.+?) \| `(.+?)` \| \[.+?\]\((.+?)\) \| (.+?) \|$", TEXT, re.M)
PREAMBLE = blocks(PAGE, "python")[0]
# The stock model that a row's project has.
STOCK = {
    "Faster R-CNN with FPN": "faster_rcnn",
    "Mask R-CNN": "faster_rcnn",
    "Keypoint R-CNN": "faster_rcnn",
    "Faster R-CNN, C4": "c4",
    "Cascade R-CNN": "cascade",
    "RetinaNet": "retinanet",
    "RPN of any of the R-CNNs": "rpn",
}
LAZY = {"Faster R-CNN": "mask_rcnn_fpn", "RetinaNet": "retinanet", "FCOS": "fcos"}


def test_there_is_a_row_for_each_architecture():
    yaml = [row[0] for row in ROWS if row[1].startswith("cfg.")]
    lazy = [row[0] for row in ROWS if row[1].startswith("model.")]
    assert set(yaml) == set(STOCK) and set(lazy) == set(LAZY) and len(ROWS) == len(yaml + lazy)
    assert all((DOCS / row[2]).is_file() for row in ROWS)
    # What test_matrix.py and test_lazy_config.py run.
    assert all(row[3].startswith(("drawn, chess", "drawn, the yaml's losses")) for row in ROWS)


@pytest.mark.parametrize("row", [r for r in ROWS if r[1].startswith("cfg.")], ids=lambda r: r[0])
def test_yaml_row(row):
    name, change, config, _ = row
    scope = {}
    exec(PREAMBLE, scope)
    cfg = scope["cfg"]
    cfg.merge_from_file(str(CONFIGS / ARCHITECTURES[STOCK[name]].stock))
    cfg.MODEL.DEVICE = "cpu"
    exec(change, scope)
    model = build_model(cfg)
    assert len(list(memories(model))) == (3 if "Cascade" in name else 1)
    with EventStorage() as storage:
        model(training_inputs(1))
        assert any(key.startswith("rambo/") for key in storage.latest())
    # The config beside it says the same.
    key, value = re.fullmatch(r'cfg\.(\S+) = "(\S+)"', change).groups()
    text = (DOCS / config).read_text() + (CONFIGS / "faster_rcnn_rambo.yaml").read_text()
    assert f'{key.rpartition(".")[2]}: "{value}"' in text or "RPN: True" in text


def test_cascade_and_rpn_from_a_lazy_config():
    scope = {"rambo_det": rambo_det, "get_config": get_config}
    exec(blocks(PAGE, "python")[-1], scope)
    scope["model"].backbone.bottom_up.freeze_at = 0
    for part in ("mask_in_features", "mask_pooler", "mask_head"):  # the images here have none
        scope["model"].roi_heads[part] = None
    model = instantiate(scope["model"])
    assert len(list(memories(model))) == 4
    with EventStorage() as storage:
        losses = model(training_inputs(1))
        names = storage.latest()
    assert {"loss_rpn_cls", "loss_cls_stage0", "loss_cls_stage2"} <= set(losses)
    assert all(f"{part}rambo/memory_fill" in names for part in ("stage0/", "stage2/")), names
    assert "rambo/rpn/memory_fill" in names


def test_scores_by_a_sigmoid_are_those_of_the_stock_models_sigmoid():
    cfg = config("faster_rcnn", False, "MODEL.RAMBO.SCORE", "logits")
    stock_cfg = config("faster_rcnn", stock=True)
    if "USE_SIGMOID_CE" not in stock_cfg.MODEL.ROI_BOX_HEAD:
        pytest.skip("this Detectron2's heads score by softmax alone")
    stock_cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    ours, stock = build_model(cfg), build_model(stock_cfg)
    stock.load_state_dict(ours.state_dict())
    assert_same_predictions(ours, stock, training_inputs(1))


@pytest.mark.parametrize("row", [r for r in ROWS if r[1].startswith("model.")], ids=lambda r: r[0])
def test_lazy_row(row):
    name, change, config, tested = row
    model = get_config(f"common/models/{LAZY[name]}.py").model
    exec(change, {"model": model, "rambo_det": rambo_det})
    shipped = LazyConfig.load(str(DOCS / config)).model
    if name == "Faster R-CNN":
        model, shipped = model.roi_heads.box_predictor, shipped.roi_heads.box_predictor
    assert model._target_ == shipped._target_
