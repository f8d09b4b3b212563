"""tools/train_net.py as a user runs it."""

import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch

pytest.importorskip("detectron2")

from rambo_det.cli.train import main
from rambo_det.engine.values import check_training

from .models import THIN, small_cfg, write_coco

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = "configs/quickstart/faster_rcnn_rambo.yaml"
SMALL = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]


def tool(name, *args):
    return subprocess.run(
        [sys.executable, f"tools/{name}", *map(str, args)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip


def train_net(*args):
    done = tool("train_net.py", *args)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return [
        "--register-coco", "tn_train", *write_coco(folder, 4, "train"),
        "--register-coco", "tn_val", *write_coco(folder, 4, "val"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A trained run: its folder, the arguments of it, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "out"
    args = ["--config", CONFIG, *data]
    keys = ["DATASETS.TRAIN", "('tn_train',)", "DATASETS.TEST", "('tn_val',)", "SEED", "1"]
    keys += [*SMALL, "OUTPUT_DIR", folder]
    status, out, err = train_net(*args, *keys)
    assert status == 0, err
    return folder, args, keys, out


def test_it_trains_and_ends_with_a_table(run):
    folder, _, _, out = run
    end = out[out.rindex("checkpoint: ") :]
    assert str(folder / "model_final.pth") in end and (folder / "model_final.pth").is_file()
    rows = out[re.search(r"^\| +AP \| +AP50 \| +AP75 \|$", out, re.M).start() :]
    for name in ("AP50", "AP75", "circle", "square", "triangle", "star"):
        assert name in rows
    assert "Device: cpu" in out or "Device: cuda" in out


def test_eval_only_prints_the_same_numbers(run):
    folder, args, keys, out = run
    before = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    status, again, err = train_net("--eval-only", *args, *keys)
    assert status == 0, err
    rows = [re.findall(r"^\|.*\|$", text, re.M)[-9:] for text in (out, again)]
    assert rows[0] == rows[1] and len(rows[0]) == 9
    assert {file: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    assert "Environment info" in (folder / "inference" / "log.txt").read_text()


def test_a_model_that_detects_nothing_is_explained(run, capsys, catalogs, tmp_path):
    folder, args, keys, _ = run
    words = [*args, "--eval-only", *keys, "MODEL.WEIGHTS", folder / "model_final.pth"]
    words += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", "OUTPUT_DIR", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert re.search(r"nan +\| +nan +\| +nan", out)
    assert out.count("nan: ") == 1
    assert "nan: nothing was detected, or the data have no object\n" in out


def test_eval_only_refuses_the_weights_of_another_model(run, capsys, catalogs, tmp_path):
    folder, args, keys, _ = run
    weights = ["MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    words = [args[0], "configs/quickstart/faster_rcnn_ce.yaml", "--eval-only", *weights]
    words += ["MODEL.ROI_HEADS.NUM_CLASSES", 7]
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "is not of the model of" in error
    assert "cls_score" in error and "(5, " in error and "(8, " in error


def test_summary_of_runs(run, tmp_path):
    folder, _, _, out = run
    done = tool("summarize.py", "--out", tmp_path / "r.json", f"ap={folder}", f"again={folder}")
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "r.json").read_text())
    ap = runs["ap"][0]["bbox/AP"]
    assert f"{ap:.3f}" in out and runs["ap"][0]["seed"] == 1
    assert f"{ap:.1f} to {ap:.1f}" in done.stdout
    done = tool("summarize.py", f"ap={tmp_path}/none*")
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def test_summary_of_many_runs(tmp_path):
    for seed in range(12):
        folder = tmp_path / f"r{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(f"SEED: {seed}\n")
        metrics = {f"bbox/{name}": 10.0 + seed for name in ("AP", "AP50", "AP75")}
        (folder / "metrics.json").write_text(json.dumps(metrics) + "\n")
    done = tool("summarize.py", f"ap={tmp_path}/r*")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Mean ± standard deviation over the runs, percent\n")
    assert "| 15.5 ± 3.6 |" in done.stdout


@pytest.mark.parametrize("how", ["registered", "by data.json", "without a detection"])
def test_figure_of_a_run(how, run, data, tmp_path):
    folder, picture = tmp_path / "out", tmp_path / "figure.png"
    shutil.copytree(run[0], folder)
    if how == "registered":
        (folder / "data.json").unlink()
    if how == "without a detection":
        (folder / "inference" / "coco_instances_results.json").write_text("[]")
    words = data if how == "registered" else []
    done = tool("make_figure.py", "--run", folder, "--out", picture, *words)
    assert done.returncode == 0, done.stderr
    assert "meshgrid" not in done.stderr
    height, width = cv2.imread(str(picture)).shape[:2]
    assert width > height > 200


@pytest.mark.parametrize(
    "words, message",
    [
        (["{no data.json}"], "data set tn_val is not registered: name it with --register-coco"),
        (["--register-coco", "tn_val", "none.json", "."], "none.json"),
        (["--images", "4", "{data}"], "--images 4: those of tn_val are 0 to 3"),
        (4 * ["--run", "{run}"], "--run: 4 can be told apart, not 5"),
        (["--run", "none"], "--run none: no finished run there"),
    ],
)
def test_a_figure_that_cannot_be_drawn(words, message, run, data, tmp_path, capsys, catalogs):
    sys.path.insert(0, str(REPOSITORY / "tools"))
    try:
        from make_figure import main as make_figure
    finally:
        sys.path.remove(str(REPOSITORY / "tools"))
    if "{data}" in words:
        words = [*words[:-1], *data]
    folder = run[0]
    if words == ["{no data.json}"]:
        words, folder = [], shutil.copytree(run[0], tmp_path / "out")
        (folder / "data.json").unlink()
    words = [str(folder) if word == "{run}" else word for word in words]
    assert make_figure(["--run", str(folder), "--out", str(tmp_path / "f.png"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error


def test_resume_goes_on_with_the_memory(run):
    folder, args, keys, _ = run
    saved = torch.load(folder / "model_final.pth", weights_only=True)["model"]._metadata
    memory = saved["roi_heads.box_predictor.rambo_loss.memory"]["memory"]
    assert int(memory["written"]) == 4
    status, out, err = train_net(
        *args[:2], "--resume", *args[2:], *keys, "SOLVER.MAX_ITER", "5", "SOLVER.STEPS", "(4,)"
    )
    assert status == 0, err
    assert "Starting training from iteration 4" in out
    after = torch.load(folder / "model_final.pth", weights_only=True)["model"]._metadata
    after = after["roi_heads.box_predictor.rambo_loss.memory"]["memory"]
    assert int(after["written"]) == 5
    # τ = 4: iteration 4 wrote slot 0, the other three are those of the first run.
    assert torch.equal(after["scores"][1:], memory["scores"][1:])
    assert not torch.equal(after["scores"][0], memory["scores"][0])


def test_an_earlier_run_is_not_overwritten(run, capsys, catalogs):
    folder, args, keys, _ = run
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert main([str(a) for a in [*args, *keys]]) == 2
    error = capsys.readouterr().err
    assert "holds another run" in error and "--resume" in error and "--fresh" in error
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_resume_of_another_model_is_refused(run, capsys, catalogs):
    _, args, keys, _ = run
    args = [args[0], "configs/quickstart/faster_rcnn_ce.yaml", *args[2:], "--resume"]
    assert main([str(a) for a in [*args, *keys]]) == 2
    assert "MODEL.ROI_HEADS.NAME" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--resume", "--eval-only"])
@pytest.mark.parametrize("order", ["star,triangle,square,circle", "circle,triangle,square,star"])
def test_other_classes_than_the_run_has_learnt_are_refused(flag, order, run, capsys, catalogs):
    folder, args, keys, _ = run
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    words = [*args, flag, "--classes", order, *keys]
    assert main([str(a) for a in words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    number, name = (1, "star") if order.startswith("star") else (2, "triangle")
    learnt = ("circle", "square", "triangle", "star")
    was = learnt[number - 1]
    assert error.startswith(f"error: {flag}: class {number} is '{was}' in the run in {folder}")
    assert f"and '{name}' in tn_" in error
    assert error.endswith(f"--classes {','.join(learnt)}")
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_weights_of_anywhere_are_evaluated_with_the_classes_that_are_given(
    run, capsys, catalogs, tmp_path
):
    folder, args, keys, _ = run
    words = [*args, "--eval-only", "--classes", "star,triangle,square,circle", *keys]
    words += ["MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    assert main([str(a) for a in words]) == 0
    assert "star" in capsys.readouterr().out


def test_ctrl_c_is_one_line_that_says_how_to_go_on(data, tmp_path):
    out = tmp_path / "out"
    keys = ["DATASETS.TRAIN", "('tn_train',)", "DATASETS.TEST", "('tn_val',)", *THIN]
    keys += ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "5", "OUTPUT_DIR", str(out)]
    process = subprocess.Popen(
        [sys.executable, "tools/train_net.py", "--config", CONFIG, *data, *keys], cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # What runs in the background of a script ignores Ctrl-C, and what it starts does too.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (out / "last_checkpoint").is_file() and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: its data workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1] == "interrupted; --resume goes on from the last checkpoint"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "configs/none.yaml"], "configs/none.yaml: no such file"),
        ([], "--config FILE is missing"),
        (
            ["--config", CONFIG, "MODEL.RAMBO.MARGINS", "1"],
            "error: unknown config key MODEL.RAMBO.MARGINS: did you mean MODEL.RAMBO.MARGIN?",
        ),
        (["--config", CONFIG, "solver.max_iter", "5"], "did you mean SOLVER.MAX_ITER?"),
        (["--config", CONFIG, "SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (
            ["--config", CONFIG, "SOLVER.MAX_ITER", "10", "--seeds", "2"],
            "error: options come before the config keys: --seeds",
        ),
        (
            ["--config", CONFIG, "OUTPUT_DIR", "{tmp}", "--resume"],
            "error: options come before the config keys: --resume",
        ),
        (["--config", CONFIG, "rambo", "SOLVER.MAX_ITER", "10"], "'rambo' is no config key"),
        (
            ["--config", CONFIG, "OUTPUT_DIR", "{tmp}", "SOLVER.MAXITER"],
            "'SOLVER.MAXITER' is no config key: did you mean SOLVER.MAX_ITER?",
        ),
        (["--config", CONFIG, "SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
        (["--config", CONFIG, "MODEL.RAMBO.LAMBDA", "0"], "MODEL.RAMBO.LAMBDA must be > 0"),
        (["--config", CONFIG, "MODEL.RAMBO.MARGIN", "-1"], "MODEL.RAMBO.MARGIN must be >= 0"),
        (["--config", CONFIG, "MODEL.RAMBO.MEMORY_LENGTH", "-1"], "MODEL.RAMBO.MEMORY_LENGTH must"),
        (["--config", CONFIG, "MODEL.RAMBO.BETA", "1.5"], "MODEL.RAMBO.BETA must be in [0, 1]"),
        (["--config", CONFIG, "MODEL.RAMBO.SCORE", "x"], "MODEL.RAMBO.SCORE must be one of"),
        (["--config", CONFIG, "DATASETS.TRAIN", "('nowhere',)"], "nowhere is not registered"),
        (["--config", CONFIG, "DATASETS.TEST", "('coco_2017_val',)"], "coco_2017_val needs"),
        (["--config", CONFIG, "--classes", "a,b"], "--classes goes with --register"),
        (["--config", CONFIG, "--eval-only", "OUTPUT_DIR", "no/such/run"], "no checkpoint in"),
        (["--config", CONFIG, "OUTPUT_DIR", "{tmp}", "MODEL.WEIGHTS", "x.pth"], "x.pth: no such"),
        (
            ["--config", CONFIG, "--register-coco", "a", "no.json", ".", "DATASETS.TEST", "('a',)"],
            "no.json",
        ),
        (
            ["--config", CONFIG, "--register-coco", "rambo_shapes_train", "no.json", "."],
            "already",
        ),
        (
            ["--config", CONFIG, "--register-coco", "a", "no.json", ".", "--register-voc", "b"]
            + [".", "val", "DATASETS.TEST", "('b',)"],
            "--register-coco/--register-voc name a, b, but DATASETS.TRAIN is rambo_shapes_train: "
            "add DATASETS.TRAIN \"('a',)\"",
        ),
        (["--config", CONFIG, "--num-gpus", "99"], "--num-gpus 99"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, capsys, catalogs, tmp_path):
    arguments = [a.replace("{tmp}", str(tmp_path / "out")) for a in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_a_config_that_is_not_yaml(tmp_path, capsys, catalogs):
    (tmp_path / "bad.yaml").write_text("MODEL: [unclosed")
    assert main(["--config", str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml" in capsys.readouterr().err


def test_the_callers_level_of_logging_is_left():
    logging.disable(logging.ERROR)
    try:
        check_training(small_cfg())
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


def test_without_detectron2_the_error_names_the_command(tmp_path):
    """In a Python that cannot see Detectron2: the loss works, the rest says what to install."""
    code = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'detectron2': raise ModuleNotFoundError(\n"
        "            \"No module named 'detectron2'\", name='detectron2')\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'detectron2' else find(n, *a)\n"
        "import rambo_det; from rambo_det import RamboLoss; RamboLoss(3)\n"
        "try: rambo_det.add_rambo_config\n"
        "except ImportError as e: assert 'pip install' in str(e), e\n"
        "else: raise SystemExit('no ImportError')\n"
        "assert not hasattr(rambo_det, 'foo')\n"
        "from rambo_det.cli.train import main; raise SystemExit(main(['--config', 'x']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Detectron2 is not installed: pip install")
