"""The ranking of a detector: its numbers, against pycocotools and brute force, and the tool."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import visualize_ranking
from detectron2.data import DatasetCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rambo_det.cli import calibrate
from rambo_det.evaluation.pictures import FALSE_COLOR, TRUE_COLOR, choose_crops, draw_class
from rambo_det.evaluation.ranking import RankedClass, average_precision, best_f1, rank_detections

from .command_line import call, refusal, refused, registered
from .detections import random_data, result, truth_of


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_ap_is_cocos(seed, iou):
    truth, results = random_data(seed)
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    place = list(evaluation.params.iouThrs.round(2)).index(iou)
    want = evaluation.eval["precision"][place, :, :, 0, -1].mean(0)
    ranked = rank_detections(truth, results, iou)
    assert [k.name for k in ranked] == ["a", "b", "c"]
    np.testing.assert_allclose([k.ap for k in ranked], want, atol=1e-12)
    for k in ranked:
        assert (np.diff(k.scores) <= 0).all() and k.ap <= k.ap_ideal <= 1
        assert all(bool(reason) != true for reason, true in zip(k.reasons, k.true, strict=True))
        assert (k.iou[k.true] >= iou).all()


def ranked_class(true, objects):
    number = len(true)
    scores = np.linspace(0.9, 0.1, number)
    boxes = np.tile([10.0, 20.0, 30.0, 40.0], (number, 1))
    reasons = np.array(["" if t else "background" for t in true], dtype=object)
    iou = np.where(true, 0.8, 0.0)
    ids = np.arange(number)
    return RankedClass("a", objects, scores, np.array(true, dtype=bool), iou, ids, boxes, reasons)


@pytest.mark.parametrize("seed", range(20))
def test_numbers_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    true = rng.random(rng.integers(1, 30)) < 0.5
    objects = int(true.sum() + rng.integers(1, 4))
    k = ranked_class(true, objects)

    def ap(order):  # not interpolated
        return sum(sum(order[: i + 1]) / (i + 1) for i, t in enumerate(order) if t) / objects

    whole = ap(list(true))
    costs = [0 if t else ap([*true[:i], *true[i + 1 :]]) - whole for i, t in enumerate(true)]
    np.testing.assert_allclose(k.ap_costs(), costs, atol=1e-12)
    assert k.outranked == sum(t and not all(true[:i]) for i, t in enumerate(true))
    assert k.ap_ideal == average_precision([True] * int(true.sum()), objects)
    threshold = best_f1(k.scores, k.true, objects)

    def f1(cut):
        kept = true[k.scores >= cut]
        return 2 * kept.sum() / (len(kept) + objects)

    assert f1(threshold) == max(f1(score) for score in k.scores)


def test_edges():
    assert np.isnan(average_precision(np.zeros(3, dtype=bool), 0))
    assert average_precision(np.zeros(0, dtype=bool), 3) == 0
    assert best_f1(np.zeros(0), np.zeros(0, dtype=bool), 2) is None
    assert best_f1(np.ones(3), np.zeros(3, dtype=bool), 2) is None
    # Either all detections with equal scores are above a threshold, or none is.
    scores = np.array([0.9, 0.5, 0.5])
    assert best_f1(scores, np.array([True, False, False]), 1) == 0.9
    assert best_f1(scores, np.array([False, True, True]), 2) == 0.5
    assert choose_crops(ranked_class([True, True], 2)) == [0, 1]
    assert choose_crops(ranked_class([True, False, True, False], 2)) == [0, 1, 2, 3]


def test_reasons():
    truth = truth_of([(1, 1, [10, 10, 20, 20], 0), (1, 2, [60, 60, 20, 20], 0)], ("cat", "dog"))
    found = [[10, 10, 20, 19], [10, 10, 20, 20], [60, 60, 20, 20], [66, 66, 20, 20],
             [17, 17, 20, 20], [40, 10, 9, 9]]  # fmt: skip
    results = [result(1, 1, box, 0.9 - 0.1 * i) for i, box in enumerate(found)]
    cat, dog = rank_detections(truth, results)
    want = ["", "found twice", "wrong: dog", "near: dog", "badly placed", "background"]
    assert cat.reasons.tolist() == want and cat.true.tolist() == [True] + 5 * [False]
    assert cat.iou.round(2).tolist() == [0.95, 1.0, 0, 0, 0.27, 0]
    assert (dog.num_objects, len(dog.true), dog.ap, dog.outranked) == (1, 0, 0.0, 0)
    crowd = truth_of([(1, 1, [10, 10, 20, 20], 0), (1, 2, [60, 60, 20, 20], 1)], ("cat", "dog"))
    cat, _ = rank_detections(crowd, [result(1, 1, [60, 60, 20, 20], 0.5)])
    assert cat.reasons.tolist() == ["background"], "a crowd is no object to be confused with"
    crowd = truth_of([(1, 1, [70, 70, 9, 9], 0), (1, 1, [0, 0, 50, 60], 1)])
    cat, *_ = rank_detections(crowd, [result(1, 1, [40, 0, 25, 50], 0.5)])  # 40 % in the crowd
    assert (cat.reasons.tolist(), cat.iou.tolist()) == (["background"], [0])


def test_up_to_100_detections_of_an_image_count():
    results = [result(1, 1, [60, 60, 9, 9], 1 - i / 1000) for i in range(99)]
    results.append(result(1, 1, [5, 5, 20, 20], 0.5))
    (ranked,) = rank_detections(truth_of([(1, 1, [5, 5, 20, 20], 0)], "a"), results)
    assert len(ranked.true) == 100 and ranked.true[-1]


def test_the_picture_shows_true_and_false():
    """The frames of the crops have both colours. A class without false detections works too."""

    def look(image_id):
        return np.full((96, 96, 3), 60, dtype=np.uint8), np.array([[12, 20, 30, 40]])

    def pixels(picture, color):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        return int((np.abs(picture[200:].astype(int) - rgb).max(axis=2) < 4).sum())

    mixed = draw_class(ranked_class([False, True] * 5, 6), 0.5, look)
    perfect = draw_class(ranked_class([True] * 5, 6), 0.5, look)
    assert mixed.shape == perfect.shape == (350, 1500, 3) and mixed.dtype == np.uint8
    assert pixels(mixed, TRUE_COLOR) > 1000 and pixels(mixed, FALSE_COLOR) > 1000
    assert pixels(perfect, TRUE_COLOR) > 1000 and pixels(perfect, FALSE_COLOR) == 0
    none = draw_class(ranked_class([], 2), 0.5, look)
    assert pixels(none, TRUE_COLOR) == pixels(none, FALSE_COLOR) == 0
    wrong = draw_class(replace(ranked_class([False], 2), name="$$ x_"), 0.5, look)  # not TeX
    assert pixels(wrong, TRUE_COLOR) == 0 and pixels(wrong, FALSE_COLOR) > 100


def test_each_class_has_a_picture_of_its_own(tmp_path):
    names = ["é", "è", "ranking", "a/b", "a b"]
    ranked = [replace(ranked_class([True, False], 2), name=name) for name in names]
    image = np.zeros((96, 96, 3), dtype=np.uint8)
    data = SimpleNamespace(name="own", look=lambda *_: (image, np.zeros((0, 4))))
    visualize_ranking.write(ranked, data, visualize_ranking.parse_args([]), tmp_path, "run")
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"é.png", "è.png", "ranking-2.png", "a_b.png", "a_b-2.png", "ranking.png"}
    assert cv2.imread(str(tmp_path / "ranking.png")).shape[0] == 350 * len(names)
    with refusal("own has no objects"):
        visualize_ranking.write([], data, visualize_ranking.parse_args([]), tmp_path, "run")


def test_the_tool_on_a_run(finished_run, catalogs, capsys):
    """The tool needs only the run's folder, and its numbers equal those of the run's evaluation."""
    run, out, main = finished_run, finished_run / "out" / "ranking", visualize_ranking.main
    assert call(main, "--run", run / "out") == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((out / "ranking.json").read_text())["classes"]}
    stored = json.loads((run / "out/inference/coco_instances_results.json").read_text())
    file = json.loads((run / "out" / "data.json").read_text())["annotations"]["own_val"]
    truth = COCO(file)
    for k in rank_detections(truth, stored):
        if k.num_objects:
            row = rows[k.name]
            assert row["ap"] == pytest.approx(100 * k.ap, abs=0.01) and row["found"] == k.true.sum()
            lost = row["ap"] + row["lost_to_order"] + row["lost_to_not_found"]
            assert lost == pytest.approx(100) and f"| {k.name} " in printed
    page = (out / "index.html").read_text()
    assert not re.search(r"(src|href)=.?(https?:|/|\./)", page), "the page is not self-contained"
    assert page.count("data:image/png;base64,") == len(rows) - 1
    poster = cv2.imread(str(out / "ranking.png"))
    assert poster.shape == (350 * (len(rows) - 1), 1500, 3)
    before = {p: p.read_bytes() for p in out.iterdir()}
    assert "--overwrite" in refused(capsys, main, "--run", run / "out")
    assert {p: p.read_bytes() for p in out.iterdir()} == before


def test_a_detector_without_data_json(finished_run, tmp_path, capsys, catalogs):
    """Detectron2's own trainer writes none. The class names come from --classes."""
    weights, config = tmp_path / "model_final.pth", tmp_path / "config.yaml"
    for file in (weights, config):
        shutil.copy(finished_run / "out" / file.name, file)
    words = ["--config", config, "--weights", weights, *registered(finished_run)[0]]
    words += ["--output", tmp_path / "ranking"]
    error = refused(capsys, visualize_ranking.main, *words)
    assert "names of the detector are unknown: name them with --classes, in the order" in error
    names = ["--classes", "circle,square,triangle,star"]
    assert call(visualize_ranking.main, *words, *names) == 0
    assert "| circle " in capsys.readouterr().out
    assert call(calibrate.main, *words[:-1], tmp_path / "calibrated.pth", *names) == 0
    assert list(json.loads((tmp_path / "thresholds.json").read_text())["classes"])[0] == "circle"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--register-coco", "x", "x.json", "x"], "registered datasets (x) is used: add --dataset"),
        (["--dataset", "nowhere"], "--dataset: dataset nowhere is not registered"),
        (["--dataset", "boxless"], "has no COCO annotations: register it with --register-coco, "),
        (["--split", "0.2"], "--split goes with --register-coco, --register-voc or"),
        (["--iou", "0"], "--iou must be above 0"),
        (["--shown", "0"], "--shown must be >= 1"),
        (["--dataset", "coco_2017_val"], "coco_2017_val needs"),
        (["--output", "{tmp}/mine"], "mine is not empty: use --overwrite"),
        (["--output", "{tmp}/mine/afile"], "--output {tmp}/mine/afile is not a folder"),
        (["--dataset", "rambo_shapes_val", "--opts", "MODEL.X", "1"], "MODEL.X"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, finished_run, tmp_path, capsys, catalogs):
    DatasetCatalog.register("boxless", list)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "afile").touch()
    arguments = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    words = ["--run", finished_run / "out", "--output", tmp_path / "ranking", *arguments]
    assert message.replace("{tmp}", str(tmp_path)) in refused(
        capsys, visualize_ranking.main, *words
    )
