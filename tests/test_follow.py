"""The log files, the best checkpoint and the early end of a training."""

import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.structures import BoxMode

from rambo_det.cli.predict import main as predict
from rambo_det.cli.train import main
from rambo_det.engine.checkpointer import AtomicCheckpointer
from rambo_det.engine.hooks import BestEvalHook
from rambo_det.engine.keys import YAML

from .command_line import call, own_data, refused
from .forked import start_script, wait_until
from .models import QUICKSTART, THIN, weights_of
from .strategies import same

EACH = ["TEST.EVAL_PERIOD", "1"]


@pytest.fixture
def arguments(tmp_path):
    flags, keys = own_data(tmp_path / "data", "fo", 4, 3)
    return ["--config", QUICKSTART, *flags, *keys, *THIN, "SEED", "3"]


def periodic_lines(text):
    return [int(n) for n in re.findall(r"iter: (\d+) ", text)]


def evaluations_in(folder):
    """Returns the iterations with an AP in metrics.json."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["iteration"] for line in lines if "bbox/AP" in line]


def best_of(folder):
    return json.loads((folder / "best.json").read_text())


def same_weights(a, b):
    return same(weights_of(a), weights_of(b))


def test_the_log_file_has_more_and_the_best_is_kept(arguments, tmp_path, capsys, catalogs):
    out = tmp_path / "out"
    keys = ["SOLVER.MAX_ITER", "8", "TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "2"]
    assert call(main, *arguments, *keys, "OUTPUT_DIR", out) == 0
    text, log = capsys.readouterr().out, (out / "log.txt").read_text()
    assert periodic_lines(text) == periodic_lines(log) == [7]
    # Only the file has config and model, hundreds of lines. Both have all other lines, once.
    for dump in ("Contents of args.config_file=", "Running with full config:", "(rambo_loss): "):
        assert dump not in text and dump in log
    for line in ("Environment info:", "Full config saved to", "Starting training from"):
        assert text.count(line) == log.count(line) == 1, line
    state = best_of(out)
    lines = re.findall(r"copypaste: ([\d.]+|nan),", log)
    values = [float(value) for value in lines]
    assert list(state["evaluations"]) == ["1", "3", "5", "7"]
    assert evaluations_in(out) == [1, 3, 5, 8], "the last one is written after the training"
    known = [-1 if v is None else v for v in state["evaluations"].values()]
    assert known == pytest.approx([-1 if math.isnan(v) else v for v in values], abs=1e-4)
    best = state["best"]["iteration"]
    assert known.index(max(known)) * 2 + 1 == best and state["best"]["value"] == max(known)
    assert f"after iteration {best}: {out}/model_best.pth" in text
    saved = "model_final" if best == 7 else f"model_{best:07d}"
    assert same_weights(out / "model_best.pth", out / f"{saved}.pth")
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    # If MAX_ITER is now below the checkpoint's iteration, no evaluation of MAX_ITER is recorded.
    keys[1] = "2"
    assert call(main, "--resume", *arguments, *keys, "OUTPUT_DIR", out) == 0
    said = "The run has already made 8 iterations, and SOLVER.MAX_ITER is 2: it is only evaluated"
    assert said in (out / "log.txt").read_text()
    assert list(best_of(out)["evaluations"]) == ["1", "3", "5", "7"]
    assert best_of(out)["best"] == state["best"]
    for key, found in best_of(out)["evaluations"].items():
        assert found == pytest.approx(state["evaluations"][key], abs=1e-4)


def stopped_run(arguments, out, *more):
    """Returns arguments of a run that ends early: its learning rate is too small to improve."""
    keys = ["SOLVER.BASE_LR", "1e-30", "TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "3"]
    keys += ["RAMBO_TRAIN.PATIENCE", "2", "SOLVER.MAX_ITER", "40"]
    return [*arguments, *keys, "OUTPUT_DIR", out, *more]


def test_it_ends_early_and_stays_ended(arguments, tmp_path, capsys, catalogs):
    out = tmp_path / "out"
    assert call(main, *stopped_run(arguments, out)) == 0
    text = capsys.readouterr().out
    assert "Stopped early, after iteration 5: 2 evaluations without a better bbox/AP" in text
    assert "Exception during training" not in text and "checkpoint: " in text
    assert list(best_of(out)["evaluations"]) == ["1", "3", "5"]
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 5
    before = (out / "best.json").read_bytes()
    assert call(main, "--resume", *stopped_run(arguments, out)) == 0
    text = capsys.readouterr().out
    assert "Stopped early, after iteration 5" in text and (out / "best.json").read_bytes() == before
    saved = torch.load(out / "model_final.pth", weights_only=True)
    assert saved["trainer"]["iteration"] == 5, "the next resume would leave out an iteration"
    patient = ["RAMBO_TRAIN.PATIENCE", "3"]
    # With more patience the run goes on and keeps its earlier evaluations.
    assert call(main, "--resume", *stopped_run(arguments, out, *patient)) == 0
    assert list(best_of(out)["evaluations"]) == ["1", "3", "5", "7"]
    assert best_of(out)["best"]["iteration"] == 1
    assert evaluations_in(out) == [1, 3, 5, 7]


def test_an_evaluation_that_a_kill_cut_off_is_made_again(arguments, tmp_path):
    """The run is killed between a checkpoint and the record of the same iteration's evaluation."""
    keys = ["SOLVER.MAX_ITER", "8", "TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "2"]
    out = tmp_path / "killed"

    def start(folder, *flags):
        words = ["tools/train_net.py", *flags, *arguments, *keys, "OUTPUT_DIR", folder]
        return start_script({}, folder.with_suffix(".txt"), words)

    whole = start(tmp_path / "whole")
    process = start(out)
    wait_until((out / "model_0000003.pth").exists, process, 0.001)
    process.kill()
    process.join()
    assert (out / "last_checkpoint").is_file()
    assert list(best_of(out)["evaluations"]) == ["1"], "killed too late to be a test"
    for process in (start(out, "--resume"), whole):
        process.join(300)
        assert process.exitcode == 0
    assert best_of(out) == best_of(tmp_path / "whole")
    assert evaluations_in(out) == evaluations_in(tmp_path / "whole") == [1, 3, 5, 8]
    assert same_weights(out / "model_best.pth", tmp_path / "whole" / "model_best.pth")
    assert not list(out.glob("*.part"))


class Stepped(TrainerBase):
    """A trainer whose model has the last iteration as its weight."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)

    def run_step(self):
        torch.nn.init.constant_(self.model.weight, self.iter)


def best_after(folder, start, aps, keep=True, metric="bbox/AP", data="val"):
    """Returns the BestEvalHook of a run that is evaluated every two iterations, with these APs."""
    trainer = Stepped()
    values = iter(aps)

    def evaluate():
        return {"bbox": {metric.partition("/")[2]: next(values, 5.0)}}

    checkpointer = AtomicCheckpointer(trainer.model, str(folder))
    train = {"BEST_METRIC": metric, "KEEP_BEST": keep, "PATIENCE": 99}
    cfg = {"TEST": {"EVAL_PERIOD": 2}, "RAMBO_TRAIN": train, "DATASETS": {"TEST": (data,)}}
    best = BestEvalHook(cfg, YAML, evaluate, checkpointer)
    trainer.register_hooks([best])
    trainer.train(start, start + 2 * len(aps))
    return best


def test_only_the_file_of_the_best_evaluation_is_named(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    best = best_after(tmp_path, 0, [10.0, 11.0, 20.0])
    # --resume does not continue from model_best.pth.
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert best.summary() == f"best bbox/AP: 20.000, after iteration 5: {tmp_path}/model_best.pth"
    # The run resumes from before the best evaluation, whose AP is lower this time.
    best = best_after(tmp_path, 4, [10.5])
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 5
    assert best.summary() == "best bbox/AP: 11.000, after iteration 3"
    best = best_after(tmp_path, 6, [12.0])
    assert best.summary() == f"best bbox/AP: 12.000, after iteration 7: {tmp_path}/model_best.pth"


def test_a_model_that_is_given_proposals(arguments, tmp_path, capsys, catalogs):
    """Training and evaluation work; the prediction tool refuses the model and says why."""
    keys = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", "True"]
    for split in ("train", "val"):
        content = json.loads((tmp_path / "data" / f"{split}.json").read_text())
        found = {"ids": [], "boxes": [], "objectness_logits": [], "bbox_mode": BoxMode.XYWH_ABS}
        for image in content["images"]:
            there = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
            found["ids"].append(image["id"])
            found["boxes"].append(np.array(there, dtype=np.float32))
            found["objectness_logits"].append(np.ones(len(there), dtype=np.float32))
        file = tmp_path / f"{split}.pkl"
        file.write_bytes(pickle.dumps(found))
        name = "TRAIN" if split == "train" else "TEST"
        keys += [f"DATASETS.PROPOSAL_FILES_{name}", f"('{file}',)"]
    out = tmp_path / "out"
    keys += ["SOLVER.MAX_ITER", "2", *EACH, "RAMBO_TRAIN.KEEP_BEST", "False", "OUTPUT_DIR", out]
    assert call(main, *arguments, *keys) == 0, capsys.readouterr()
    assert not (out / "best.json").exists() and not (out / "model_best.pth").exists()
    image = tmp_path / "data" / "val" / "0000.png"
    error = refused(capsys, predict, "--run", out, image, "--output", tmp_path / "found")
    assert "PrecomputedProposals), which this tool cannot supply" in error


def test_a_metric_that_the_evaluation_lacks(arguments, tmp_path, capsys, catalogs):
    keys = [*EACH, "RAMBO_TRAIN.BEST_METRIC", "bbox/AP-cat", "SOLVER.MAX_ITER", "2"]
    assert call(main, *arguments, *keys, "OUTPUT_DIR", tmp_path / "out") == 2
    error = capsys.readouterr().err
    error = error[error.index("error: ") :]
    assert error.count("\n") == 1 and "'bbox/AP-cat' is not a metric of the" in error
    assert "available: bbox/AP, bbox/AP-circle, " in error


def test_without_a_detection_the_metric_of_a_class_is_unknown(arguments, tmp_path, catalogs):
    """COCOEvaluator leaves it out then; this is no reason to end a training."""
    keys = [*EACH, "RAMBO_TRAIN.BEST_METRIC", "bbox/AP-circle", "SOLVER.MAX_ITER", "2"]
    keys += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", "OUTPUT_DIR", tmp_path / "out"]
    assert call(main, *arguments, *keys) == 0
    assert best_of(tmp_path / "out")["evaluations"] == {"0": None, "1": None}


def test_what_an_earlier_evaluation_left(tmp_path):
    never_written = tmp_path / "without"
    never_written.mkdir()
    best_after(never_written, 0, [30.0, 29.0], keep=False)
    best = best_after(never_written, 4, [20.0])
    assert best.summary() == "best bbox/AP: 30.000, after iteration 1"
    best_after(tmp_path, 0, [30.0])
    assert best_after(tmp_path, 2, [20.0]).best == (1, 30.0)
    assert best_after(tmp_path, 4, [10.0], data="other").best == (3, 10.0)
    best_after(tmp_path, 0, [30.0])
    # Evaluations by another metric do not count. The hook repeats the evaluation of iteration 3, as
    # in a run that was killed during its last evaluation.
    assert best_after(tmp_path, 4, [10.0], metric="bbox/AP50").best == (3, 10.0)
