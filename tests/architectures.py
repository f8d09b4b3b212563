"""Small trainable models of every supported architecture, each with its stock counterpart."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rambo_det.modeling.config_checks import check_architecture

from .models import CONFIGS, small_cfg, training_inputs


class Architecture(NamedTuple):
    rambo: str  # config file with the AP loss
    stock: str  # config file of the stock counterpart
    opts: tuple = ()
    memories: int = 1


_QUICK = "quickstart/faster_rcnn_"
_MASK = ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
_MASK += ("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16)
_KEYPOINT = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (16,))

ARCHITECTURES = {
    "faster_rcnn": Architecture(f"{_QUICK}rambo.yaml", f"{_QUICK}ce.yaml"),
    "retinanet": Architecture(
        "quickstart/retinanet_rambo.yaml",
        "quickstart/retinanet_focal.yaml",
        ("MODEL.RAMBO.SCORE", "logits"),  # by default it scores boxes by a softmax
    ),
    "cascade": Architecture(
        "quickstart/cascade_rcnn_rambo.yaml", "quickstart/cascade_rcnn_ce.yaml", memories=3
    ),
    "c4": Architecture(f"{_QUICK}c4_rambo.yaml", f"{_QUICK}c4_ce.yaml"),
    "mask": Architecture(f"{_QUICK}rambo.yaml", f"{_QUICK}ce.yaml", _MASK),
    "keypoint": Architecture(f"{_QUICK}rambo.yaml", f"{_QUICK}ce.yaml", _KEYPOINT),
    "rpn": Architecture(f"{_QUICK}rambo_rpn.yaml", f"{_QUICK}ce.yaml", memories=2),
}


def config(name: str, stock: bool = False, *opts: object) -> CfgNode:
    """Returns the resolved config of an architecture, or of its stock counterpart."""
    architecture = ARCHITECTURES[name]
    cfg = small_cfg(architecture.stock if stock else architecture.rambo, *architecture.opts, *opts)
    check_architecture(cfg)
    return cfg


def build(name: str, stock: bool = False, *opts: object) -> torch.nn.Module:
    """Returns the model of an architecture (or "fcos"), or its stock counterpart; fixed weights."""
    seed_all_rng(3)
    if name == "fcos":  # has only a LazyConfig
        file = CONFIGS / "lazy/quickstart" / f"fcos_{'focal' if stock else 'rambo'}.py"
        return instantiate(LazyConfig.load(str(file)).model)
    return build_model(config(name, stock, *opts))


def training_losses(
    model: torch.nn.Module, inputs: list[dict] | None = None, iteration: int = 0
) -> tuple[dict, dict]:
    """Returns the losses of a training step with a fixed seed, and the scalars that it logs."""
    seed_all_rng(1)
    with EventStorage(iteration) as storage:
        return model.train()(inputs or training_inputs()), storage.latest()


def memories(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Returns an iterator over the score memories of a model."""
    return (m for name, m in model.named_modules() if name.endswith("rambo_loss.memory"))


def add_outlines(source: str | Path, target: Path, most_crowded: int | None = None) -> str:
    """Copies a COCO json, adds a mask and 17 keypoints to every box, and returns the new path.

    Args:
        source, target: paths of the json files.
        most_crowded: number of images to keep, those with the most objects first; None: all.
    """
    content = json.loads(Path(source).read_text())
    objects = Counter(annotation["image_id"] for annotation in content["annotations"])
    kept = {number for number, _ in objects.most_common(most_crowded)}
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        t = np.linspace(0.1, 0.9, 17)
        points = np.stack([x + w * t, y + h * t, np.full(17, 2)], axis=1)
        annotation.update(keypoints=points.flatten().tolist(), num_keypoints=17)
    for category in content["categories"]:
        category["keypoints"] = [str(point) for point in range(17)]
    target.write_text(json.dumps(content))
    return str(target)


def captured(model: torch.nn.Module, part: torch.nn.Module, inputs: list) -> tuple:
    """Returns the arguments of the first call of ``part.losses`` in a training step of a model."""
    calls, real = [], part.losses
    part.losses = lambda *args: calls.append(args) or real(*args)
    with EventStorage():
        model(inputs)
    del part.losses
    return calls[0]


def spread(logits: torch.Tensor) -> torch.Tensor:
    """Returns random logits of this shape, wider apart than the margin, unlike a new model's."""
    return 4 * torch.randn(logits.shape)


def pieces(scores: list[torch.Tensor], labels: list[torch.Tensor]) -> Iterator[tuple]:
    """Yields the scores and labels of each level of each image.

    Args:
        scores: for each level, a tensor ``(N, R of the level, ...)``.
        labels: for each image, a tensor ``(R,)``, where R is the sum over the levels.
    """
    for image, of_image in enumerate(labels):
        of_levels = of_image.split([level.shape[1] for level in scores])
        yield from ((level[image], x) for level, x in zip(scores, of_levels, strict=True))


def assert_same_predictions(ours: torch.nn.Module, stock: torch.nn.Module, inputs: list) -> None:
    """Checks that both models detect something, and that all fields are equal bit for bit."""
    inputs = [{k: v for k, v in x.items() if k != "instances"} for x in inputs]
    with torch.no_grad():
        pairs = list(zip(ours.eval()(inputs), stock.eval()(inputs), strict=True))
    for a, b in pairs:
        a, b = a["instances"], b["instances"]
        assert len(a) > 0 and a.get_fields().keys() == b.get_fields().keys()
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        for field in a.get_fields().keys() - {"pred_boxes"}:
            assert torch.equal(a.get(field), b.get(field)), field
