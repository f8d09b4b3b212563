"""VOC's AP50 against Detectron2's voc_eval, against counting by hand, and over processes."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.structures import Boxes, Instances

from rambo_det.data import register_datasets
from rambo_det.evaluation.voc import VOCDetectionEvaluator, has_voc_annotations

from .voc_folder import EXTRA, write_voc

pytestmark = pytest.mark.usefixtures("catalogs")

CLASSES = ["cat", "dog", "emu"]
SIZE = (200, 150)
Detection = tuple[str, int, float, list[float]]  # image, class, score, x1 y1 x2 y2 from 0


def _random_box(rng: np.random.Generator) -> np.ndarray:
    x, y = rng.integers(1, 150), rng.integers(1, 100)
    return np.array([x, y, x + rng.integers(10, 50), y + rng.integers(10, 50)])


def _random_folder(root: Path, seed: int) -> list[Detection]:
    """Write a folder of 10 images; returns detections near its objects, twice, and elsewhere."""
    rng = np.random.default_rng(seed)
    images: dict[str, list[Any]] = {f"im{index}": [] for index in range(10)}
    detections: list[Detection] = []
    for stem, objects in images.items():
        for _ in range(rng.integers(0, 6)):
            label, box = int(rng.integers(3)), _random_box(rng)
            objects.append((CLASSES[label], tuple(box.tolist()), int(rng.random() < 0.2)))
            for _ in range(rng.integers(0, 3)):
                near = box - (1, 1, 0, 0) + rng.normal(0, 3, 4)
                detections.append((stem, label, float(rng.random()), near.tolist()))
        for _ in range(rng.integers(0, 4)):
            label, box = int(rng.integers(3)), _random_box(rng)
            detections.append((stem, label, float(rng.random()), box.tolist()))
    write_voc(root, "val", images, SIZE, EXTRA)
    return detections


def _evaluate(evaluator: VOCDetectionEvaluator, detections: list[Detection]) -> dict[str, float]:
    evaluator.reset()
    for stem in dict.fromkeys(detection[0] for detection in detections):
        mine = [detection for detection in detections if detection[0] == stem]
        found = Instances(SIZE[::-1])
        found.pred_boxes = Boxes(torch.tensor([d[3] for d in mine], dtype=torch.float32))
        found.scores = torch.tensor([d[2] for d in mine], dtype=torch.float32)
        found.pred_classes = torch.tensor([d[1] for d in mine])
        evaluator.process([{"image_id": stem}], [{"instances": found}])
    return evaluator.evaluate().get("voc", {})


def _upstream(root: Path, detections: list[Detection], label: int, use_07: bool) -> float:
    """Detectron2's function on files of full precision (its evaluator rounds)."""
    lines = []
    for stem, _, score, (x1, y1, x2, y2) in (d for d in detections if d[1] == label):
        numbers = np.array([score, x1, y1, x2, y2], dtype=np.float32).astype(float)
        numbers[1:3] += 1
        lines.append(" ".join([stem, *map(repr, numbers.tolist())]))
    (root / f"{CLASSES[label]}.txt").write_text("\n".join(lines))
    template, names = str(root / "Annotations" / "{}.xml"), root / "ImageSets" / "Main" / "val.txt"
    _, _, ap = voc_eval(
        str(root / "{}.txt"), template, str(names), CLASSES[label], use_07_metric=use_07
    )
    return 100 * float(ap)


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(5))
def test_equals_upstreams_function_where_no_scores_are_tied(
    tmp_path: Path, seed: int, year: int
) -> None:
    detections = _random_folder(tmp_path, seed)
    register_pascal_voc("theirs", str(tmp_path), "val", year, CLASSES)
    result = _evaluate(VOCDetectionEvaluator("theirs"), detections)
    expected = [_upstream(tmp_path, detections, label, year == 2007) for label in range(3)]
    assert [result[f"AP50-{name}"] for name in CLASSES] == pytest.approx(expected, abs=1e-9)
    assert result["AP50"] == pytest.approx(np.mean(expected))
    assert 10 < result["AP50"] < 90
    register_datasets(voc=[("own", tmp_path, "val")], classes=CLASSES)
    own = _evaluate(VOCDetectionEvaluator("own"), detections)
    assert (own == result) == (year == 2012)


def test_which_sets_it_can_evaluate(tmp_path: Path) -> None:
    _random_folder(tmp_path, 0)
    register_datasets(voc=[("own", tmp_path, "val")], classes=CLASSES)
    MetadataCatalog.get("no_voc").set(thing_classes=CLASSES)
    assert has_voc_annotations("own") and not has_voc_annotations("no_voc")


def _count(scores: np.ndarray, correct: np.ndarray, positives: int) -> float:
    """AP from its definition: recall and precision at every threshold that can be told apart."""
    curve = []
    for threshold in sorted(set(scores.tolist())):
        chosen = correct[scores >= threshold]
        curve.append((chosen.sum() / positives, chosen.mean()))
    area, reached = 0.0, 0.0
    for recall in sorted({recall for recall, _ in curve}):
        area += (recall - reached) * max(p for r, p in curve if r >= recall)
        reached = recall
    return area


@pytest.mark.parametrize("levels", [1, 3, 10, 2**20])
def test_ap_by_counting_at_every_threshold(tmp_path: Path, levels: int) -> None:
    """Whatever the order of equal scores, and with scores that differ in the sixth decimal."""
    rng = np.random.default_rng(levels)
    # What other tools write: a space in the name, parts of pixels, no <pose> and <truncated>.
    stems = [f"my image{number}" for number in range(30)]
    box = (11.5, 11, 30, 30.5)
    write_voc(tmp_path, "val", {stem: [("cat", box, 0)] for stem in stems}, SIZE)
    register_datasets(voc=[("own", tmp_path, "val")])
    evaluator = VOCDetectionEvaluator("own")
    for _ in range(5):
        scores, correct = rng.integers(0, levels, 30) / levels, rng.random(30) < 0.4
        if levels > 10:
            scores = 0.5 + scores / 1000
        places = np.where(correct[:, None], [10.5, 10, 30, 30.5], [100.0, 100, 120, 120])
        detections = [
            (stem, 0, float(score), place.tolist())
            for stem, score, place in zip(stems, scores, places, strict=True)
        ]
        expected = 100 * _count(scores, correct, 30)
        for order in (range(30), rng.permutation(30)):
            result = _evaluate(evaluator, [detections[k] for k in order])
            assert result["AP50"] == pytest.approx(expected)


def test_difficult_doubles_and_a_class_without_objects(tmp_path: Path) -> None:
    objects = [("cat", (11, 11, 30, 30), 0), ("cat", (61, 61, 90, 90), 1)]
    write_voc(tmp_path, "val", {"a": objects, "b": []}, SIZE)
    register_datasets(voc=[("own", tmp_path, "val")], classes=CLASSES)
    evaluator = VOCDetectionEvaluator("own")
    hit, hard, off = [10.0, 10, 30, 30], [60.0, 60, 90, 90], [100.0, 100, 120, 120]

    def ap(*detections: Detection) -> float:
        result = _evaluate(evaluator, list(detections))
        assert np.isnan(result["AP50-dog"]) and np.isnan(result["AP50-emu"])
        assert result["AP50"] == result["AP50-cat"]
        return result["AP50"]

    assert ap(("a", 0, 0.9, hit)) == 100
    # what lies on a difficult object is neither right nor wrong
    assert ap(("a", 0, 0.95, hard), ("a", 0, 0.94, hard), ("a", 0, 0.9, hit)) == 100
    assert ap(("a", 0, 0.95, off), ("a", 0, 0.9, hit)) == 50
    assert ap(("b", 0, 0.95, hit), ("a", 0, 0.9, hit)) == 50
    # the second on one object is wrong, but comes after recall 1
    assert ap(("a", 0, 0.9, hit), ("a", 0, 0.8, hit)) == 100
    # the better score takes the object, even where it overlaps less
    assert ap(("a", 0, 0.8, hit), ("a", 0, 0.9, [10.0, 10, 30, 22])) == 100
    # IoU of exactly 0.5 is not enough
    assert ap(("a", 0, 0.9, [10.0, 10, 30, 20])) == 0
    assert ap(("a", 1, 0.9, hit)) == 0


def _run_process(rank: int, port: int, root: str, detections: list[Detection]) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    register_pascal_voc("theirs", root, "val", 2012, CLASSES)
    evaluator = VOCDetectionEvaluator("theirs")
    result = _evaluate(evaluator, [d for d in detections if int(d[0][2:]) % 2 == rank])
    assert bool(result) == (rank == 0)
    if rank == 0:
        np.savetxt(Path(root) / "result.txt", list(result.values()))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    detections = _random_folder(tmp_path, 4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (port, str(tmp_path), detections)
    # Forked, because starting Python anew takes most of a minute on a busy machine.
    torch.multiprocessing.start_processes(_run_process, arguments, 2, start_method="fork")
    register_datasets(voc=[("own", tmp_path, "val")], classes=CLASSES)
    single = list(_evaluate(VOCDetectionEvaluator("own"), detections).values())
    assert np.loadtxt(tmp_path / "result.txt").tolist() == pytest.approx(single)


def test_real_blood_cells_score_100_on_their_own_truth(real_data: Path) -> None:
    register_datasets(voc=[("bccd_val", real_data / "bccd", "val")])
    evaluator = VOCDetectionEvaluator("bccd_val")
    names = MetadataCatalog.get("bccd_val").thing_classes
    detections: list[Detection] = []
    for record in DatasetCatalog.get("bccd_val"):
        for index, item in enumerate(record["annotations"]):
            x, y, width, height = item["bbox"]
            box = [x, y, x + width, y + height]
            detections.append((record["image_id"], item["category_id"], 1 - index / 100, box))
    result = _evaluate(evaluator, detections)
    assert set(result) == {"AP50", *(f"AP50-{name}" for name in names)}
    assert list(result.values()) == pytest.approx([100.0] * 4)
