"""Keypoints of a user's COCO data: their names, their number, what is refused."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices

from rambo_det.cli.compare import parse_args as parse_compare
from rambo_det.cli.compare import plan_of
from rambo_det.cli.train import main, parse_args
from rambo_det.data import register_datasets
from rambo_det.engine.lazy import load_lazy_config
from rambo_det.engine.setup import build_config
from rambo_det.errors import InputError

from .architectures import ARCHITECTURES
from .models import QUICKSTART, write_coco

pytestmark = pytest.mark.usefixtures("catalogs")

POINTS = ["nose", "left_ear", "right_ear", "left_tail"]
SIGMAS = ["TEST.KEYPOINT_OKS_SIGMAS", "(0.05, 0.05, 0.05, 0.05)"]


def with_points(folder, points=POINTS, each=4, **fields):
    """Returns a drawn dataset whose objects have ``each`` keypoints, one of them not visible."""
    file, images = write_coco(folder, 2)
    content = read(file)
    for category in content["categories"]:
        category["keypoints"] = points
    for annotation in content["annotations"]:
        x, y = annotation["bbox"][:2]
        annotation["keypoints"] = [x, y, 2] * (each - 1) + [0, 0, 0]
        annotation.update(fields)
    Path(file).write_text(json.dumps(content))
    return file, images


def read(file):
    return json.loads(Path(file).read_text())


def config(file, images, *opts, name="points"):
    return build_config(parse_args([
        "--config", QUICKSTART, "--register-coco", name, str(file), str(images),
        "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)",
        "MODEL.KEYPOINT_ON", "True", *opts,
    ]))  # fmt: skip


def test_names_number_and_mirror_images_are_those_of_the_json(tmp_path):
    places = with_points(tmp_path)
    cfg = config(*places, *SIGMAS)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 4
    metadata = MetadataCatalog.get("points")
    assert metadata.keypoint_names == POINTS
    # left_tail has no right_tail.
    assert list(create_keypoint_hflip_indices(["points"])) == [0, 2, 1, 3]
    DatasetCatalog.remove("points")
    words = ["--config", "configs/lazy/retinanet_rambo.py", "--register-coco", "points"]
    words += [*map(str, places), "dataloader.train.mapper.use_keypoint=True"]
    words += [f"dataloader.{split}.dataset.names=points" for split in ("train", "test")]
    words += ["dataloader.train.mapper.keypoint_hflip_indices=[0,1]"]
    mapper = load_lazy_config(parse_args(words, lazy=True)).dataloader.train.mapper
    assert list(mapper.keypoint_hflip_indices) == [0, 2, 1, 3]
    counted = read(metadata.json_file)["annotations"]
    assert counted and all(annotation["num_keypoints"] == 3 for annotation in counted)


@pytest.mark.parametrize("empty", [[], None, ...])
def test_a_count_that_is_there_is_kept_and_an_object_without_points_has_none(tmp_path, empty):
    file, images = with_points(tmp_path, num_keypoints=1)
    content = read(file)
    first = content["annotations"][0]
    del first["num_keypoints"], first["keypoints"]
    if empty is not ...:
        first["keypoints"] = empty
    Path(file).write_text(json.dumps(content))
    config(file, images, *SIGMAS)
    first, *others = read(MetadataCatalog.get("points").json_file)["annotations"]
    assert first["keypoints"] == [0] * 12 and first["num_keypoints"] == 0
    assert others and all(annotation["num_keypoints"] == 1 for annotation in others)


@pytest.mark.parametrize(
    "points, each, fields, message",
    [
        ("nose", 4, {}, r"categories\[0\]: 'keypoints' must be a list of names, not 'nose'"),
        (["nose", "nose"], 2, {}, r"categories\[0\]: 'keypoints' has a name twice: nose, nose"),
        (POINTS, 3, {}, r"annotations\[0\]: 'keypoints' must be 12 numbers"),
        (POINTS, 4, {"keypoints": ["a", 1, 2] * 4}, r"annotations\[0\]: 'keypoints' must be 12"),
    ],
)
def test_points_that_do_not_fit_are_named(tmp_path, points, each, fields, message):
    files = with_points(tmp_path, points, each, **fields)
    with pytest.raises(InputError, match=f"KEYPOINT_ON is True, but .*{message}"):
        config(*files, *SIGMAS)
    # A dataset of boxes ignores these keypoints.
    boxes = register_datasets([("boxes", *files)])
    assert boxes and MetadataCatalog.get("boxes").get("keypoint_names") is None
    assert not any("keypoints" in a for r in DatasetCatalog.get("boxes") for a in r["annotations"])


@pytest.mark.parametrize(
    "one, other, is_pair",
    [
        ("left_eye", "right_eye", True),
        ("Left_Eye", "Right_eye", True),
        ("RIGHT EYE", "LEFT EYE", True),
        ("leftEye", "RightEye", True),
        ("EYE_LEFT", "EYE_RIGHT", True),
        ("l_eye", "r_eye", True),
        ("eye.L", "eye.R", True),
        ("LEye", "REye", True),
        ("L_eye", "chin", False),
        ("tail", "rail", False),
        ("left_eye", "right_toe", False),
    ],
)
def test_left_and_right_are_paired_in_whatever_case(tmp_path, one, other, is_pair):
    names = ["left_ear", one, other, "right_ear"]
    register_datasets([("points", *with_points(tmp_path, names))])
    wanted = [3, 2, 1, 0] if is_pair else [3, 1, 2, 0]
    assert list(create_keypoint_hflip_indices(["points"])) == wanted


def test_an_object_with_a_point_outside_its_image_is_drawn_first(tmp_path, warnings):
    file, images = with_points(tmp_path)
    content = read(file)
    second = content["annotations"][-1]
    second["keypoints"][0] = 1000
    Path(file).write_text(json.dumps(content))
    register_datasets([("points", file, images)])
    assert any("1 object(s) have visible keypoints outside" in line for line in warnings())
    assert MetadataCatalog.get("points").flagged_images == [second["image_id"]]


def test_what_a_model_with_points_needs(tmp_path):
    with pytest.raises(InputError, match="KEYPOINT_ON is True, but points has no keypoints"):
        config(*write_coco(tmp_path / "none", 2))
    unseen = with_points(tmp_path / "unseen", keypoints=[0] * 12)
    with pytest.raises(InputError, match="no object has a visible keypoint"):
        config(*unseen, *SIGMAS, name="unseen")
    metadata = MetadataCatalog.get("unseen")
    assert metadata.get("keypoint_names") is None, "names of keypoints that cannot be used"
    assert not any("keypoints" in a for a in read(metadata.json_file)["annotations"])
    file, images = with_points(tmp_path / "good")
    with pytest.raises(InputError, match="OKS_SIGMAS must have 4 values, .* has 0 .COCO's"):
        config(file, images, name="good")
    content = read(file)
    content["categories"][1]["keypoints"] = POINTS[:2]
    Path(file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"categories\[1\]: 'keypoints' must be the same for all"):
        config(file, images, *SIGMAS, name="other")


def test_every_loss_of_a_comparison_has_the_number_of_points(tmp_path):
    file, images = with_points(tmp_path)
    found = plan_of(parse_compare([
        "--config", QUICKSTART, "--losses", "ce,rambo", "--seeds", "1",
        "--data", f"own=coco:{file}:{images}:{file}:{images}", "MODEL.KEYPOINT_ON", "True", *SIGMAS,
    ]))  # fmt: skip
    numbers = [run.settings["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] for run in found.runs]
    assert numbers == [4, 4]


def test_a_model_with_another_number_of_points_is_trained_and_evaluated(tmp_path, capsys):
    file, images = with_points(tmp_path)
    small = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]
    status = main([
        "--config", QUICKSTART, "--register-coco", "points", file, images,
        "DATASETS.TRAIN", "('points',)", "DATASETS.TEST", "('points',)",
        "OUTPUT_DIR", str(tmp_path / "out"), *small, *SIGMAS,
        *map(str, ARCHITECTURES["keypoint"].opts),
    ])  # fmt: skip
    assert status == 0
    assert "keypoint AP" in capsys.readouterr().out
