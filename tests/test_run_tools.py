"""tools/summarize.py and tools/make_figure.py on a finished run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

pytest.importorskip("detectron2")

REPOSITORY = Path(__file__).resolve().parents[1]


def tool(name, *args):
    return subprocess.run(
        [sys.executable, f"tools/{name}", *map(str, args)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def data(finished_run):
    return [
        "--register-coco", "own_train", f"{finished_run}/train.json", f"{finished_run}/train",
        "--register-coco", "own_val", f"{finished_run}/val.json", f"{finished_run}/val",
    ]  # fmt: skip


@pytest.fixture
def run(finished_run):
    return finished_run / "out"


def test_summary_of_runs(run, tmp_path):
    done = tool("summarize.py", "--out", tmp_path / "r.json", f"ap={run}", f"again={run}")
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "r.json").read_text())
    ap = runs["ap"][0]["bbox/AP"]
    assert runs["ap"][0]["seed"] == 3
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
    shutil.copytree(run, folder)
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
        (["{no data.json}"], "data set own_val is not registered: name it with --register-coco"),
        (["--register-coco", "own_val", "none.json", "."], "none.json"),
        (["--images", "3", "{data}"], "--images 3: those of own_val are 0 to 2"),
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
    folder = run
    if words == ["{no data.json}"]:
        words, folder = [], shutil.copytree(run, tmp_path / "out")
        (folder / "data.json").unlink()
    words = [str(folder) if word == "{run}" else word for word in words]
    assert make_figure(["--run", str(folder), "--out", str(tmp_path / "f.png"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error
