"""Extreme datasets train and evaluate with finite losses.

``make torture`` runs more of the datasets, and RetinaNet too.
"""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rambo_det.cli.train import main

from ..models import QUICKSTART, SIZE, write_coco
from . import WHOLE

RETINANET = "configs/quickstart/retinanet_rambo.yaml"
Content = dict[str, Any]


def of_all(annotations: list[Content], **changed: Any) -> None:
    for annotation in annotations:
        annotation.update(changed)


def many_classes(content: Content) -> None:
    content["categories"] = [{"id": i + 1, "name": f"class {i}"} for i in range(1203)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 1 + 301 * number % 1203


def many_boxes(content: Content) -> None:
    rng = random.Random(0)
    del content["images"][1:]
    content["annotations"] = []
    for number in range(500):
        x, y, side = (rng.uniform(low, high) for low, high in [(0, SIZE - 12)] * 2 + [(4, 12)])
        box = {"id": number + 1, "image_id": 1, "bbox": [x, y, side, side], "iscrowd": 0}
        content["annotations"].append({**box, "category_id": rng.randint(1, 4)})


CHANGES: dict[str, Callable[[Content], object]] = {
    "many classes": many_classes,
    "many boxes": many_boxes,
    # One box in four images, so that half of the batches of 2 have no box.
    "hardly any box": lambda content: content.update(annotations=content["annotations"][:1]),
    "only crowds besides": lambda content: of_all(content["annotations"][1:], iscrowd=1),
    "boxes of one pixel": lambda content: of_all(content["annotations"], bbox=[7, 8, 1, 1]),
    "large boxes": lambda content: of_all(content["annotations"], bbox=[0, 0, SIZE, SIZE]),
}


@pytest.mark.parametrize("config", [QUICKSTART, RETINANET] if WHOLE else [QUICKSTART])
@pytest.mark.parametrize("case", CHANGES if WHOLE else list(CHANGES)[:3])
def test_it_trains_and_evaluates(case, config, tmp_path: Path, capsys, catalogs):
    file, images = write_coco(tmp_path, 4)
    content = json.loads(Path(file).read_text())
    CHANGES[case](content)
    Path(file).write_text(json.dumps(content))
    classes = ",".join(category["name"] for category in content["categories"])
    args = [
        "--config", config, "--register-coco", "to_data", file, images, "--classes", classes,
        "DATASETS.TRAIN", "('to_data',)", "DATASETS.TEST", "('to_data',)", "SEED", "1",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(args) == 0
    assert "checkpoint: " in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[0])
    losses = [value for key, value in metrics.items() if "loss" in key]
    assert len(losses) > 2 and all(math.isfinite(value) for value in losses)
