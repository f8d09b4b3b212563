"""Unusual but valid runs train, are evaluated and detect; invalid ones end with a clear error."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

from rambo_det.cli.predict import main as predict
from rambo_det.cli.train import main as train
from rambo_det.data.mapper import ErrorReportingMapper
from rambo_det.engine.detector import Detector
from rambo_det.engine.saved_model import find_model

from .command_line import call, refused, registered
from .models import CONFIGS, QUICKSTART, THIN, small_cfg

pytestmark = pytest.mark.usefixtures("catalogs")


def run(finished_run, out, *keys, data=None):
    flags, named = registered(finished_run)
    short = [*THIN, "SOLVER.MAX_ITER", 2, "SEED", 3, "OUTPUT_DIR", out]
    return call(train, "--config", QUICKSTART, *(data or flags), *named, *short, *keys)


def test_gray_images_in_training_and_predict(finished_run, tmp_path):
    keys = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[127.5]", "MODEL.PIXEL_STD", "[64.0]"]
    assert run(finished_run, tmp_path / "out", *keys) == 0
    words = ["--run", tmp_path / "out", "--output", tmp_path / "found", finished_run / "val"]
    assert call(predict, *words) == 0
    # As in training, the detector sees only the brightness of a colour image.
    detector = Detector(find_model(str(tmp_path / "out"), None, None))
    picture = cv2.imread(str(finished_run / "val" / "0001.png"))
    gray = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    assert np.allclose(detector(picture).scores, detector(gray).scores, atol=1e-3)


def test_what_is_odd_in_the_data_is_in_the_log_of_the_run(finished_run, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(finished_run / split, tmp_path / split)
        content = json.loads((finished_run / f"{split}.json").read_text())
        if split == "train":
            content["annotations"][0]["bbox"] = [500, 500, 10, 10]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    assert run(finished_run, tmp_path / "out", data=registered(tmp_path)[0]) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("dropped 1 box(es)") == 1


def test_a_test_on_augmented_images_is_another_test(finished_run, tmp_path, capsys):
    """TEST.AUG.ENABLED uses Detectron2's test-time augmentation, as its train_net.py does."""
    out = tmp_path / "out"
    shutil.copytree(finished_run / "out", out)
    plain = Path(out, "inference", "coco_instances_results.json").read_text()
    words = ["--config", out / "config.yaml", *registered(finished_run)[0], "--eval-only"]
    words += ["TEST.AUG.MIN_SIZES", "(64,128)", "TEST.AUG.MAX_SIZE", 128, "OUTPUT_DIR", out]
    assert call(train, *words, "TEST.AUG.ENABLED", True) == 0
    found = Path(out, "evaluated", "inference", "coco_instances_results.json").read_text()
    assert found != plain
    words[1] = CONFIGS / "quickstart/retinanet_rambo.yaml"
    error = refused(capsys, train, *words, "TEST.AUG.ENABLED", True)
    assert "TEST.AUG.ENABLED True cannot be combined with another MODEL.META_ARCH" in error


def test_another_learning_rate_of_a_resumed_run_is_not_taken_in_silence(finished_run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished_run / "out", out)
    data = [*registered(finished_run)[0], "--resume"]
    file = out / "config.yaml"
    text = file.read_text().replace("BASE_LR: 0.04", "BASE_LR: 4.0e-02")
    file.write_text(text.replace("NUM_CLASSES: 4", "NUM_CLASSES: 80"))  # of an unused RetinaNet
    assert run(finished_run, out, "SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.04, data=data) == 0
    assert "is ignored" not in (out / "log.txt").read_text()
    assert run(finished_run, out, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.5, data=data) == 0
    log = (out / "log.txt").read_text()
    assert "SOLVER.BASE_LR 0.5 is ignored: the resumed run keeps 0.04" in log


def test_a_model_that_proposes_boxes_alone_ends_with_a_table(finished_run, tmp_path, capsys):
    keys = ["MODEL.META_ARCHITECTURE", "ProposalNetwork"]
    keys += ["MODEL.PROPOSAL_GENERATOR.NAME", "RamboRPN", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"]
    assert run(finished_run, tmp_path / "out", *keys) == 0
    assert "AR@100" in capsys.readouterr().out.split("\n\ncheckpoint: ")[-2][-400:]


@pytest.mark.parametrize("which", ["train", "val"])
def test_all_data_sets_of_a_run_have_the_same_classes(which, finished_run, tmp_path, capsys):
    """With another order, the AP of one class would get the name of another class."""
    content = json.loads((finished_run / f"{which}.json").read_text())
    names = [c["name"] for c in content["categories"]][::-1]
    for category, name in zip(content["categories"], names, strict=True):
        category["name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content))
    shutil.copytree(finished_run / which, tmp_path / "train")
    data = ["--register-coco", "own_train", tmp_path / "train.json", tmp_path / "train"]
    keys = ["DATASETS.TEST", "('rambo_shapes_val',)"]
    if which == "val":
        keys = ["DATASETS.TRAIN", "('own_train','rambo_shapes_train')", *keys]
    assert run(finished_run, tmp_path / "out", *keys, data=data) == 2
    key = "DATASETS.TEST: class 1 is" if which == "train" else "DATASETS.TRAIN: class 1 is"
    assert key in (error := capsys.readouterr().err) and "in the same order" in error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_mapper_has_its_traceback(workers, finished_run, tmp_path, monkeypatch, capsys):
    """The error does not report a dead data worker instead."""
    monkeypatch.setattr(DatasetMapper, "__call__", broken)
    with pytest.raises(RuntimeError, match=r"the mapper failed on .*train/\d+\.png: KeyError: 'x'"):
        run(finished_run, tmp_path / "out", "DATALOADER.NUM_WORKERS", workers)
    assert "worker died" not in capsys.readouterr().err


def broken(self, record):
    raise KeyError("x")


def test_what_a_mapper_raises_names_image_and_annotation(finished_run):
    """Detectron2's own functions accept this record, whose second box has only three numbers."""
    cfg = small_cfg()
    image = str(finished_run / "train" / "0000.png")
    width, height = Image.open(image).size
    box = {"bbox": [1, 2, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": Path(image), "width": width, "height": height}
    record["annotations"] = [box, {**box, "bbox": [1, 2, 9]}]
    mapper = ErrorReportingMapper(DatasetMapper(cfg, is_train=True))
    with pytest.raises(RuntimeError, match=r"0\.png, annotation 1 of the image, .*\[1, 2, 9\]"):
        mapper(record)
    assert len(mapper({**record, "annotations": [box]})["instances"]) == 1
