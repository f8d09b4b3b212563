"""Data sets at the ends of what there is: they train and evaluate with finite losses.

In the whole form as processes, and RetinaNet too.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rambo_det.cli.train import main

from ..models import SIZE, write_coco
from .conftest import WHOLE
from .processes import QUICKSTART, run

RETINANET = "configs/quickstart/retinanet_rambo.yaml"
Content = dict[str, Any]
EMPTY = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"]


def of_all(annotations: list[Content], **changed: Any) -> list[str]:
    for annotation in annotations:
        annotation.update(changed)
    return []


def many_classes(content: Content) -> list[str]:
    names = [f"class {i}" for i in range(1203)]
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 1 + 301 * number % 1203
    return ["--classes", ",".join(names)]


def one_class(content: Content) -> list[str]:
    content["categories"] = [{"id": 7, "name": "thing"}]
    return of_all(content["annotations"], category_id=7)


def many_boxes(content: Content) -> list[str]:
    rng = random.Random(0)
    del content["images"][1:]
    content["annotations"] = [
        {"id": i + 1, "image_id": 0, "category_id": rng.randint(1, 4), "iscrowd": 0}
        for i in range(500)
    ]
    for annotation in content["annotations"]:
        x, y, side = (rng.uniform(low, high) for low, high in [(0, SIZE - 12)] * 2 + [(4, 12)])
        annotation["bbox"] = [x, y, side, side]
    return []


def hardly_any_box(content: Content) -> list[str]:
    """One box in four images, so that half of the batches of 2 have none."""
    del content["annotations"][1:]
    return EMPTY


def only_crowds_besides(content: Content) -> list[str]:
    return of_all(content["annotations"][1:], iscrowd=1) + EMPTY


def boxes_of_one_pixel(content: Content) -> list[str]:
    return of_all(content["annotations"], bbox=[7, 8, 1, 1])


def boxes_as_large_as_the_image(content: Content) -> list[str]:
    return of_all(content["annotations"], bbox=[0, 0, SIZE, SIZE])


CASES: list[Callable[[Content], list[str]]] = [
    many_classes, one_class, many_boxes, hardly_any_box, only_crowds_besides, boxes_of_one_pixel,
    boxes_as_large_as_the_image,
]  # fmt: skip
SHORT = CASES[:4]


@pytest.mark.parametrize("config", [QUICKSTART, RETINANET] if WHOLE else [QUICKSTART])
@pytest.mark.parametrize("change", CASES if WHOLE else SHORT, ids=lambda case: case.__name__)
def test_it_trains_and_evaluates(change, config, tmp_path: Path, capsys, catalogs):
    file, images = write_coco(tmp_path, 4)
    content = json.loads(Path(file).read_text())
    extra = change(content)
    Path(file).write_text(json.dumps(content))
    flags = extra if "--classes" in extra else []
    args = [
        "--config", config, "--register-coco", "to_data", file, images, *flags,
        "DATASETS.TRAIN", "('to_data',)", "DATASETS.TEST", "('to_data',)", "SEED", "1",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path / "out"),
        *([] if flags else extra),
    ]  # fmt: skip
    if WHOLE:
        status, out, err = run("train_net.py", args, tmp_path / "cache")
    else:
        status = main(args)
        out, err = capsys.readouterr()
    assert status == 0, err[-3000:]
    assert "checkpoint: " in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[0])
    losses = [value for key, value in metrics.items() if "loss" in key]
    assert len(losses) > 2 and all(math.isfinite(value) for value in losses)
