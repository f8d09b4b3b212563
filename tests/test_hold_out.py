"""--hold-out, which sets training images aside, and the loss weight for tuning."""

import json
import shutil
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from rambo_det.cli.train import main
from rambo_det.data import hold_out, register_datasets
from rambo_det.data.drawing import CLASSES
from rambo_det.data.source import choose_held_out
from rambo_det.engine.run_data import read_data, write_data
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

from .architectures import training_losses
from .forked import run_together
from .models import QUICKSTART, THIN, small_cfg, training_inputs, write_coco, write_voc

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
    assert hold_out(["all", "all"], 4) == [[fit, fit], [held]], "each image twice"
    hold_out(["all"], 2)
    assert len(files(held)) == 5, "another number is another split"


def test_images_that_a_loader_leaves_out_are_in_no_part(tmp_path):
    file, images = write_coco(tmp_path, 10)
    content = json.loads(Path(file).read_text())
    for box in content["annotations"]:
        del box["iscrowd"]  # Detectron2 does not need it
    Path(file).write_text(json.dumps(content))
    load = partial(load_coco_json, str(file), str(images), "few")
    DatasetCatalog.register("few", lambda: load()[:4])
    MetadataCatalog.get("few").set(json_file=str(file), image_root=str(images))
    (fit,), (held,) = hold_out(["few"], 2)
    assert files(fit) | files(held) == files("few") and len(files(held)) == 2


def test_a_voc_folder_is_evaluated_on_the_part_alone(tmp_path):
    objects = {f"i{k}": [("cat", (1, 1, 20, 20), k % 2)] for k in range(6)}
    write_voc(tmp_path, "train", objects)
    register_datasets(voc=[("v", tmp_path, "train")])
    _, (held,) = hold_out(["v"], 2)
    metadata = MetadataCatalog.get(held)
    assert metadata.get("dirname") is None, "VOC's evaluator would read all images' objects"
    marks = {a["difficult"] for r in DatasetCatalog.get(held) for a in r["annotations"]}
    assert marks <= {0, 1} and len(files(held)) == 3


def split(file, images, how):
    """Splits data by a share, as ``--split`` does, or one of N images, as ``--hold-out N`` does."""
    share = how if isinstance(how, float) else None
    register_datasets(coco=[("own", file, images)], classes=CLASSES, split=share)
    if share is None:
        hold_out(["own"], how)


@pytest.mark.parametrize(
    "how, message",
    [(number, "--hold-out N .* must be >= 2") for number in (0, 1)]
    + [(share, "--split must be a share between 0 and 1") for share in (0.0, 1.0, -0.2, 20.0)]
    + [(99, "--hold-out 99 leaves no box in own_heldout")]
    + [(0.9, "--split 0.9 leaves no box in own_train")],
)
def test_what_cannot_be_split_is_named(how, message, tmp_path):
    with pytest.raises(InputError, match=message):
        split(*write_coco(tmp_path, 3), how)
    assert not {"own_fit", "own_train"} & set(DatasetCatalog.list())


@pytest.mark.parametrize("how, names", [(0.2, ("train", "val")), (6, ("fit", "heldout"))])
@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("crowds", [False, True])
def test_each_part_needs_a_box_that_is_no_crowd(how, names, empty, crowds, tmp_path):
    file, images = write_coco(tmp_path, 6)
    content = json.loads(Path(file).read_text())
    aside = choose_held_out(content["images"], 1)
    kept = []
    for annotation in content["annotations"]:
        if (annotation["image_id"] in aside) != bool(empty):
            kept.append(annotation)
        elif crowds:
            kept.append({**annotation, "iscrowd": 1})
    Path(file).write_text(json.dumps({**content, "annotations": kept}))
    with pytest.raises(InputError, match=f"leaves no box in own_{names[empty]}"):
        split(file, images, how)


def tool(folder, name, *arguments):
    """Runs a tool in a new process, without registered datasets, and returns what it prints."""
    cache = {"RAMBO_DET_CACHE": str(folder / "cache")}
    (printed,) = run_together(folder, [[f"tools/{name}", *arguments]], [cache])
    return printed


def test_a_training_is_evaluated_on_what_was_set_aside(tmp_path, capsys):
    file, images = write_coco(tmp_path, 6)
    out = tmp_path / "out"
    words = ["--config", QUICKSTART, "--register-coco", "own", file, images, "--hold-out", "3"]
    words += ["DATASETS.TRAIN", "('own',)", *THIN, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", out]
    assert main(list(map(str, words))) == 0
    found = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    held_out = {record["image_id"] for record in DatasetCatalog.get("own_heldout")}
    assert found and {item["image_id"] for item in found} <= held_out
    assert "own_heldout" in (out / "config.yaml").read_text()
    # The other tools find the held-out images through the run's folder alone.
    ranking = out / "ranking" / "ranking.json"
    for name, flags in (("own_heldout", []), ("own_fit", ["--dataset", "own_fit", "--overwrite"])):
        tool(tmp_path, "visualize_ranking.py", "--run", out, *flags)
        assert json.loads(ranking.read_text())["dataset"] == name
    evaluated = tool(tmp_path, "train_net.py", "--eval-only", *words)
    assert "checkpoint: " in evaluated
    assert json.loads((out / "inference" / "coco_instances_results.json").read_text()) == found
    shutil.rmtree(out)
    words[words.index("3")] = "no"
    assert main(list(map(str, words))) == 2
    assert "--hold-out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["faster_rcnn_ce", "faster_rcnn_rambo", "retinanet_focal"])
def test_the_weight_is_of_the_classification_loss_alone(name):
    losses = []
    for weight in (1.0, 3.0):
        cfg = small_cfg(f"quickstart/{name}.yaml", "RAMBO_TRAIN.CLS_WEIGHT", weight)
        torch.manual_seed(0)
        model = RamboTrainer.build_model(cfg)
        losses.append(training_losses(model)[0])
        with torch.no_grad():
            assert "instances" in model.eval()(training_inputs())[0]
    for key, value in losses[0].items():
        wanted = value.item() * (3 if key == "loss_cls" else 1)
        assert losses[1][key].item() == pytest.approx(wanted, rel=1e-6)


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
