"""VOC's AP50 equals Detectron2's voc_eval and a direct count, also with several processes."""

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.structures import Boxes, Instances

from rambo_det.data import register_datasets
from rambo_det.evaluation.voc import VOCDetectionEvaluator, has_voc_annotations

from .forked import in_processes
from .models import EXTRA, write_voc

pytestmark = pytest.mark.usefixtures("catalogs")

CLASSES = ["cat", "dog", "emu"]
SIZE = (200, 150)


def random_folder(root, seed):
    """Writes 10 images; returns (image, class, score, box) of detections, near objects or not."""
    rng = np.random.default_rng(seed)
    images, detections = {f"im{index}": [] for index in range(10)}, []

    def random_box():
        x, y = rng.integers(1, 150), rng.integers(1, 100)
        return int(rng.integers(3)), np.array([x, y, x + rng.integers(10, 50), y + 30])

    for stem, objects in images.items():
        for _ in range(rng.integers(0, 6)):
            label, box = random_box()
            objects.append((CLASSES[label], tuple(box.tolist()), int(rng.random() < 0.2)))
            for _ in range(rng.integers(0, 3)):
                near = box - (1, 1, 0, 0) + rng.normal(0, 3, 4)
                detections.append((stem, label, float(rng.random()), near.tolist()))
        for _ in range(rng.integers(0, 4)):
            label, box = random_box()
            detections.append((stem, label, float(rng.random()), box.tolist()))
    write_voc(root, "val", images, SIZE, EXTRA)
    return detections


def evaluate(name, detections):
    evaluator = VOCDetectionEvaluator(name)
    for stem in dict.fromkeys(detection[0] for detection in detections):
        _, labels, scores, boxes = zip(*(d for d in detections if d[0] == stem), strict=True)
        found = Instances(SIZE[::-1])
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(labels)
        evaluator.process([{"image_id": stem}], [{"instances": found}])
    return evaluator.evaluate().get("voc", {})


def upstream(root, detections, label, use_07):
    """Returns the AP of voc_eval on files of full precision; Detectron2's evaluator rounds."""
    lines = []
    for stem, _, score, box in (d for d in detections if d[1] == label):
        numbers = np.array([score, *box], dtype=np.float32).astype(float) + (0, 1, 1, 0, 0)
        lines.append(" ".join([stem, *map(repr, numbers.tolist())]))
    (root / f"{CLASSES[label]}.txt").write_text("\n".join(lines))
    template, names = str(root / "Annotations" / "{}.xml"), root / "ImageSets" / "Main" / "val.txt"
    found = voc_eval(
        str(root / "{}.txt"), template, str(names), CLASSES[label], use_07_metric=use_07
    )
    return 100 * float(found[2])


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(5))
def test_equals_upstreams_function_where_no_scores_are_tied(tmp_path, seed, year):
    detections = random_folder(tmp_path, seed)
    register_pascal_voc("theirs", str(tmp_path), "val", year, CLASSES)
    result = evaluate("theirs", detections)
    expected = [upstream(tmp_path, detections, label, year == 2007) for label in range(3)]
    assert [result[f"AP50-{name}"] for name in CLASSES] == pytest.approx(expected, abs=1e-9)
    assert result["AP50"] == pytest.approx(np.mean(expected))
    assert 10 < result["AP50"] < 90
    register_datasets(voc=[("own", tmp_path, "val")], classes=CLASSES)
    assert (evaluate("own", detections) == result) == (year == 2012)
    MetadataCatalog.get("no_voc").set(thing_classes=CLASSES)
    assert has_voc_annotations("own") and not has_voc_annotations("no_voc")


def count(scores, correct):
    """Returns AP by its definition: from recall and precision at every distinct threshold."""
    chosen = [correct[scores >= threshold] for threshold in np.unique(scores)]
    curve = [(kept.sum() / len(scores), kept.mean()) for kept in chosen]
    recalls = np.unique([0.0, *(recall for recall, _ in curve)])
    best = [max(p for r, p in curve if r >= recall) for recall in recalls[1:]]
    return 100 * float(np.diff(recalls) @ np.array(best))


@pytest.mark.parametrize("levels", [1, 3, 10, 2**20])
def test_ap_by_counting_at_every_threshold(tmp_path, levels):
    """AP is right for any order of equal scores, and for scores within 0.001 of each other."""
    rng = np.random.default_rng(levels)
    # Other tools write this: a space in a name, fractions of px, no <pose> and <truncated>.
    stems = [f"my image{number}" for number in range(30)]
    write_voc(tmp_path, "val", {stem: [("cat", (11.5, 11, 30, 30.5), 0)] for stem in stems}, SIZE)
    register_datasets(voc=[("own", tmp_path, "val")])
    for _ in range(5):
        scores, correct = rng.integers(0, levels, 30) / levels, rng.random(30) < 0.4
        if levels > 10:
            scores = 0.5 + scores / 1000
        places = np.where(correct[:, None], [10.5, 10, 30, 30.5], [100.0, 100, 120, 120])
        detections = list(zip(stems, [0] * 30, scores.tolist(), places.tolist(), strict=True))
        for order in (range(30), rng.permutation(30)):
            result = evaluate("own", [detections[k] for k in order])
            assert result["AP50"] == pytest.approx(count(scores, correct))


HIT, HARD = [10.0, 10, 30, 30], [60.0, 60, 90, 90]


@pytest.mark.parametrize(
    ("ap", "detections"),
    [
        # A detection on a difficult object is neither true nor false.
        (100, [("a", 0, 0.95, HARD), ("a", 0, 0.94, HARD), ("a", 0, 0.9, HIT)]),
        # The detection with the higher score takes the object, even if its overlap is smaller.
        (100, [("a", 0, 0.8, HIT), ("a", 0, 0.9, [10.0, 10, 30, 22])]),
        # IoU of exactly 0.5 is not enough.
        (0, [("a", 0, 0.9, [10.0, 10, 30, 20])]),
        (0, [("a", 1, 0.9, HIT)]),
    ],
)
def test_difficult_doubles_and_a_class_without_objects(tmp_path, ap, detections):
    objects = [("cat", (11, 11, 30, 30), 0), ("cat", (61, 61, 90, 90), 1)]
    write_voc(tmp_path, "val", {"a": objects, "b": []}, SIZE)
    register_datasets(voc=[("own", tmp_path, "val")], classes=CLASSES)
    result = evaluate("own", detections)
    assert np.isnan(result["AP50-dog"]) and np.isnan(result["AP50-emu"])
    assert result["AP50"] == result["AP50-cat"] == ap


def _check(rank, world, root, detections):
    register_pascal_voc("theirs", str(root), "val", 2012, CLASSES)
    result = evaluate("theirs", [d for d in detections if int(d[0][2:]) % 2 == rank])
    assert bool(result) == (rank == 0)
    if rank == 0:
        np.savetxt(root / "result.txt", list(result.values()))


def test_two_processes_give_the_result_of_one(tmp_path):
    detections = random_folder(tmp_path, 4)
    in_processes(2, tmp_path, _check, tmp_path, detections)
    register_datasets(voc=[("own", tmp_path, "val")], classes=CLASSES)
    single = list(evaluate("own", detections).values())
    assert np.loadtxt(tmp_path / "result.txt").tolist() == pytest.approx(single)
