"""Annotations and detections in COCO format, without images, for tests of rankings."""

import numpy as np
from pycocotools.coco import COCO


def truth_of(boxes, names=("a", "b", "c")):
    """Returns a COCO index of boxes in 12 images: (image, category, box as XYWH, is crowd)."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "width": 96, "height": 96} for i in range(12)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": number, "bbox": box,
             "area": box[2] * box[3], "iscrowd": crowd}
            for i, (image, number, box, crowd) in enumerate(boxes, 1)
        ],
    }  # fmt: skip
    truth.createIndex()
    return truth


def result(image, number, box, score):
    return {"image_id": image, "category_id": number, "bbox": box, "score": score}


def random_data(seed):
    """Returns random boxes of three classes in twelve images, and detections near the boxes."""
    rng = np.random.default_rng(seed)
    boxes, results = [], []
    for image in range(12):
        for _ in range(rng.integers(0, 6)):
            number, box = int(rng.integers(1, 4)), [*rng.uniform(0, 60, 2), *rng.uniform(9, 30, 2)]
            boxes.append((image, number, box, int(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 4)):
                near = (np.array(box) + rng.normal(0, 4, 4)).clip(1).tolist()
                label = number if rng.random() < 0.8 else int(rng.integers(1, 4))
                score = round(float(rng.random()), 1)  # many are equal
                results.append(result(image, label, near, score))
    return truth_of(boxes), results
