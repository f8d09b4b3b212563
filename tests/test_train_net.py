"""tools/train_net.py as a user runs it."""

import json
import logging
import os
import re
import shlex
import signal
from contextlib import nullcontext
from functools import partial

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import DatasetEvaluators

from rambo_det.cli.train import load_config, main, result_table
from rambo_det.engine.arguments import parse_args
from rambo_det.engine.loader import ResumableLoader
from rambo_det.engine.setup import check_training
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

from .command_line import call, own_data, refused, registered
from .forked import background, wait_until
from .models import CONFIGS, QUICKSTART, THIN, small_cfg


@pytest.fixture
def run(finished_run):
    """Returns the folder of the finished run, its flags, its keys, and its printed output."""
    data, keys = registered(finished_run)
    keys += [*THIN, "SOLVER.MAX_ITER", 3, "SEED", 3, "OUTPUT_DIR", finished_run / "out"]
    printed = (finished_run / "printed.txt").read_text()
    return finished_run / "out", ["--config", QUICKSTART, *data], keys, printed


def test_it_trains_and_ends_with_a_table(run):
    folder, _, _, out = run
    end = out[out.rindex("checkpoint: ") :]
    assert str(folder / "model_final.pth") in end and (folder / "model_final.pth").is_file()
    rows = out[re.search(r"^\| +AP \| +AP50 \| +AP75 \|$", out, re.M).start() :]
    for name in ("AP50", "AP75", "circle", "square", "triangle", "star"):
        assert name in rows
    assert "Device: cpu" in out or "Device: cuda" in out


def test_a_warm_up_longer_than_the_training_is_warned_of(caplog, catalogs):
    for number, warned in ((100, True), (101, False)):
        caplog.clear()
        load_config(parse_args(["--config", QUICKSTART, "SOLVER.MAX_ITER", str(number)]))
        assert ("WARMUP_ITERS 100 is not less than SOLVER.MAX_ITER 100" in caplog.text) == warned


def test_eval_only_prints_the_same_numbers(run, capsys, catalogs):
    folder, args, keys, out = run
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert call(main, "--eval-only", *args, *keys) == 0
    texts = out, capsys.readouterr().out
    rows = [re.findall(r"^\|.*\|$", text, re.M)[-9:] for text in texts]
    assert rows[0] == rows[1] and len(rows[0]) == 9
    assert {file: file.read_bytes() for file in before} == before
    assert "Environment info" in (folder / "evaluated" / "inference" / "log.txt").read_text()


def test_a_model_that_detects_nothing_is_explained(run, capsys, catalogs, tmp_path):
    folder, args, keys, _ = run
    more = ["MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    more += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"]
    classes = ["--classes", "star,triangle,square,circle"]
    error = refused(capsys, main, *args, "--eval-only", *classes, *keys, *more)
    assert "class 1 is 'circle' in the run in" in error
    assert call(main, *args, "--eval-only", *keys, *more) == 0
    out = capsys.readouterr().out
    assert re.search(r"nan +\| +nan +\| +nan", out)
    assert out.count("nan: ") == 1
    assert "nan: nothing was detected, or the dataset has no objects\n" in out


def test_eval_only_verifies_what_is_expected(run, capsys, catalogs, tmp_path):
    folder, args, keys, _ = run
    words = [*args, "--eval-only", *keys, "MODEL.WEIGHTS", folder / "model_final.pth"]
    words += ["OUTPUT_DIR", tmp_path / "out", "TEST.EXPECTED_RESULTS"]
    assert call(main, *words, "[['bbox','AP',50.0,60.0]]") == 0
    with pytest.raises(SystemExit) as end:
        call(main, *words, "[['bbox','AP',99.0,0.1]]")
    assert end.value.code == 1


def test_a_model_with_too_few_classes_is_refused(capsys, catalogs, tmp_path):
    """The last class of the data would have the number of background."""
    for config, node in (("faster_rcnn", "ROI_HEADS"), ("retinanet", "RETINANET")):
        key, file = f"MODEL.{node}.NUM_CLASSES", f"configs/quickstart/{config}_rambo.yaml"
        keys = [key, 3, "OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()]
        error = refused(capsys, main, "--config", file, *keys)
        assert error == f"error: {key} is 3, but rambo_shapes_train has 4 classes\n"
    words = ["--config", "configs/lazy/quickstart/fcos_rambo.py", "model.num_classes=3"]
    words += ["train.max_iter=1", "dataloader.test.dataset.names=[]"]
    words += [f"train.output_dir={tmp_path}/out"]
    error = refused(capsys, partial(main, lazy=True), *words)
    assert error == "error: model.num_classes is 3, but rambo_shapes_train has 4 classes\n"


def test_classes_that_only_loading_makes_known_are_checked(run, capsys, catalogs, tmp_path):
    folder, _, keys, _ = run
    content = json.loads((folder.parent / "train.json").read_text())
    for category in content["categories"]:
        category["id"] = 5 - category["id"]
    (tmp_path / "other.json").write_text(json.dumps(content))
    new = ["OUTPUT_DIR", tmp_path / "out", "MODEL.ROI_HEADS.NUM_CLASSES", 3]
    for name, flags, more, message in (
        ("coco_a", ["--resume"], [], "--resume: class 1 is 'circle' in the run in"),
        ("coco_b", ["--eval-only"], [], "--eval-only: class 1 is 'circle' in the run in"),
        ("coco_c", [], new, "MODEL.ROI_HEADS.NUM_CLASSES is 3, but coco_c has 4 classes"),
    ):
        register_coco_instances(name, {}, str(tmp_path / "other.json"), str(folder.parent))
        data = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
        words = ["--config", QUICKSTART, *flags, *keys, *data, *more]
        assert message in refused(capsys, main, *words)


def test_the_results_of_another_evaluator_are_a_table():
    assert "| detections | 3.000 |" in result_table({"detections": 3.0})


def test_a_class_of_difficult_objects_only_is_explained():
    """They count in COCO's metrics, but not in VOC's."""
    bbox = {"AP": 1.0, "AP50": 1.0, "AP75": 1.0, "AP-dog": 1.0}
    text = result_table({"bbox": bbox, "voc": {"AP50": 1.0, "AP50-dog": float("nan")}})
    assert "nan: the dataset has no object of this class, or difficult ones only" in text


def test_eval_only_refuses_the_weights_of_another_model(run, capsys, catalogs, tmp_path):
    folder, args, _, _ = run
    words = [args[0], "configs/quickstart/faster_rcnn_ce.yaml", "--eval-only", *THIN]
    words += ["MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    error = refused(capsys, main, *words, "MODEL.ROI_HEADS.NUM_CLASSES", 7)
    assert "does not fit the model of" in error
    assert "cls_score" in error and "(5, " in error and "(8, " in error
    assert error.endswith("is NUM_CLASSES that of the checkpoint?\n")


def test_what_an_earlier_run_forbids(run, capsys, catalogs, monkeypatch, tmp_path):
    """A run is neither overwritten nor continued as another model or with other class names."""
    folder, args, keys, _ = run
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    error = refused(capsys, main, *args, *keys)
    assert "holds another run" in error and "--resume" in error and "--fresh" in error
    for name, problem in (
        ("model_final.pth", "holds another run"),
        ("data.json", "has a data.json of something else, which the run would overwrite: use OUT"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text('{"images": []}')
        for flags in ([], ["--resume"] if name == "data.json" else []):
            error = refused(capsys, main, *args, *flags, *keys, "OUTPUT_DIR", tmp_path / name)
            assert problem in error
        assert (tmp_path / name / name).read_text() == '{"images": []}'
    own = tmp_path / "mine" / "config.yaml"
    own.parent.mkdir()
    own.write_text("model: mine")
    error = refused(capsys, main, *args, *keys, "OUTPUT_DIR", own.parent)
    assert f"would overwrite {own}, which is no config of a run: use another OUTPUT_DIR" in error
    own.write_text(f"_BASE_: {CONFIGS / 'quickstart/faster_rcnn_rambo.yaml'}\n")
    error = refused(capsys, main, args[0], own, *args[2:], *keys, "OUTPUT_DIR", own.parent)
    assert f"would overwrite {own}, which is the file of --config: use another OUTPUT_DIR" in error
    with monkeypatch.context() as there:
        there.chdir(folder / "inference")
        error = refused(capsys, main, *args, "--fresh", *keys)
        assert f"--fresh cannot rename OUTPUT_DIR {folder}, your current directory" in error
    other = [args[0], "configs/quickstart/faster_rcnn_ce.yaml", *args[2:], "--resume", *keys]
    assert "MODEL.ROI_HEADS.NAME" in refused(capsys, main, *other)
    for key, value in (("MODEL.RAMBO.SCORE", "logits"), ("MODEL.BACKBONE.FREEZE_AT", 3)):
        error = refused(capsys, main, *args, "--resume", *keys, key, value)
        assert f"{key} is {value!r}, but " in error and "in the run in" in error
    for key, value, message in (
        ("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "fc1.weight has shape (32, "),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 3, "2 weights are missing, first: roi_heads.box_head.fc3"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 1, "it has 2 more weights, first: roi_heads.box_head.fc2"),
    ):
        error = refused(capsys, main, *args, "--resume", *keys, key, value)
        assert f"{folder}/model_final.pth does not fit the model of" in error and message in error
    for flag in ("--resume", "--eval-only"):
        names = ["--classes", "circle,triangle,square,star"]
        error = refused(capsys, main, *args, flag, *names, *keys)
        assert error.startswith(f"error: {flag}: class 2 is 'square' in the run in")
        assert "and 'triangle' in own_" in error
        assert error.endswith("--classes circle,square,triangle,star\n")
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_class_name_with_a_comma(capsys, catalogs, tmp_path):
    """The error names a --classes that is right."""
    data, keys = own_data(tmp_path, "own")
    for file in (tmp_path / "train.json", tmp_path / "val.json"):
        file.write_text(file.read_text().replace('"circle"', '"circle, \\"round\\""'))
    keys += [*THIN, "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path / "out"]
    args = ["--config", QUICKSTART, *data]
    assert call(main, *args, *keys) == 0
    args, keys = [*args, "--eval-only"], [*keys, "MODEL.WEIGHTS", tmp_path / "out/model_final.pth"]
    wrong = '"circle, ""round""", triangle,square,star'
    error = refused(capsys, main, *args, "--classes", wrong, *keys)
    assert "class 2 is 'square' in the run in" in error
    right = shlex.split(error.rpartition("--classes ")[2])[0]
    assert right.startswith('"circle, ""round""",square,')
    right = right.replace(",square,", "\nsquare\n")  # as $(cat classes.txt) gives them
    assert call(main, *args, "--classes", right, *keys) == 0


def test_ctrl_c_is_one_line_that_says_how_to_go_on(run, tmp_path):
    _, args, keys, _ = run
    out = tmp_path / "out"
    keys = [*keys, "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "5"]
    process = background("tools/train_net.py", *args, *keys, "OUTPUT_DIR", out)
    wait_until((out / "last_checkpoint").is_file, process)
    os.killpg(process.pid, signal.SIGINT)  # like a terminal: to the data workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1] == "interrupted; --resume continues from the last checkpoint"


def test_the_callers_level_of_logging_is_left():
    logging.disable(logging.ERROR)
    try:
        check_training(small_cfg())
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "metric, is_valid",
    [
        *((name, True) for name in ("bbox/APl", "segm/AP-cat", "keypoints/APm", "voc/AP50-cat")),
        *((name, False) for name in ("voc/AP", "voc/AP75", "voc/AP-cat", "keypoints/APs", "bbox")),
    ],
)
def test_only_metrics_that_an_evaluator_has_are_accepted(metric, is_valid):
    keys = ["RAMBO_TRAIN.BEST_METRIC", metric, "DATASETS.TEST", ("rambo_shapes_val",)]
    cfg = small_cfg(QUICKSTART, "TEST.EVAL_PERIOD", 1, *keys)
    refusal = pytest.raises(InputError, match="RAMBO_TRAIN.BEST_METRIC")
    with nullcontext() if is_valid else refusal:
        check_training(cfg)


def test_a_trainer_of_a_script(finished_run, catalogs, tmp_path, caplog):
    file, images = f"{finished_run}/train.json", f"{finished_run}/train"
    register_coco_instances("coco_d", {}, file, images)
    keys = ["DATASETS.TRAIN", ("coco_d",), "DATASETS.TEST", ("coco_d",), "OUTPUT_DIR", tmp_path]
    keys = [*THIN, *map(str, keys), "TEST.EVAL_PERIOD", 1, "RAMBO_TRAIN.BEST_METRIC", "mine/score"]
    with pytest.raises(InputError, match="BEST_METRIC 'mine/score': unknown metric"):
        RamboTrainer(small_cfg(QUICKSTART, *keys))

    class Own(RamboTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return DatasetEvaluators([])

        @staticmethod
        def train_mapper(cfg):
            mapper = DatasetMapper(cfg)
            return lambda record: {**mapper(record), "mapped": True}

    trainer = Own(small_cfg(QUICKSTART, *keys))
    assert isinstance(trainer.data_loader, ResumableLoader)
    assert all(image["mapped"] for image in next(iter(trainer.data_loader)))
    with pytest.raises(InputError, match="'mine/score' is not a metric of the evaluation"):
        trainer.train()
    # The default metric, which the user did not choose, does not end the training.
    cfg = small_cfg(QUICKSTART, *keys[:-2], "SOLVER.MAX_ITER", 2)
    Own(cfg).train()
    assert "So no best checkpoint is kept" in caplog.text
    assert (tmp_path / "model_final.pth").exists() and not (tmp_path / "best.json").exists()
    with pytest.raises(InputError, match="call rambo_det.add_rambo_config"):
        RamboTrainer(get_cfg())
