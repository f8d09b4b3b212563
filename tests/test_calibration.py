"""Calibration, which changes the last layer of any detector so that scores are probabilities."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.modeling import build_model
from pycocotools.coco import COCO

from rambo_det.cli.calibrate import main
from rambo_det.cli.predict import main as predict
from rambo_det.cli.train import main as train
from rambo_det.data.drawing import CLASSES
from rambo_det.engine.calibrated import calibrate_final, labelled_images, read_thresholds
from rambo_det.engine.checkpointer import AtomicCheckpointer
from rambo_det.engine.detector import Detector
from rambo_det.engine.saved_model import find_model
from rambo_det.errors import InputError
from rambo_det.evaluation import calibration
from rambo_det.evaluation.calibration import (
    LabelledDetections,
    calibration_error,
    fit_rescaling,
    identity,
    label_detections,
)
from rambo_det.modeling.classifier import Classifier, Rescaling

from .architectures import config
from .command_line import call, refused, registered
from .forked import in_processes, run_together
from .models import CONFIGS, THIN, small_cfg, training_inputs, weights_of, write_coco
from .strategies import same

NUM_CLASSES = 4
RESCALING = Rescaling(
    torch.tensor(1.7).double(), torch.tensor([0.5, -1.0, 0.2, 2.0], dtype=torch.float64)
)
_SCORES = {"sigmoid": "logits", "softmax": "log_odds"}


def build(kind):
    torch.manual_seed(2)
    if kind == "fcos":
        cfg = LazyConfig.load(str(CONFIGS / "lazy/quickstart/fcos_rambo.py"))
        model = instantiate(cfg.model)
    else:
        name, _, scores = kind.partition(" ")
        keys = ("MODEL.RAMBO.SCORE", _SCORES[scores]) if scores else ()
        model = build_model(config(name, False, *keys))
    for name, parameter in model.named_parameters():  # a new model's scores hardly differ
        if "cls_score" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def image():
    return {"image": training_inputs(1)[0]["image"], "height": 96, "width": 96, "image_id": 1}


KINDS = ["faster_rcnn", "faster_rcnn sigmoid", "cascade", "cascade sigmoid", "c4"]
KINDS += ["retinanet", "retinanet softmax", "fcos"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_foreseen_is_what_the_new_weights_score(kind, image):
    model = build(kind)
    before = {name: value.shape for name, value in model.state_dict().items()}
    classifier = Classifier(model)
    found, outputs = classifier.detect(image)
    assert len(found) > 20 and len(found.pred_classes.unique()) > 1
    same = classifier.scores(outputs, found.pred_classes, identity(NUM_CLASSES))
    torch.testing.assert_close(same.float(), found.scores, rtol=1e-4, atol=1e-6)

    classifier.apply(RESCALING)
    again, _ = classifier.detect(image)
    foreseen = classifier.scores(outputs, found.pred_classes, RESCALING)
    assert {name: value.shape for name, value in model.state_dict().items()} == before
    # NMS may keep other detections now. Compares those of both passes, by box and class.
    old, predicted, new = (
        {(*box, label): score for box, label, score in
         zip(x.pred_boxes.tensor.tolist(), x.pred_classes.tolist(), scores.tolist(), strict=True)}
        for x, scores in ((found, found.scores), (found, foreseen), (again, again.scores))
    )  # fmt: skip
    both = list(new.keys() & predicted.keys())
    old, predicted, new = (np.array([x[key] for key in both]) for x in (old, predicted, new))
    assert len(both) > 10 and np.abs(new - old).max() > 0.05
    np.testing.assert_allclose(new, predicted, rtol=1e-3, atol=1e-5)


def test_scores_near_0_stay_apart(image):
    model = build("retinanet")
    torch.nn.init.constant_(model.head.cls_score.bias, -20.0)
    found, outputs = Classifier(model).detect(image)
    assert found.scores.max() < 1e-6
    assert len(outputs.unique()) == len(found.scores.unique()) > 20


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_a_class_of_low_scores_is_lifted(kind):
    """Labels are drawn with the probabilities of a known rescaling, which the fit recovers."""
    classifier = Classifier(build(kind))
    generator = torch.Generator().manual_seed(0)
    number, width = 40_000, NUM_CLASSES + 1 if classifier.is_softmax else 1
    shape = (number, 1, width) if classifier.is_softmax else (number, width)
    outputs = 2 * torch.randn(shape, generator=generator) - 1
    classes = torch.randint(NUM_CLASSES, (number,), generator=generator)
    scale = RESCALING
    if classifier.is_softmax:  # here all classes share one shift
        scale = Rescaling(RESCALING.factor, torch.full((NUM_CLASSES,), -1.2).double())
    true = classifier.scores(outputs, classes, scale)
    right = torch.rand(number, generator=generator) < true
    labelled = LabelledDetections(outputs, classes, right, torch.full((NUM_CLASSES,), 1000))
    found = fit_rescaling(classifier, labelled)
    assert float(found.factor) == pytest.approx(1.7, rel=0.05)
    torch.testing.assert_close(found.shift, scale.shift, rtol=0, atol=0.12)
    scores = [classifier.scores(outputs, classes, r) for r in (identity(NUM_CLASSES), found)]
    errors = [calibration_error(s.numpy(), right.numpy()) for s in scores]
    assert errors[0] > 2 and errors[1] < 1


def test_a_class_of_few_detections_takes_over_what_fits_all():
    classifier = Classifier(build("retinanet"))
    generator = torch.Generator().manual_seed(1)
    outputs = 2 * torch.randn(5000, 1, generator=generator)
    classes = torch.arange(5000) % (NUM_CLASSES - 1)
    classes[0] = NUM_CLASSES - 1  # the only detection of this class, a wrong one
    right = torch.rand(5000, generator=generator) < (outputs[:, 0] + 1).sigmoid()
    right[0] = False
    labelled = LabelledDetections(outputs, classes, right, torch.ones(4).long())
    found = fit_rescaling(classifier, labelled)
    torch.testing.assert_close(found.shift, torch.ones(4).double(), rtol=0, atol=0.3)


@pytest.mark.parametrize("all_right", [False, True])
def test_scores_that_tell_all_are_rescaled_within_bounds(all_right):
    classifier = Classifier(build("retinanet"))
    outputs = torch.linspace(-2, 2, 100)[:, None]
    right = outputs[:, 0] > (-3 if all_right else 0)
    labelled = LabelledDetections(outputs, torch.zeros(100).long(), right, torch.ones(4).long())
    found = fit_rescaling(classifier, labelled)
    assert 0 < float(found.factor) < 1e4 and found.shift.isfinite().all()


def test_a_threshold_keeps_scores_of_1(monkeypatch):
    """Detectron2 drops a score that equals the threshold. The outputs tell right from wrong."""
    outputs = torch.cat([torch.full((40, 1), 90.0), torch.full((20, 1), -5.0)])
    right, zeros = outputs[:, 0] > 0, torch.zeros(60).long()
    labelled = LabelledDetections(outputs, zeros, right, torch.tensor([40, 1, 1, 1]))
    monkeypatch.setattr(calibration, "label_detections", lambda *_: labelled)
    found = calibration.calibrate(build("retinanet"), [], [])
    assert found.scores[right.numpy()].min() == 1 and found.threshold < 1
    assert max(found.thresholds) < 1


def test_no_factor_is_beyond_all_bounds():
    """The outputs hardly differ. Without a bound, the fit's search for a step ended in NaN."""
    outputs, ones = torch.linspace(-1e-6, 1e-6, 100_000)[:, None], torch.ones(4).long()
    labelled = LabelledDetections(outputs, torch.zeros(100_000).long(), outputs[:, 0] > 3e-7, ones)
    assert 1 < float(fit_rescaling(Classifier(build("retinanet")), labelled).factor) < 1e6


def test_detections_are_labelled_as_coco_matches_them(tmp_path, image):
    """Five detections become ground truth. Only the first detection of each object is right."""
    model = build("retinanet")
    found, _ = Classifier(model).detect(image)
    file, _ = write_coco(tmp_path, 1)
    truth = COCO(file)
    labelled = label_detections(model, [[image]], truth)
    assert labelled.objects.sum() == len(truth.anns) and len(labelled.right) > len(found)
    kept = found[:5]
    for number, (box, label) in enumerate(
        zip(kept.pred_boxes.tensor.tolist(), kept.pred_classes.tolist(), strict=True)
    ):
        x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
        truth.dataset["annotations"].append(
            {"id": 1000 + number, "image_id": 1, "category_id": label + 1, "bbox": [x, y, w, h],
             "area": w * h, "iscrowd": int(number == 4)}
        )  # fmt: skip
    truth.createIndex()
    more = label_detections(model, [[image]], truth)
    assert more.objects.sum() == labelled.objects.sum() + 4  # a crowd does not count
    assert more.right.sum() > labelled.right.sum()
    assert len(more.right) < len(labelled.right)  # nor do the detections in the crowd


def test_an_image_without_proposals(image):
    for kind in ("faster_rcnn", "cascade"):
        model = build(kind)
        model.proposal_generator.min_box_size = 1e9
        found, outputs = Classifier(model).detect(image)
        assert len(found) == 0 and outputs.shape[0] == 0 and outputs.shape[2] == NUM_CLASSES + 1


@pytest.mark.parametrize("weights", ["model_final.pth", "model_calibrated.pth"])
def test_new_weights_take_away_the_thresholds_of_the_old_ones_alone(weights, tmp_path):
    files = [tmp_path / name for name in ("thresholds.json", "reliability.png")]
    files[0].write_text(json.dumps({"weights": weights}, indent=1))
    files[1].touch()
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_final")
    assert [file.exists() for file in files] == [weights != "model_final.pth"] * 2


def _looked_at(rank, world, file, folder):
    register_coco_instances("calibrated_on", {}, file, folder)
    images, _ = labelled_images("calibrated_on", lambda record: record, 3)
    assert [inputs[0]["image_id"] for inputs in images] == [1, 3, 5]


def test_one_of_several_processes_looks_at_all_images(tmp_path):
    in_processes(2, tmp_path, _looked_at, *map(str, write_coco(tmp_path, 5)))


def test_nothing_to_fit_to_is_said(tmp_path, image):
    file, _ = write_coco(tmp_path, 1)
    truth = COCO(file)
    truth.dataset["annotations"] = []
    truth.createIndex()
    with pytest.raises(InputError, match="no ground-truth objects"):
        label_detections(build("retinanet"), [[image]], truth)
    with pytest.raises(InputError, match="Linear cannot be calibrated: only R-CNN"):
        Classifier(torch.nn.Linear(1, 1))


# The commands, on a trained model of a few thousand parameters.


def arguments(finished_run):
    """Returns the config and the data of the finished run, for the command line."""
    return ["--config", finished_run / "out" / "config.yaml", *registered(finished_run)[0]]


@pytest.fixture(scope="module")
def calibrated_run(finished_run, tmp_path_factory):
    """Returns the folder of finished_run's training, repeated and calibrated at its end."""
    out = tmp_path_factory.mktemp("calibrated") / "out"
    command = ["tools/train_net.py", *arguments(finished_run)]
    command += ["RAMBO_TRAIN.CALIBRATE", "train", "OUTPUT_DIR", out]
    cache = {"RAMBO_DET_CACHE": str(out.parent / "cache")}
    run_together(out.parent, [command], [cache])
    return out


@pytest.fixture
def folder(calibrated_run, tmp_path):
    shutil.copytree(calibrated_run, tmp_path / "out")
    return tmp_path / "out"


def test_a_training_ends_with_scores_that_are_probabilities(folder):
    """The trained weights are kept; the calibrated ones differ only in the last layer."""
    raw, final = weights_of(folder / "model_raw.pth"), weights_of(folder / "model_final.pth")
    assert list(raw) == list(final)
    changed = {name for name in raw if not torch.equal(raw[name], final[name])}
    assert changed == {f"roi_heads.box_predictor.cls_score.{x}" for x in ("weight", "bias")}
    thresholds = json.loads((folder / "thresholds.json").read_text())
    before, after = thresholds["calibration error in percent"]
    assert after < 1 < before
    assert list(thresholds["classes"]) == list(CLASSES)
    assert cv2.imread(str(folder / "reliability.png")) is not None


def test_a_calibrated_run_goes_on_from_the_raw_weights(folder, finished_run, catalogs, capsys):
    """At the end of the resumed run, its new weights are calibrated."""
    raw = torch.load(folder / "model_raw.pth", map_location="cpu")
    assert raw["iteration"] == 2 and "trainer" in raw
    command = [*arguments(finished_run), "--resume", "OUTPUT_DIR", folder]
    # A run that has already ended is calibrated again from the same weights.
    final = weights_of(folder / "model_final.pth")
    assert call(train, *command, "RAMBO_TRAIN.CALIBRATE", "train") == 0
    assert same(weights_of(folder / "model_raw.pth"), raw["model"])
    assert "trainer" in torch.load(folder / "model_raw.pth", map_location="cpu")
    assert same(weights_of(folder / "model_final.pth"), final)
    again = [*command, "SOLVER.MAX_ITER", 4, "RAMBO_TRAIN.CALIBRATE", "train"]
    assert call(train, *again) == 0
    assert "Calibrated on own_train" in capsys.readouterr().out
    log = (folder / "log.txt").read_text()
    assert "model_raw.pth" in log and "Starting training from iteration 3" in log
    assert torch.load(folder / "model_raw.pth", map_location="cpu")["iteration"] == 3
    # Without calibration only model_final.pth exists, with the weights as trained.
    assert (folder / "thresholds.json").exists()
    assert call(train, *command, "SOLVER.MAX_ITER", 5) == 0
    assert not (folder / "model_raw.pth").exists() and not (folder / "thresholds.json").exists()
    assert torch.load(folder / "model_final.pth", map_location="cpu")["iteration"] == 4


def test_any_object_of_a_users_hook_may_be_in_a_checkpoint(folder, finished_run, catalogs):
    detector = Detector(find_model(str(folder), None, None))
    content = torch.load(folder / "model_raw.pth", map_location="cpu")
    torch.save({**content, "of_a_hook": Path("notes")}, folder / "model_raw.pth")
    data = (str(finished_run / "val.json"), str(finished_run / "val"))
    register_coco_instances("of_a_hook", {}, *data)
    line = calibrate_final(detector.model, detector.mapper, folder, "of_a_hook")
    assert line.startswith("Calibrated on of_a_hook")


def test_ids_in_another_order_than_the_classes_are_refused(folder, finished_run, catalogs):
    detector = Detector(find_model(str(folder), None, None))
    data = (str(finished_run / "val.json"), str(finished_run / "val"))
    DatasetCatalog.register("turned", lambda: load_coco_json(*data))  # as a user's own loader
    ids = {4 - k: k for k in range(4)}
    metadata = MetadataCatalog.get("turned").set(json_file=data[0], thing_classes=CLASSES[::-1])
    metadata.set(thing_dataset_id_to_contiguous_id=ids)
    before = (folder / "model_final.pth").read_bytes()
    line = calibrate_final(detector.model, detector.mapper, folder, "turned")
    assert "the category ids of turned are not in the order of its classes" in line
    assert (folder / "model_final.pth").read_bytes() == before


def test_evaluation_shows_raw_and_calibrated(folder, finished_run, catalogs, capsys):
    command = [*arguments(finished_run), "--eval-only", "OUTPUT_DIR", folder]
    found = [f"{x}/inference/coco_instances_results.json" for x in (".", "calibrated")]
    before = [(folder / file).read_text() for file in found]
    assert call(train, *command) == 0
    again = [(folder / "evaluated" / file).read_text() for file in found]
    assert again == before and before[0] != before[1]
    out = capsys.readouterr().out
    assert f"checkpoint: {folder / 'model_raw.pth'}, not calibrated" in out
    assert out.index("not calibrated") < out.index(f"checkpoint: {folder / 'model_final.pth'}")


def test_a_config_and_weights_with_data_of_the_command_line(folder, finished_run, catalogs, capsys):
    weights = folder / "model_final.pth"
    words = ["--weights", weights, "--output", folder / "other.pth", "--overwrite"]
    assert call(main, *arguments(finished_run), *words) == 0
    assert "on own_train (used for the fit)" in capsys.readouterr().out
    assert (folder / "other.pth").is_file()


def test_the_command_writes_a_stock_checkpoint_beside_the_weights(folder, catalogs, capsys):
    command = ["--run", folder, "--weights", folder / "model_raw.pth"]
    assert call(main, *command, "--overwrite") == 0
    out = capsys.readouterr().out
    assert "calibration error" in out and "SCORE_THRESH_TEST" in out and "| AP-circle" in out
    assert "| AP of 300 detections an image" in out
    calibrated = folder / "model_calibrated.pth"
    stock = build_model(small_cfg("quickstart/faster_rcnn_ce.yaml", *THIN))
    stock.load_state_dict(weights_of(calibrated))  # strict: the keys and shapes are the same
    # The command overwrites no file, and other weights have no thresholds.
    before = calibrated.read_bytes()
    assert "already exists: use --overwrite" in refused(capsys, main, *command)
    assert calibrated.read_bytes() == before
    assert read_thresholds(str(calibrated), list(CLASSES))
    assert read_thresholds(str(folder / "model_final.pth"), list(CLASSES)) is None


def test_predict_draws_by_the_thresholds(folder, finished_run, catalogs, tmp_path, capsys):
    file = folder / "thresholds.json"
    content = json.loads(file.read_text())
    content["classes"] = dict.fromkeys(content["classes"], 1.0) | {"circle": 0.0}
    file.write_text(json.dumps(content))
    images = ["--output", str(tmp_path / "shown"), str(finished_run / "val")]
    assert predict(["--run", str(folder), *images]) == 0
    out = capsys.readouterr().out
    assert "0 to 1 (thresholds.json, one for each class)" in out
    results = json.loads((tmp_path / "shown" / "results.json").read_text())
    drawn = sum(item["category_id"] == 1 for item in results)
    assert f"drawn: {drawn} detections" in out and 0 < drawn < len(results)
    assert predict(["--run", str(folder), *images, "--overwrite", "--threshold", "0"]) == 0
    assert f"drawn: {len(results)} detections" in capsys.readouterr().out


def _other_classes(folder):
    file = folder / "thresholds.json"
    file.write_text(file.read_text().replace("circle", "disc"))


@pytest.mark.parametrize(
    ("damage", "command", "message"),
    [
        (None, ["--output", "model_final.pth"], "would overwrite the input weights"),
        (None, ["--output", "none/there.pth"], "does not exist"),
        (None, ["--output", "."], "--output . is a folder: name a file"),
        (None, ["--overwrite", "--test", "nobodys"], "--test: dataset nobodys is not registered"),
        (None, ["--overwrite", "--dataset", "nobodys"], "dataset nobodys is not registered"),
        (None, ["--weights", "model_raw.pth"], "thresholds.json already exists: use --overwrite"),
        (None, ["--images", "0"], "--images must be >= 1"),
        (None, ["--classes", "a,b"], "--classes goes with --register-coco, --register-voc or"),
        (_other_classes, None, "lists other classes"),
        (lambda f: (f / "thresholds.json").write_text("{"), None, "not what rambo-calibrate wrote"),
    ],
)
def test_mistakes_are_one_line(damage, command, message, folder, finished_run, catalogs, capsys):
    before = {file.name: file.read_bytes() for file in folder.glob("*.pth")}
    if damage:
        damage(folder)
    if command is None:
        words = ["--run", folder, "--output", folder / "x", finished_run / "val"]
        error = refused(capsys, predict, *words)
    else:
        words = [folder / x if x.endswith(".pth") else x for x in command]
        error = refused(capsys, main, "--run", folder, *words)
    assert message in error
    assert {file.name: file.read_bytes() for file in folder.glob("*.pth")} == before


def test_the_data_of_a_calibration_are_checked_first(finished_run, tmp_path, catalogs, capsys):
    command = [*arguments(finished_run), "DATASETS.TEST", "()"]
    command += ["SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path / "o", "RAMBO_TRAIN.CALIBRATE"]
    error = refused(capsys, train, *command, "nobodys")
    assert "RAMBO_TRAIN.CALIBRATE: dataset nobodys" in error
    assert not (tmp_path / "o" / "metrics.json").exists()
    assert call(train, *command, "own_val") == 0
    assert "Calibrated on own_val" in capsys.readouterr().out
