"""tools/compare.py as a user runs it: real trainings of a very small detector."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import rambo_det

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from rambo_det.cli.compare import main
from rambo_det.compare.plan import Plan, Run
from rambo_det.compare.report import shown_losses, write_report
from rambo_det.compare.results import collect, compare
from rambo_det.compare.run import alone_in, read_record, run_all, source_digest, write_record
from rambo_det.compare.specs import Variant
from rambo_det.compare.text import as_text
from rambo_det.data import register_datasets
from rambo_det.errors import InputError

from .models import write_coco

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT = 300
TINY = [
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res3']",
    "MODEL.RPN.IN_FEATURES", "['res3']", "MODEL.ROI_HEADS.IN_FEATURES", "['res3']",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[16,32]]", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2",
    "SOLVER.WARMUP_ITERS", "0", "MODEL.DEVICE", "cpu",
]  # fmt: skip


class Comparison:
    """A folder, and the command that fills it."""

    def __init__(self, folder):
        self.out = folder / "out"
        sets = [write_coco(folder, number, split) for number, split in ((6, "train"), (5, "val"))]
        self._data = "drawn=coco:" + ":".join(":".join(item) for item in sets)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.environment["RAMBO_DET_CACHE"] = str(folder / "cache")

    def command(self, *words, losses=("--losses", "ce,rambo")):
        return [
            sys.executable, "tools/compare.py", "--data", self._data, "--out", str(self.out),
            "--config", "configs/quickstart/faster_rcnn_rambo.yaml", *losses, "--seeds", "1",
            "--threads", "1", "--bootstrap", "200", *words, *TINY,
        ]  # fmt: skip

    def run(self, *words, **kwargs):
        return subprocess.run(
            self.command(*words, **kwargs), cwd=REPOSITORY, env=self.environment, text=True,
            capture_output=True, timeout=TIMEOUT,
        )  # fmt: skip

    def folder(self, variant):
        return self.out / "runs" / "drawn" / variant / "seed0"

    def record(self, variant):
        return json.loads((self.folder(variant) / "compare.json").read_text())

    def results(self):
        return json.loads((self.out / "results.json").read_text())


def process_of(folder):
    """The training whose OUTPUT_DIR the folder is."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                if f"OUTPUT_DIR\0{folder}\0".encode() in file.read_bytes():
                    return int(file.parent.name)
        time.sleep(0.02)
    raise AssertionError("the training did not start")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """One that was killed while its second training ran, and started again."""
    made = Comparison(tmp_path_factory.mktemp("compare"))
    process = subprocess.Popen(
        made.command(), cwd=REPOSITORY, env=made.environment, stdout=subprocess.PIPE, text=True
    )
    second, end = made.folder("rambo") / "output.txt", time.monotonic() + TIMEOUT
    while not second.exists() and time.monotonic() < end:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    orphan = process_of(made.folder("rambo"))  # its output is there before it is
    process.send_signal(signal.SIGKILL)
    process.wait()
    made.killed = {name: made.record(name)["status"] for name in ("ce", "rambo")}
    made.first = (made.folder("ce") / "metrics.json").stat().st_mtime_ns
    # Its training lives on; it is held until the new one has met it.
    os.kill(orphan, signal.SIGSTOP)
    with subprocess.Popen(
        made.command(), cwd=REPOSITORY, env=made.environment, stdout=subprocess.PIPE, text=True
    ) as again:
        lines = []
        for line in again.stdout:
            lines.append(line)
            if "waiting for the process that works in" in line:
                os.kill(orphan, signal.SIGCONT)
        made.again = "".join(lines)
    assert again.returncode == 0, made.again
    return made


def test_a_killed_comparison_goes_on(comparison):
    assert comparison.killed == {"ce": "finished", "rambo": "started"}
    again = comparison.again
    assert "1 of 2 runs are finished already" in again
    assert "drawn, ce" not in again  # not trained again
    # The orphan of the killed one is waited for, not trained beside.
    assert "waiting for the process that works in" in again
    assert (comparison.folder("ce") / "metrics.json").stat().st_mtime_ns == comparison.first
    assert comparison.record("rambo")["status"] == "finished"
    steps = [
        line["iteration"]
        for line in map(json.loads, (comparison.folder("rambo") / "metrics.json").open())
        if "total_loss" in line
    ]
    assert steps and steps == sorted(set(steps))  # one process at a time wrote there


def test_results_are_those_of_the_runs(comparison):
    results = comparison.results()
    assert [run["variant"] for run in results["runs"]] == ["ce", "rambo"]
    for run in results["runs"]:
        with open(comparison.folder(run["variant"]) / "metrics.json") as file:
            logged = [line for line in map(json.loads, file) if "bbox/AP" in line][-1]
        for name in ("AP", "AP50", "AP75", "AP-circle"):
            expected = np.nan_to_num(logged.get(f"bbox/{name}", 0))  # NaN: nothing is detected
            assert run["metrics"][name] == pytest.approx(expected)
        assert run["command"][1:3] == ["-m", "rambo_det.cli.train"]
        assert 0 <= run["metrics"]["ECE"] <= 100 and run["source"]
    means = [
        loss["metrics"]["AP50"]["mean"] for loss in results["data"]["drawn"]["losses"].values()
    ]
    found = results["data"]["drawn"]["differences"]["rambo"]["metrics"]["AP50"]
    assert found["mean"] == pytest.approx(means[1] - means[0], abs=1e-6)
    assert found["low"] <= found["high"]
    assert {"torch", "detectron2", "rambo_det"} <= results["versions"].keys()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)

    @property
    def said(self):
        return " ".join(" ".join(self.text).split())


def test_the_report_needs_nothing_else_and_says_what_was_found(comparison):
    text = (comparison.out / "report.html").read_text()
    page = Page(text)
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", text)
    said = page.said
    expected = ["cross entropy or RaMBO?", "95 % interval of the difference", "circle", "ECE"]
    expected += ["Precision and recall", "Scores of right and wrong", "rambo_det.cli.train"]
    for words in [*expected, comparison.results()["versions"]["torch"]]:
        assert words in said, words
    assert said.index("95 % interval") < said.index("All numbers")
    # Intervals, precision-recall curves, scores; AP over training only with several evaluations.
    assert sum("svg+xml" in source for source in page.sources) == 3
    assert "AP while training" not in said


def evaluated(folder, finds, labels=("a", "b"), variants=None, name="compared", images=4):
    """A comparison of detectors that are evaluated but were not trained: plan, runs and results.

    ``finds``: variant -> whether it finds the objects or nothing, seed by seed.
    """
    file, images = write_coco(folder, images, "val")
    content = json.loads(Path(file).read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(labels)]
    for annotation in content["annotations"]:
        annotation["category_id"] %= len(labels)
    Path(file).write_text(json.dumps(content))
    register_datasets([(name, file, images)])
    rng, runs = np.random.default_rng(0), []
    for variant, seeds in finds.items():
        for seed, found in enumerate(seeds):
            run = Run("drawn", variant, seed, folder / f"{variant}{seed}", ("x",), {}, 10)
            write_record(run.folder, status="finished", settings={}, source="0", command=["x"])
            evaluator = COCOEvaluator(name, output_dir=str(run.folder / "inference"))
            evaluator.reset()
            for record in DatasetCatalog.get(name):
                objects = record["annotations"] if found else []
                boxes = [np.add(o["bbox"], rng.normal(0, 2, 4)) for o in objects]
                instances = Instances((record["height"], record["width"]))
                boxes = torch.tensor(np.reshape(boxes, (-1, 4)), dtype=torch.float32)
                instances.pred_boxes = Boxes(
                    torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
                )
                instances.scores = torch.rand(len(objects))
                instances.pred_classes = torch.tensor([o["category_id"] for o in objects])
                evaluator.process([record], [{"instances": instances}])
            metrics = {f"bbox/{k}": v for k, v in evaluator.evaluate()["bbox"].items()}
            lines = [{"iteration": i, "time": 6.0, **metrics} for i in (4, 7)]
            (run.folder / "metrics.json").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
            runs.append(run)
    variants = variants or {loss: Variant(loss, loss) for loss in finds}
    plan = Plan(variants, {"drawn": name}, runs)
    measured = collect(plan)
    return plan, measured, compare(plan, measured, "rambo-compare", 100)


@pytest.mark.parametrize(("ce", "labels"), [([False, False], ("a", "b")), ([False, True], ("a",))])
def test_a_run_that_detects_nothing_has_an_ap_of_0(ce, labels, tmp_path, catalogs):
    plan, measured, results = evaluated(tmp_path, {"ce": ce, "rambo": [True, True]}, labels)
    for item, found in zip(measured, [*ce, True, True], strict=True):
        names = ("AP", "AP50", "AP75", *(f"AP-{label}" for label in labels))
        assert all((item.result["metrics"][name] > 0) == found for name in names)
        assert [(e["AP"] > 0) == found for e in item.result["evaluations"]] == [True, True]
        # 8 of 10 planned iterations of 6 s: it has ended early.
        assert item.result["metrics"]["training minutes"] == pytest.approx(0.8)
    part = results["data"]["drawn"]
    for name in names:
        means = [loss["metrics"][name]["mean"] for loss in part["losses"].values()]
        found = part["differences"]["rambo"]["metrics"][name]["mean"]
        assert found == pytest.approx(means[1] - means[0])
    (row,) = re.findall(r"^\| a .*$", as_text(results), re.M)
    assert "–" not in row
    assert "AP while training" in report(plan, measured, results, tmp_path)


def report(plan, measured, results, folder):
    write_report(plan, measured, results, folder / "report.html")
    return Page((folder / "report.html").read_text()).said


def test_the_report_says_what_differs_and_what_an_interval_covers(tmp_path, catalogs):
    keys = ("SOLVER.BASE_LR", "0.04", "MODEL.RESNETS.DEPTH", "50")
    variants = {"ce": Variant("ce", "ce"), "wide": Variant("wide", "rambo", keys)}
    found = evaluated(tmp_path / "keys", {"ce": [True], "wide": [True]}, variants=variants)
    said = report(*found, tmp_path)
    assert "and the settings listed below; but for these, model, starting weights" in said
    assert f"wide RaMBO {' '.join(keys)} " in said
    assert "where there are several, the seeds (by Student’s t)" in said
    found = evaluated(tmp_path / "none", {"ce": [True, True], "rambo": [True, True]}, name="again")
    said = report(*found, tmp_path)
    assert "while it learns: model, starting weights" in said and "settings listed" not in said
    assert "and the seeds (by Student’s t)." in said


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_test_image_gives_no_interval_and_no_verdict(seeds, tmp_path, catalogs):
    finds = {"ce": [False] * seeds, "rambo": [True] * seeds}
    found = evaluated(tmp_path / "one", finds, images=1)
    values = found[2]["data"]["drawn"]["differences"]["rambo"]["metrics"]
    assert values["AP"]["mean"] > 0
    assert all(v["low"] is None and v["high"] is None for v in values.values())
    for said in (report(*found, tmp_path), as_text(found[2])):
        assert "one test image cannot tell whether that holds for others" in said
        assert "95 % interval" not in said and "explains" not in said
        assert "no finished seed" not in said


def test_few_test_images_are_cautioned_of(tmp_path, catalogs):
    for images, name in ((9, "few"), (10, "enough")):
        found = evaluated(tmp_path / name, {"ce": [True]}, name=name, images=images)
        for said in (report(*found, tmp_path), as_text(found[2])):
            assert ("There are only 9 test images" in said) == (images == 9)


def test_a_report_on_images_that_were_trained_on_says_so(tmp_path, catalogs):
    plan, measured, results = evaluated(tmp_path, {"ce": [True], "rambo": [True]})
    assert "measured on images that they have not seen" in report(plan, measured, results, tmp_path)
    plan = replace(plan, trained_on={"drawn": 3})
    results = compare(plan, measured, "rambo-compare", 100)
    said = report(plan, measured, results, tmp_path)
    assert "not seen" not in said and "of which 3 were trained on too" in said
    for text in (said, as_text(results)):
        assert "3 images are both trained on and tested on" in text


def test_a_picture_shows_the_seed_in_which_the_losses_differ(tmp_path, catalogs):
    found = evaluated(tmp_path, {"ce": [True, False], "rambo": [True, True]})
    said = report(*found, tmp_path)
    (heading, *_) = re.findall(r"AP50 is (\d+) higher with (\w+), seed (\d): (\w+\.png)", said)
    assert int(heading[0]) > 50 and heading[1:3] == ("RaMBO", "1")
    numbers = re.findall(r"AP50 is (\S+) higher", said)
    assert numbers and "0" not in numbers
    # On all images the other way there is nothing to show.
    assert not re.search("higher with cross entropy", said)


@pytest.mark.filterwarnings("error:Glyph", "error:Matplotlib currently")
def test_letters_that_the_font_lacks_are_no_warning(tmp_path, catalogs):
    finds = {"ce": [False], "rambo": [True]}
    assert "细胞" in report(*evaluated(tmp_path, finds, ("细胞", "கலம்")), tmp_path)


@pytest.mark.parametrize("keep", ["last", "none"])
def test_two_comparisons_in_one_folder_do_each_run_once(keep, tmp_path):
    """Whichever comes second waits for the first, and finds what that has finished."""
    script = (
        'echo started >> "$0/log"; echo \'{"iteration": 1}\' >> "$0/metrics.json"; '
        "touch $0/model_{0000499,best,final}.pth $0/last_checkpoint; sleep 0.5"
    )
    folders = [tmp_path / "a", tmp_path / "b"]
    runs = [
        Run("drawn", "ce", 0, f, ("bash", "-c", script, str(f)), {"SOLVER.MAX_ITER": 2}, 2)
        for f in folders
    ]

    def compare_there():
        with alone_in(tmp_path) as lock:
            return run_all(runs, 1, 1, keep, lock)

    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(compare_there) for _ in range(2)]
        for end in as_completed(ends):
            assert end.result() == []
            assert [read_record(f)["status"] for f in folders] == ["finished"] * 2
    for f in folders:
        assert (f / "log").read_text() == "started\n"
        left = {file.name for file in f.glob("*") if "model" in file.name or "last" in file.name}
        last = {"last_checkpoint", "model_best.pth", "model_final.pth"}
        assert left == (last if keep == "last" else set())
    other = replace(runs[0], settings={"SOLVER.MAX_ITER": 3})
    with pytest.raises(InputError, match="was made with SOLVER.MAX_ITER 2, now it is 3"):
        run_all([other], 1, 1)


def test_other_settings_are_refused(comparison, catalogs, capsys):
    before = (comparison.out / "results.json").read_bytes()
    assert main(comparison.command("SOLVER.BASE_LR", "0.5")[2:]) == 2
    assert re.fullmatch(
        r"error: \S+seed0 was made with SOLVER.BASE_LR 0.04, now it is 0.5: .*\n",
        capsys.readouterr().err,
    )
    assert (comparison.out / "results.json").read_bytes() == before


def test_fewer_losses_leave_the_results_of_the_larger_comparison(comparison, catalogs, capsys):
    out, names = comparison.out, ("results.json", "report.html")
    before = [(out / name).read_bytes() for name in names]
    (out / "report.1.html").touch()
    assert main(comparison.command(losses=("--losses", "ce"))[2:]) == 0
    assert "is kept: results.2.json, report.2.html\n" in capsys.readouterr().out
    kept = [out / "results.2.json", out / "report.2.html"]
    assert [file.read_bytes() for file in kept] == before
    assert len(comparison.results()["runs"]) == 1
    forget("drawn_train", "drawn_val")
    assert main(comparison.command()[2:]) == 0  # it has what was there, and replaces it
    assert "is kept" not in capsys.readouterr().out
    assert len(comparison.results()["runs"]) == 2 and not (out / "results.3.json").exists()
    for file in (*kept, out / "report.1.html"):
        file.unlink()


def forget(*names):
    """So that another command registers these data sets again."""
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove(name)


def test_a_finished_run_that_lacks_files_is_named_with_what_to_do(comparison, catalogs, capsys):
    folder = comparison.folder("ce")
    aside, detections = folder / "aside", "inference/coco_instances_results.json"
    for name in ("metrics.json", "compare.json", "inference", detections):
        file = folder / name
        file.rename(aside)
        if name in ("compare.json", detections):
            file.touch()
        try:
            assert main(comparison.command()[2:]) == 2
        finally:
            aside.rename(file)
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {folder}: {name.partition('/')[0]}"), error
        assert error.endswith(": remove this folder, and the same command trains it again")
        forget("drawn_train", "drawn_val")


def test_a_full_disk_is_one_line(comparison, catalogs, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        assert main(comparison.command()[2:]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert error == "error: [Errno 27] File too large: make room; the same command goes on\n"


def test_a_run_that_fails_leaves_the_others(comparison, catalogs, capsys):
    losses = ["--losses", "ce", "--variant", "bad=ce SOLVER.BASE_LR 1e30"]
    assert main(comparison.command(losses=losses)[2:]) == 1
    printed = capsys.readouterr()
    assert "FAILED drawn, bad, seed 0: FloatingPointError" in printed.out
    assert printed.err.startswith("error: 1 of 2 runs failed: ")
    results = comparison.results()
    assert [run["status"] for run in results["runs"]] == ["finished", "failed"]
    assert results["data"]["drawn"]["losses"]["ce"]["seeds"] == [0]
    assert "1 of 2 trainings failed" in " ".join(
        (comparison.out / "report.html").read_text().split()
    )


def test_the_digest_is_of_the_cpp_too(monkeypatch, tmp_path):
    package = tmp_path / "rambo_det"
    shutil.copytree(
        Path(rambo_det.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(rambo_det, "__file__", str(package / "__init__.py"))
    before = source_digest()
    with open(package / "losses/binning/binning.cpp", "a") as file:
        file.write("// changed\n")
    assert source_digest() != before


def test_many_variants_leave_the_best_in_the_plots():
    assert shown_losses({n: float(i) for i, n in enumerate("abcdefgh")}) == list("adefgh")


def test_a_training_has_the_threads_that_were_asked_for(tmp_path):
    script = 'echo $OMP_NUM_THREADS $MKL_NUM_THREADS > "$0/threads"'
    run = Run("drawn", "ce", 0, tmp_path / "a", ("bash", "-c", script, str(tmp_path / "a")), {}, 2)
    assert run_all([run], 1, 3) == []
    assert (tmp_path / "a" / "threads").read_text() == "3 3\n"
