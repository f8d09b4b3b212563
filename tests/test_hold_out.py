"""--hold-out: training images that are set aside, and the loss weight that goes with tuning."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from rambo_det.cli.train import main
from rambo_det.data import hold_out, register_datasets
from rambo_det.engine.folder import read_data, write_data
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

from .forked import run_together
from .models import THIN, small_cfg, training_inputs, write_coco, write_voc

pytestmark = pytest.mark.usefixtures("catalogs")


def files(name):
    return {record["file_name"] for record in DatasetCatalog.get(name)}


def test_every_image_is_in_one_part_with_its_boxes(tmp_path):
    register_datasets(coco=[("all", *write_coco(tmp_path, 10))])
    (fit,), (held,) = hold_out(["all"], 4)
    assert (fit, held) == ("all_fit", "all_heldout")
    assert files(fit) | files(held) == files("all") and not files(fit) & files(held)
    assert (len(files(fit)), len(files(held))) == (8, 2)
    whole = {r["file_name"]: len(r["annotations"]) for r in DatasetCatalog.get("all")}
    for part in (fit, held):
        boxes = {r["file_name"]: len(r["annotations"]) for r in DatasetCatalog.get(part)}
        assert boxes.items() <= whole.items()
        assert MetadataCatalog.get(part).thing_classes == MetadataCatalog.get("all").thing_classes
        truth = json.loads(Path(MetadataCatalog.get(part).json_file).read_text())
        assert len(truth["images"]) == len(files(part))
        there = {image["id"] for image in truth["images"]}
        assert {box["image_id"] for box in truth["annotations"]} <= there
    assert hold_out(["all"], 4) == [[fit], [held]], "asked for again"
    hold_out(["all"], 2)
    assert len(files(held)) == 5, "another number is another split"


def test_a_voc_folder_is_evaluated_on_the_part_alone(tmp_path):
    objects = {f"i{k}": [("cat", (1, 1, 20, 20), k % 2)] for k in range(6)}
    write_voc(tmp_path, "train", objects)
    register_datasets(voc=[("v", tmp_path, "train")])
    _, (held,) = hold_out(["v"], 2)
    metadata = MetadataCatalog.get(held)
    assert metadata.get("dirname") is None, "VOC's evaluator would read all images' objects"
    marks = {a["difficult"] for r in DatasetCatalog.get(held) for a in r["annotations"]}
    assert marks <= {0, 1} and len(files(held)) == 3


@pytest.mark.parametrize(
    ("number", "message"), [(1, "must be >= 2"), (0, "must be >= 2"), (99, "would have no box")]
)
def test_what_cannot_be_split_is_named(number, message, tmp_path):
    register_datasets(coco=[("all", *write_coco(tmp_path, 3))])
    with pytest.raises(InputError, match=message):
        hold_out(["all"], number)
    assert "all_fit" not in DatasetCatalog.list()


def tool(folder, name, *arguments):
    """What a tool prints, in a process of its own, which has registered nothing yet."""
    output = folder / "printed.txt"
    output.unlink(missing_ok=True)
    cache = {"RAMBO_DET_CACHE": str(folder / "cache")}
    (printed,) = run_together([[f"tools/{name}", *arguments]], [output], [cache])
    return printed


def ranking_of(run):
    return json.loads((run / "ranking" / "ranking.json").read_text())


def test_a_training_is_evaluated_on_what_was_set_aside(tmp_path, capsys):
    file, images = write_coco(tmp_path, 6)
    out = tmp_path / "out"
    words = ["--config", "configs/quickstart/faster_rcnn_rambo.yaml", "--register-coco", "own",
             file, images, "--hold-out", "3", "DATASETS.TRAIN", "('own',)", *THIN,
             "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", out]  # fmt: skip
    assert main(list(map(str, words))) == 0
    found = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    assert {item["image_id"] for item in found} <= {
        record["image_id"] for record in DatasetCatalog.get("own_heldout")
    }
    assert "own_heldout" in (out / "config.yaml").read_text()
    # The other tools find it by the run's folder alone.
    assert "| mean or sum" in tool(tmp_path, "visualize_ranking.py", "--run", out)
    assert ranking_of(out)["dataset"] == "own_heldout" and ranking_of(out)["classes"]
    tool(tmp_path, "visualize_ranking.py", "--run", out, "--dataset", "own_fit", "--overwrite")
    assert ranking_of(out)["dataset"] == "own_fit"
    tool(tmp_path, "predict.py", images, "--run", out, "--output", tmp_path / "predictions")
    evaluated = tool(tmp_path, "train_net.py", "--eval-only", *words)
    assert "checkpoint: " in evaluated
    assert json.loads((out / "inference" / "coco_instances_results.json").read_text()) == found
    shutil.rmtree(out)
    words[words.index("3")] = "no"
    assert main(list(map(str, words))) == 2
    assert "--hold-out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["faster_rcnn_ce", "faster_rcnn_rambo", "retinanet_focal"])
def test_the_weight_is_of_the_classification_loss_alone(name):
    inputs, losses = training_inputs(), []
    for weight in (1.0, 3.0):
        cfg = small_cfg(f"quickstart/{name}.yaml", "RAMBO_TRAIN.CLS_WEIGHT", weight)
        torch.manual_seed(0)
        model = RamboTrainer.build_model(cfg)
        torch.manual_seed(1)
        with EventStorage():
            losses.append({k: v.item() for k, v in model(inputs).items()})
        model.eval()
        with torch.no_grad():
            assert "instances" in model(inputs)[0]
    for key, value in losses[0].items():
        assert losses[1][key] == pytest.approx(value * (3 if key == "loss_cls" else 1), rel=1e-6)


def test_where_the_data_are_is_noted_down_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = [
        ["coco", "a", str(tmp_path / "train.json"), str(tmp_path / "train")],
        ["voc", "v", str(tmp_path / "voc"), "train"],
        ["yolo", "y", str(tmp_path / "data.yaml"), "train"],
    ]
    given = [[word.removeprefix(f"{tmp_path}/") for word in item] for item in known]
    imports = ["mine.py", "my_package"]
    args = Namespace(register=given, split=None, hold_out=None, imports=imports)
    write_data(str(tmp_path), args, ["rambo_shapes_train"], [])
    data = read_data(tmp_path)
    assert data.register == known
    assert data.imports == [str(tmp_path / "mine.py"), "my_package"]
