"""tools/compare.py as a user runs it: real trainings of a very small detector."""

import contextlib
import html
import json
import math
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

import rambo_det
from rambo_det.cli.compare import main
from rambo_det.compare import figures, pictures
from rambo_det.compare.plan import Plan, Run
from rambo_det.compare.report import shown_losses, write_report
from rambo_det.compare.results import compare, ground_truth_of, measure, write_results
from rambo_det.compare.run import folder_lock, read_record, run_all, source_digest, write_record
from rambo_det.compare.specs import Variant
from rambo_det.compare.text import as_text
from rambo_det.data import register_datasets
from rambo_det.errors import InputError
from rambo_det.evaluation.matches import find_matches

from .command_line import call, disk_full, refused
from .detections import result, truth_of
from .forked import background, wait_until
from .models import QUICKSTART, THIN, write_coco


class Comparison:
    """The folder of a comparison, and the command that fills the folder."""

    def __init__(self, folder):
        self.out = folder / "out"
        sets = [write_coco(folder, number, split) for number, split in ((6, "train"), (5, "val"))]
        self._data = "drawn=coco:" + ":".join(":".join(item) for item in sets)
        self._cache = str(folder / "cache")

    def words(self, *keys, losses=("--losses", "ce,rambo")):
        return [
            "--data", self._data, "--out", str(self.out), "--config", QUICKSTART, *losses,
            "--seeds", "1", "--threads", "1", "--bootstrap", "200", *keys, *THIN,
            "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2",
        ]  # fmt: skip

    def start(self):
        cache = {"OMP_NUM_THREADS": "1", "RAMBO_DET_CACHE": self._cache}
        return background("tools/compare.py", *self.words(), **cache)

    def main(self, *keys, **losses):
        """Runs the command in this process and returns its exit status."""
        return call(main, *self.words(*keys, **losses))

    def folder(self, variant):
        return self.out / "runs" / "drawn" / variant / "seed0"

    def metrics(self, variant):
        return [json.loads(line) for line in (self.folder(variant) / "metrics.json").open()]

    def results(self):
        return json.loads((self.out / "results.json").read_text())


def process_of(folder):
    """Returns the process id of the training whose OUTPUT_DIR is the folder, or None."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended
            if f"OUTPUT_DIR\0{folder}\0".encode() in file.read_bytes():
                return int(file.parent.name)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Returns a comparison that was killed during its second training and started again."""
    made = Comparison(tmp_path_factory.mktemp("compare"))
    process = made.start()
    wait_until(lambda: process_of(made.folder("rambo")), process)
    orphan = process_of(made.folder("rambo"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    made.killed = [read_record(made.folder(name))["status"] for name in ("ce", "rambo")]
    made.first = (made.folder("ce") / "metrics.json").stat().st_mtime_ns
    # The training survives. It is paused until the new comparison waits for it.
    os.kill(orphan, signal.SIGSTOP)
    with made.start() as again:
        lines = []
        for line in again.stdout:
            lines.append(line)
            if "waiting for another comparison, or its trainings, in" in line:
                os.kill(orphan, signal.SIGCONT)
        made.again = "".join(lines)
    assert again.returncode == 0, made.again
    return made


def test_a_killed_comparison_goes_on(comparison):
    assert comparison.killed == ["finished", "started"]
    again = comparison.again
    assert "1 of 2 runs are already finished" in again
    assert "drawn, ce" not in again  # not trained again
    # The new comparison waits for the surviving training and does not train beside it.
    assert "waiting for another comparison, or its trainings, in" in again
    assert (comparison.folder("ce") / "metrics.json").stat().st_mtime_ns == comparison.first
    assert read_record(comparison.folder("rambo"))["status"] == "finished"
    steps = [x["iteration"] for x in comparison.metrics("rambo") if "total_loss" in x]
    assert steps and steps == sorted(set(steps))  # one process at a time wrote there


def test_results_are_those_of_the_runs(comparison):
    results = comparison.results()
    assert [run["variant"] for run in results["runs"]] == ["ce", "rambo"]
    for run in results["runs"]:
        logged = [line for line in comparison.metrics(run["variant"]) if "bbox/AP" in line][-1]
        for name in ("AP", "AP50", "AP75", "AP-circle"):
            expected = np.nan_to_num(logged.get(f"bbox/{name}", 0))  # NaN: nothing is detected
            assert run["metrics"][name] == pytest.approx(expected)
        assert run["command"][1:3] == ["-m", "rambo_det.cli.train"]
        assert 0 <= run["metrics"]["ECE"] <= 100 and run["source"]
        # A comparison calibrates the scores of each loss at the end of its training.
        assert run["metrics"]["ECE calibrated"] < run["metrics"]["ECE"]
    losses = results["data"]["drawn"]["losses"].values()
    ce, rambo = (loss["metrics"]["AP50"]["mean"] for loss in losses)
    found = results["data"]["drawn"]["differences"]["rambo"]["metrics"]["AP50"]
    assert found["mean"] == pytest.approx(rambo - ce, abs=1e-6)
    assert found["low"] <= found["high"]
    assert {"torch", "detectron2", "rambo_det"} <= results["versions"].keys()


def said_by(file):
    """Returns the text of an HTML page."""
    text = html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", file.read_text(), flags=re.S))
    return " ".join(text.split())


def test_the_report_needs_nothing_else_and_says_what_was_found(comparison):
    file = comparison.out / "report.html"
    sources = re.findall(r'(?:src|href)="([^"]*)"', file.read_text())
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", file.read_text())
    expected = ["cross entropy or RaMBO?", "95 % interval of the difference", "circle", "ECE"]
    expected += ["Precision and recall", "Scores of right and wrong"]
    expected += ["Scores as probabilities", "rambo_det.cli.train"]
    said = said_by(file)
    for words in [*expected, comparison.results()["versions"]["torch"]]:
        assert words in said, words
    # Plots: intervals, precision-recall curves, scores, calibration. The plot of AP over training
    # needs several evaluations.
    assert sum("svg+xml" in source for source in sources) == 4
    assert "AP while training" not in said


def evaluated(folder, finds, labels="ab", variants=None, images=12, trained_on=0, calibrated=()):
    """Returns measured runs, results, text and report of a comparison, without any training.

    ``finds``: variant -> for each seed, whether the detector finds the objects or nothing.
    ``calibrated``: variants with calibrated scores, which are the squares of the raw scores.
    """
    file, pictures = write_coco(folder, images, "val")
    content = json.loads(Path(file).read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(labels, 1)]
    for annotation in content["annotations"]:
        annotation["category_id"] = annotation["category_id"] % len(labels) + 1
    Path(file).write_text(json.dumps(content))
    register_datasets([("set", file, pictures)])
    annotations = json.loads(Path(MetadataCatalog.get("set").json_file).read_text())["annotations"]
    rng, runs = np.random.default_rng(0), []
    settings = {"SOLVER.MAX_ITER": 10}
    for variant, seeds in finds.items():
        for seed, found in enumerate(seeds):
            run = Run("drawn", variant, seed, folder / f"{variant}{seed}", ("x",), settings)
            write_record(run.folder, status="finished", settings={}, source="0", command=["x"])
            detections = [
                {**x, "bbox": [*np.add(x["bbox"], rng.normal(0, 1, 4))], "score": rng.random()}
                for x in (annotations if found else ())
            ]
            squares = [{**x, "score": x["score"] ** 2} for x in detections]
            for place, there in ((".", detections), ("calibrated", squares)):
                if place == "." or variant in calibrated:
                    results = run.folder / place / "inference" / "coco_instances_results.json"
                    results.parent.mkdir(parents=True)
                    results.write_text(json.dumps(there))
            metrics = {"time": 6.0, "bbox/AP": 50.0 if found else math.nan}  # as Detectron2 logs it
            lines = [json.dumps({"iteration": i, **metrics}) for i in (4, 7)]
            (run.folder / "metrics.json").write_text("\n".join(lines))
            runs.append(run)
    variants = variants or {loss: Variant(loss, loss) for loss in finds}
    plan = Plan(variants, {"drawn": "set"}, runs, {"drawn": trained_on})
    measured = [measure(plan, run) for run in plan.runs]
    results = compare(plan, measured, "rambo-compare", 100)
    write_report(plan, measured, results, folder / "report.html")
    return measured, results, as_text(results), said_by(folder / "report.html")


@pytest.mark.parametrize(("ce", "labels"), [([False, False], ("a", "b")), ([False, True], ("a",))])
def test_a_run_that_detects_nothing_has_an_ap_of_0(ce, labels, tmp_path, catalogs):
    finds = {"ce": ce, "rambo": [True, True]}
    measured, results, text, said = evaluated(tmp_path, finds, labels)
    names = ("AP", "AP50", "AP75", *(f"AP-{label}" for label in labels))
    for item, found in zip(measured, [*ce, True, True], strict=True):
        assert all((item.result["metrics"][name] > 0) == found for name in names)
        assert [(e["AP"] > 0) == found for e in item.result["evaluations"]] == [True, True]
        # The run ended early, after 8 of 10 planned iterations of 6 s.
        assert item.result["metrics"]["training minutes"] == pytest.approx(0.8)
    part = results["data"]["drawn"]
    for name in names:
        one, other = (loss["metrics"][name]["mean"] for loss in part["losses"].values())
        found = part["differences"]["rambo"]["metrics"][name]["mean"]
        assert found == pytest.approx(other - one)
    (row,) = re.findall(r"^\| a .*$", text, re.M)
    assert "–" not in row
    assert "AP while training" in said


@pytest.mark.parametrize("calibrated", [(), ("rambo",), ("ce", "rambo")])
def test_calibrated_scores_are_measured_where_they_are_there(calibrated, tmp_path, catalogs):
    finds = {"ce": [1], "rambo": [1]}
    measured, results, text, said = evaluated(tmp_path, finds, calibrated=calibrated)
    for item in measured:
        there = item.run.variant in calibrated
        numbers = item.result["metrics"]
        assert numbers["AP calibrated"] == (numbers["AP"] if there else None)
        assert (numbers["ECE calibrated"] not in (None, numbers["ECE"])) == there
    less = results["data"]["drawn"]["differences"]["rambo"]["metrics"]
    assert ("AP calibrated" in less) == (len(calibrated) == 2) == ("\n| AP calibrated" in text)
    assert ("AP calibrated" in said) == bool(calibrated)


KEYS = ("SOLVER.BASE_LR", "0.04", "MODEL.RESNETS.DEPTH", "50")
WIDE = {"ce": Variant("ce", "ce"), "wide": Variant("wide", "rambo", KEYS)}
ONE = "one test image cannot show whether this holds for other images"
SIX = "6 images are in both the training set and the test set"


@pytest.mark.filterwarnings("error:Glyph", "error:Matplotlib currently")
@pytest.mark.parametrize(
    "finds, about, in_both, in_report, in_none",
    [
        ({"ce": [1], "wide": [1]}, {"variants": WIDE}, [],
         ["and in the settings listed below. Model", "schedule are otherwise the same",
          f"wide RaMBO {' '.join(KEYS)} ", "where there are several, the seeds (Student’s t)"],
         [SIX]),
        ({"ce": [1, 1], "rambo": [1, 1]}, {}, ["95 % interval"],
         ["training reduces. Model, initial weights", "schedule are the same",
          "and the seeds (Student’s t).", "tested on images that are not in the training set"],
         ["settings listed", ONE]),
        ({"ce": [0], "rambo": [1]}, {"images": 1}, [ONE], [],
         ["95 % interval", "explains", "No seed is finished"]),
        ({"ce": [0, 0], "rambo": [1, 1]}, {"images": 1}, [ONE], [], ["95 % interval", "explains"]),
        ({"ce": [1]}, {"images": 9}, ["There are only 9 test images"], [], []),
        ({"ce": [1]}, {"images": 10}, [], [], ["There are only"]),
        ({"ce": [1], "rambo": [1]}, {"trained_on": 6}, [SIX],
         ["images, 6 of them also in the training set"], ["that are not in the"]),
        ({"ce": [0], "rambo": [1]}, {"labels": ("细胞", "கலம்")}, ["细胞"], ["கலம்"], []),
    ],
)  # fmt: skip
def test_what_is_said(finds, about, in_both, in_report, in_none, tmp_path, catalogs):
    _, results, text, said = evaluated(tmp_path, finds, **about)
    assert all(words in said for words in in_both + in_report)
    assert all(words in text for words in in_both)
    assert not any(words in said + text for words in in_none)
    if about.get("images") == 1:
        values = results["data"]["drawn"]["differences"]["rambo"]["metrics"]
        assert values["AP"]["mean"] > 0
        assert all(v["low"] is None and v["high"] is None for v in values.values())


def test_a_picture_shows_the_seed_in_which_the_losses_differ(tmp_path, catalogs):
    finds = {"ce": [True, False], "rambo": [True, True]}
    *_, said = evaluated(tmp_path, finds, ("a", "$$ b_"), images=4)  # not a formula
    (heading, *_) = re.findall(r"AP50 is (\d+) higher with (\w+), seed (\d): (\w+\.png)", said)
    assert int(heading[0]) > 50 and heading[1:3] == ("RaMBO", "1")
    numbers = re.findall(r"AP50 is (\S+) higher", said)
    assert numbers and "0" not in numbers
    # Cross entropy is better on no image, so that no picture shows this.
    assert not re.search("higher with cross entropy", said)


def test_right_and_wrong_boxes_differ_in_more_than_their_colour(monkeypatch):
    monkeypatch.setattr(pictures, "_draw", lambda image, boxes, labels, colours: labels)
    found = [result(1, 1, [10, 10, 20, 20], 0.8), result(1, 1, [60, 60, 20, 20], 0.9)]
    matches = find_matches(truth_of([(1, 1, [10, 10, 20, 20], 0)], ("cat",)), found, [0.5])
    assert pictures._detections(None, matches, matches.images[0]) == ["✗ cat 0.90", "✓ cat 0.80"]


def some_runs(classes=1):
    """Returns the runs of a loss, with scores from 0 to 1, for a plot."""
    counted = np.array([0, 1e-9, 0.5, 1, 1]), np.array([False, False, True, True, True])
    objects, curves = np.ones((classes, 2), int), np.ones((classes, 101))
    names = [f"class {k}" for k in range(classes)]
    matches = SimpleNamespace(
        counted=counted, scores=counted[0], positives=objects, curves=curves, classes=names
    )
    return [SimpleNamespace(matches=matches)]


def test_the_plot_of_the_scores_has_all_detections(monkeypatch):
    monkeypatch.setattr(figures, "_save", lambda figure: figure)
    (axis,) = figures.score_distributions({"ce": some_runs()}).axes
    assert sum(steps.get_data().values.sum() for steps in axis.patches) == 5 / 2  # per image


@pytest.mark.parametrize(("classes", "losses"), [(1, 2), (1, 6), (5, 2)])
def test_the_plot_of_precision_and_recall_can_be_read(classes, losses, monkeypatch):
    monkeypatch.setattr(figures, "_save", lambda figure: figure)
    figure = figures.precision_recall({f"loss {i}": some_runs(classes) for i in range(losses)})
    figure.draw_without_rendering()
    (legend,), boxes = figure.legends, [text.get_window_extent() for text in figure.texts]
    assert len(boxes) == 2 and not any(legend.get_window_extent().overlaps(box) for box in boxes)
    assert figure.axes[0].title.get_fontsize() == 9 and not legend.get_frame_on()
    labelled = [axis.xaxis.get_tick_params()["labelbottom"] for axis in figure.axes[:classes]]
    assert labelled == [False] * (classes > 4) + [True] * min(classes, 4)
    lines = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(lines) == losses


def test_data_that_no_run_has_drawn_are_named(catalogs):
    with pytest.raises(InputError, match="drawn: no run has finished"):
        ground_truth_of(Plan({}, {"drawn": "rambo_shapes_val"}, [], {}), "drawn")


def scripted(folder, script, **settings):
    """Returns a run whose training is a bash script; in the script ``$0`` is the run's folder."""
    settings = {"SOLVER.MAX_ITER": 2, **settings}
    return Run("drawn", "ce", 0, folder, ("bash", "-c", script, str(folder)), settings)


@pytest.mark.parametrize("keep", ["last", "none"])
def test_two_comparisons_in_one_folder_do_each_run_once(keep, tmp_path):
    """The second comparison waits for the first and uses the runs that the first finished."""
    script = (
        'echo started $OMP_NUM_THREADS $MKL_NUM_THREADS >> "$0/log"; '
        'echo \'{"iteration": 1}\' >> "$0/metrics.json"; '
        "touch $0/model_{0000499,best,final,raw}.pth $0/last_checkpoint; sleep 0.5"
    )
    runs = [scripted(tmp_path / name, script) for name in "ab"]

    def compare_there():
        with folder_lock(tmp_path) as lock:
            return run_all(runs, 1, 3, keep, lock)

    with ThreadPoolExecutor() as pool:
        for end in as_completed([pool.submit(compare_there) for _ in range(2)]):
            assert end.result() == []
            assert [read_record(run.folder)["status"] for run in runs] == ["finished"] * 2
    for run in runs:
        assert (run.folder / "log").read_text() == "started 3 3\n"
        left = {file.name for file in run.folder.glob("*[lt]_*")}
        last = {"last_checkpoint", "model_best.pth", "model_final.pth", "model_raw.pth"}
        assert left == (last if keep == "last" else set())
    other = replace(runs[0], settings={"SOLVER.MAX_ITER": 3})
    with pytest.raises(InputError, match="was trained with SOLVER.MAX_ITER = 2, .* now gives 3"):
        run_all([other], 1, 1)


def test_a_run_that_failed_at_its_start_may_get_other_settings(tmp_path):
    run = scripted(tmp_path / "a", "exit 1")
    assert run_all([run], 1, 1) == [run]
    other = replace(run, settings={"SOLVER.MAX_ITER": 3})
    assert run_all([other], 1, 1) == [other]


@pytest.mark.parametrize("content", ["[]", "no json"])
def test_a_results_json_of_something_else_is_renamed(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    assert write_results(Plan({}, {}, [], {}), {"runs": []}, tmp_path) == ["results.1.json"]
    assert (tmp_path / "results.1.json").read_text() == content
    assert write_results(Plan({}, {}, [], {}), {"runs": []}, tmp_path) == []


def test_other_settings_are_refused(comparison, catalogs, capsys):
    before = (comparison.out / "results.json").read_bytes()
    error = refused(capsys, main, *comparison.words("SOLVER.BASE_LR", "0.5"))
    assert re.search(r"seed0 was trained with SOLVER.BASE_LR = 0.04, but .* now gives 0.5: ", error)
    assert (comparison.out / "results.json").read_bytes() == before


def test_fewer_losses_leave_the_results_of_the_larger_comparison(comparison, catalogs, capsys):
    out, names = comparison.out, ("results.json", "report.html")
    before = [(out / name).read_bytes() for name in names]
    (out / "report.1.html").touch()
    assert comparison.main(losses=("--losses", "ce")) == 0
    assert "renamed them to results.2.json, report.2.html\n" in capsys.readouterr().out
    kept = [out / "results.2.json", out / "report.2.html"]
    assert [file.read_bytes() for file in kept] == before
    assert len(comparison.results()["runs"]) == 1
    assert comparison.main() == 0  # it includes the earlier results and replaces them
    assert "renamed" not in capsys.readouterr().out
    assert len(comparison.results()["runs"]) == 2 and not (out / "results.3.json").exists()


def test_a_finished_run_that_lacks_files_is_named_with_what_to_do(comparison, catalogs, capsys):
    folder = comparison.folder("ce")
    aside, detections = folder / "aside", "inference/coco_instances_results.json"
    for name in ("metrics.json", "compare.json", "inference", detections):
        file = folder / name
        file.rename(aside)
        if name in ("compare.json", detections):
            file.touch()
        try:
            assert comparison.main() == 2
        finally:
            aside.rename(file)
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {folder}: {name.partition('/')[0]}"), error
        assert error.endswith(". Remove this folder; the same command then trains again")


def test_a_full_disk_is_one_line(comparison, catalogs, capsys):
    with disk_full():
        assert comparison.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: [Errno 27] File too large: allow larger files (ulimit -f)")
    assert error.endswith("; repeat the command to continue\n") and error.count("\n") == 1


def test_a_run_that_fails_leaves_the_others(comparison, catalogs, capsys):
    losses = ("--losses", "ce", "--variant", "bad=ce SOLVER.BASE_LR 1e30")
    assert comparison.main(losses=losses) == 1
    printed = capsys.readouterr()
    assert "FAILED drawn, bad, seed 0: FloatingPointError" in printed.out
    assert printed.err.startswith("error: 1 of 2 runs failed: ")
    results = comparison.results()
    assert [run["status"] for run in results["runs"]] == ["finished", "failed"]
    assert results["data"]["drawn"]["losses"]["ce"]["seeds"] == [0]
    assert "1 of 2 trainings failed" in said_by(comparison.out / "report.html")


def test_the_digest_is_of_what_the_code_does_and_of_the_cpp(monkeypatch, tmp_path):
    package = tmp_path / "rambo_det"
    shutil.copytree(Path(rambo_det.__file__).parent, package)
    monkeypatch.setattr(rambo_det, "__file__", str(package / "__init__.py"))
    digests = [source_digest()]
    for name, text in (
        ("losses/rambo_loss.py", '"""Another docstring."""  # and a comment\n'),
        ("losses/rambo_loss.py", "NUMBER = 1\n"),
        ("losses/binning/binning.cpp", "// changed\n"),
    ):
        with open(package / name, "a") as file:
            file.write(text)
        digests.append(source_digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_run_that_is_resumed_with_other_code_has_the_digests_of_both(monkeypatch, tmp_path):
    run = scripted(tmp_path / "run", "exit 1")
    for digest, begun in (("a", False), ("b", True), ("b", True), ("a", False)):
        monkeypatch.setattr("rambo_det.compare.run.source_digest", lambda digest=digest: digest)
        metrics = run.folder / "metrics.json"
        metrics.touch() if begun else metrics.unlink(missing_ok=True)
        assert run_all([run], 1, 1) == [run]
        assert read_record(run.folder)["source"] == ("a, b" if begun else "a")


def test_the_versions_of_the_code_are_counted(tmp_path, catalogs):
    (first, *_), results, text, _ = evaluated(tmp_path, {"ce": [1]})
    assert results["sources"] == ["0"] and "different versions" not in text
    first.result["source"] = "0, 1"
    plan = Plan({"ce": Variant("ce", "ce")}, {"drawn": "set"}, [first.run], {})
    results = compare(plan, [first], "rambo-compare", 100)
    assert results["sources"] == ["0", "1"]
    assert "different versions of the code: 0, 1" in as_text(results)


def test_many_variants_leave_the_best_in_the_plots():
    assert shown_losses({n: float(i) for i, n in enumerate("abcdefgh")}) == list("adefgh")
