"""Registering a user's COCO data: what is read, what COCOEvaluator makes of it, what is refused."""

import json
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("detectron2")

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from rambo_det.cli.train import parse_args
from rambo_det.data import hold_out, register_datasets
from rambo_det.data.files import check_image
from rambo_det.engine.setup import build_config
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

pytestmark = pytest.mark.usefixtures("catalogs")

SIZE = (40, 30)


def register_coco(
    name: str, file: Path, images: Path, classes: Sequence[str] | None = None
) -> list[str]:
    return register_datasets([(name, file, images)], classes=classes)


def _write_image(path: Path, size: tuple[int, int] = SIZE, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert("RGB").save(path, **options)


def _content() -> dict[str, Any]:
    """Ids that are not 1..K, out of order, a category without boxes, an image without boxes."""
    boxes = [(7, 9, [1, 2, 10, 12]), (7, 3, [5, 5, 20, 20]), (4, 9, [0, 0, 40, 30])]
    return {
        "images": [
            {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
            for number, name in ((7, "a.jpg"), (4, "b.png"), (5, "empty.jpg"))
        ],
        "annotations": [
            {"id": index, "image_id": image, "category_id": category, "bbox": box}
            for index, (image, category, box) in enumerate(boxes)
        ],
        "categories": [
            {"id": 9, "name": "dog"},
            {"id": 0, "name": "animal"},
            {"id": 3, "name": "cat"},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.png", "empty.jpg"):
        _write_image(tmp_path / "images" / name)
    return tmp_path


def _write(folder: Path, content: Any, name: str = "set.json") -> tuple[Path, Path]:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return folder / name, folder / "images"


def _perfect(name: str, wrong: bool = False, only: str | None = None) -> dict[str, float]:
    """COCOEvaluator's result where the truth (with wrong classes, of one class) is predicted."""
    names = MetadataCatalog.get(name).thing_classes
    evaluator = COCOEvaluator(name, output_dir=None, use_fast_impl=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        found = Instances((record["height"], record["width"]))
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
        ]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.linspace(0.5, 1, len(boxes))
        labels = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        found.pred_classes = (labels + wrong) % len(names)
        if only is not None:
            found = found[found.pred_classes == names.index(only)]
        evaluator.process([record], [{"instances": found}])
    return dict(evaluator.evaluate()["bbox"])


def test_classes_are_the_used_categories_by_id(folder: Path) -> None:
    assert register_coco("own", *_write(folder, _content())) == ["cat", "dog"]
    records = {record["image_id"]: record for record in DatasetCatalog.get("own")}
    assert set(records) == {4, 5, 7}
    assert records[5]["annotations"] == []
    assert records[4]["file_name"] == str(folder / "images" / "b.png")
    assert [a["category_id"] for a in records[7]["annotations"]] == [1, 0]
    assert records[7]["annotations"][0]["bbox"] == [1, 2, 10, 12]
    assert records[7]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    metadata = MetadataCatalog.get("own")
    assert metadata.evaluator_type == "coco" and metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}


@pytest.mark.parametrize("classes", [None, ["dog", "cat"], ["cat", "bird", "dog"]])
def test_coco_evaluator_scores_the_truth_with_100(folder: Path, classes: list[str] | None) -> None:
    # Annotation 0 is a trap: pycocotools counts what matches it as wrong.
    names = register_coco("own", *_write(folder, _content()), classes)
    assert names == (classes or ["cat", "dog"])
    result = _perfect("own")
    assert result["AP"] == pytest.approx(100)
    assert result["AP-dog"] == pytest.approx(100)
    assert _perfect("own", wrong=True)["AP"] == pytest.approx(0)


@pytest.mark.parametrize("classes", [["cat", "dog"], ["dog", "cat"], ["dog", "bird", "cat"]])
def test_each_class_has_its_own_ap(folder: Path, classes: list[str]) -> None:
    register_coco("own", *_write(folder, _content()), classes)
    result = _perfect("own", only="dog")
    assert result["AP-dog"] == pytest.approx(100) and result["AP-cat"] == pytest.approx(0)


def test_result_is_that_of_the_data_as_it_is_now(folder: Path) -> None:
    first = register_coco("own", *_write(folder, _content()))
    old = MetadataCatalog.get("own").json_file
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")
    changed = _content()
    changed["annotations"].pop()
    assert register_coco("own", *_write(folder, changed)) == first
    new = MetadataCatalog.get("own").json_file
    assert new != old and len(json.loads(Path(new).read_text())["annotations"]) == 2
    assert _perfect("own")["AP"] == pytest.approx(100)


def test_area_crowd_and_masks_are_kept(folder: Path) -> None:
    content = _content()
    mask = [[1, 2, 11, 2, 11, 14]]
    content["annotations"][0].update(area=60.0, segmentation=mask)
    content["annotations"][1].update(iscrowd=1)
    content["annotations"][2].update(ignore=1)
    register_coco("own", *_write(folder, content), classes=["cat", "dog"])
    stored = json.loads(Path(MetadataCatalog.get("own").json_file).read_text())["annotations"]
    assert [item["area"] for item in stored] == [60.0, 400, 1200]
    assert [item["iscrowd"] for item in stored] == [0, 1, 1]
    records = {record["image_id"]: record for record in DatasetCatalog.get("own")}
    assert records[7]["annotations"][0]["segmentation"] == mask


@pytest.mark.parametrize(
    ("fields", "area", "is_said"),
    [
        ({"area": 150}, 150, False),  # 1.25 times the box's
        ({"area": 153}, 120, True),
        ({"area": 0}, 120, True),
        ({"area": -3}, 120, True),
        ({"area": None}, 120, False),
        ({}, 120, False),
        ({"segmentation": []}, 120, False),
        ({"segmentation": [[1, 2, 11, 2, 11, 14]]}, 60, False),
        ({"segmentation": [[1, 2, 11, 2, 11, 14]], "area": 59}, 59, False),
        ({"segmentation": [[1, 2, 11, 2, 11, 14]], "area": 125}, 60, True),
        ({"segmentation": {"size": [30, 40], "counts": [100, 50, 1000, 30, 20]}}, 80, False),
        ({"segmentation": {"size": [30, 40], "counts": "T3b1jP1"}}, 50, False),
    ],
)
def test_an_area_that_cannot_be_is_that_of_the_mask_or_the_box(
    folder: Path,
    fields: dict[str, Any],
    area: float,
    is_said: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = _content()
    del content["annotations"][1:]
    content["annotations"][0].update(fields)
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        register_coco("own", *_write(folder, content))
    stored = json.loads(Path(MetadataCatalog.get("own").json_file).read_text())["annotations"]
    assert [item["area"] for item in stored] == [area]
    assert ("1 'area'(s) are 0 or far" in caplog.text) == is_said


def test_an_empty_mask_does_not_cost_the_box(folder: Path) -> None:
    content = _content()
    mask = [1, 2, 11, 2, 11, 14]
    for annotation, empty in zip(
        content["annotations"], ([], [[1, 2, 11, 14]], [[], mask]), strict=True
    ):
        annotation["segmentation"] = empty
    register_coco("own", *_write(folder, content))
    boxes = [a for record in DatasetCatalog.get("own") for a in record["annotations"]]
    assert len(boxes) == 3
    assert [a["segmentation"] for a in boxes if "segmentation" in a] == [[mask]]


def _masked(folder: Path, *masks: Any) -> CfgNode:
    """Config of a model with masks on data with these, the last one's object a crowd."""
    content = _content()
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        annotation["segmentation"] = mask
    content["annotations"][-1]["iscrowd"] = 1
    file, images = map(str, _write(folder, content))
    return build_config(parse_args([
        "--config", "configs/mask_rcnn_rambo.yaml", "--register-coco", "own", file, images,
        "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)", "MODEL.DEVICE", "cpu",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2",
    ]))  # fmt: skip


POLYGON = [[1, 2, 11, 2, 11, 14]]
RLE = {"size": [30, 40], "counts": [100, 500, 600]}


def _compressed(seed: int) -> dict[str, Any]:
    noise = np.random.default_rng(seed).random((30, 40)) < (0.5, 0.01, 0.99)[seed % 3]
    rle = mask_util.encode(np.asfortranarray(noise, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("rle", [RLE, *map(_compressed, range(6))])
def test_rle_is_trained_on(folder: Path, rle: dict[str, Any]) -> None:
    cfg = _masked(folder, POLYGON, rle, rle)
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    (batch,) = islice(RamboTrainer.build_train_loader(cfg), 1)
    assert all(len(image["instances"].gt_masks) for image in batch)


def test_a_crowd_as_rle_leaves_polygons(folder: Path) -> None:
    assert _masked(folder, POLYGON, POLYGON, RLE).INPUT.MASK_FORMAT == "polygon"


@pytest.mark.parametrize("empty", [[], [[]], [[1, 2, 11, 14]], None])
def test_a_model_with_masks_and_a_box_without(folder: Path, empty: Any) -> None:
    with pytest.raises(InputError, match=r"MASK_ON is True, but .*annotations\[1\] has no mask"):
        _masked(folder, POLYGON, empty, RLE)


def test_boxes_without_area_are_dropped_with_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _content()
    for box in ([5, 5, 0, 4], [5, 5, 4, -1], [40, 0, 5, 5], [-9, 0, 9, 9]):
        extra = {"id": 99, "image_id": 5, "category_id": 3, "bbox": box}
        content["annotations"].append(extra)
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        register_coco("own", *_write(folder, content))
    texts = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert len(texts) == 1 and "dropped 4 box" in texts[0] and "set.json" in texts[0]
    assert sum(len(record["annotations"]) for record in DatasetCatalog.get("own")) == 3


def test_a_category_is_only_unused_if_training_does_not_use_it(folder: Path) -> None:
    test = _content()
    test["annotations"] = [a for a in test["annotations"] if a["category_id"] == 9]
    # other ids for the same names, and no entry at all for "cat"
    test["categories"] = [{"id": 1, "name": "dog"}]
    for annotation in test["annotations"]:
        annotation["category_id"] = 1
    train = ("own_train", *_write(folder, _content(), "train.json"))
    own_test = ("own_test", *_write(folder, test, "test.json"))
    assert register_datasets([own_test, train], train=["own_train"]) == ["cat", "dog"]
    labels = {a["category_id"] for r in DatasetCatalog.get("own_test") for a in r["annotations"]}
    assert labels == {1}
    assert _perfect("own_test")["AP-dog"] == pytest.approx(100)


def test_a_class_that_training_lacks_is_refused_and_nothing_registered(folder: Path) -> None:
    content = _content()
    content["annotations"] = content["annotations"][:1]
    train = ("own_train", *_write(folder, content, "train.json"))
    test = ("own_test", *_write(folder, _content(), "test.json"))
    with pytest.raises(InputError, match=r"test\.json: class 'cat' is not among the training.*dog"):
        register_datasets([train, test], train=["own_train"])
    assert not {"own_train", "own_test"} & set(DatasetCatalog.list())
    assert register_datasets([train, test]) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog"], r"set\.json: class 'cat' is not among the given classes: dog"),
        ([], "class 'cat' is not among"),
        (["cat", "dog", "cat"], "must be different names"),
        (["cat", "dog", ""], "none empty"),
    ],
)
def test_given_classes_that_do_not_fit(folder: Path, classes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        register_coco("own", *_write(folder, _content()), classes)
    assert "own" not in DatasetCatalog.list()


def test_a_given_class_without_boxes_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        register_coco("own", *_write(folder, _content()), ["cat", "dog", "bird"])
    assert "'bird'" in caplog.text and "'cat'" not in caplog.text


@pytest.mark.parametrize(("crowds", "part"), [([0, 1], "own_heldout"), ([2], "own_fit")])
def test_a_part_that_is_held_out_needs_more_than_crowds(
    folder: Path, crowds: list[int], part: str
) -> None:
    content = _content()
    for index in crowds:
        content["annotations"][index][("iscrowd", "ignore")[index % 2]] = 1
    content["images"].pop()  # without boxes
    register_coco("own", *_write(folder, content), classes=["cat", "dog"])
    with pytest.raises(InputError, match=f"of own, {part} would have no box"):
        hold_out(["own"], 2)


def test_a_name_can_be_registered_once(folder: Path) -> None:
    files = _write(folder, _content())
    with pytest.raises(InputError, match="'own' is already registered"):
        register_datasets([("own", *files), ("own", *files)])
    register_coco("own", *files)
    with pytest.raises(InputError, match="'own' is already registered"):
        register_coco("own", *files)
    with pytest.raises(InputError, match="'coco_2017_val' is already registered"):
        register_coco("coco_2017_val", *files)


def _edit(place: str, **fields: Any) -> Callable[[Path], Any]:
    """Set fields of an entry, such as "images 0"; ... takes one away."""

    def change(folder: Path) -> Any:
        content, (name, index) = _content(), place.split()
        entry = content[name][int(index)]
        entry.update(fields)
        for key in [key for key, value in fields.items() if value is ...]:
            del entry[key]
        return content

    return change


def _damage(name: str, keep: float = 0, data: bytes = b"") -> Callable[[Path], Any]:
    """Cut an image off behind a part of it and put the data there."""

    def change(folder: Path) -> Any:
        path = folder / "images" / name
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)] + data)
        return _content()

    return change


def _lists(**lists: Any) -> Callable[[Path], Any]:
    return lambda _: {**_content(), **lists}


NO_AREA = {"image_id": 7, "category_id": 9, "bbox": [1, 1, 0, 0]}

#: Masks that are none, and what is said of them.
BAD_MASKS: list[tuple[Any, str]] = [
    ([[1, 2, 11, 2, 11, 14, 1]], "must be polygons"),
    ([["1", "2", "11", "2", "11", "14"]], "must be polygons"),
    ([[1, 2, 11, 2, 11, 10**400]], "must be polygons"),
    ("11 2", "must be polygons"),
    ([1, 2, 3, 4, 5, 6], "must be polygons"),
    ({"size": [40, 30], "counts": [0, 1200]}, r"RLE that fills the .* {'size': \[30, 40\]"),
    (
        {"size": [30, 40], "counts": [0, 1199]},
        r"counts of the mask do not fill its size",
    ),
    ({"size": [30, 40], "counts": [1300, -100]}, "counts of the mask do not fill"),
    ({"size": [30, 40], "counts": 5}, "must be polygons"),
    ({"size": [30, 40], "counts": "01X1"}, "counts of the mask do not fill"),  # too short
    ({"size": [30, 40], "counts": "01X1" + "00" * 2000}, "counts of the mask do not fill"),
    *(
        ({"size": [30, 40], "counts": counts}, "must be polygons|counts of the mask do not fill")
        for counts in ("", "`U", "`U11", "`U10O1", "`U1\x7f", "`U1ä", "`" * 40 + "0")
    ),
    ({"size": [30, 40], "counts": "~~~"}, "must be polygons"),
    ({"size": [30, 40], "counts": "ooo"}, "must be polygons"),  # a number without an end
]


@pytest.mark.parametrize(("mask", "message"), BAD_MASKS)
def test_a_mask_that_is_none_is_refused_by_a_model_with_masks(
    folder: Path, mask: Any, message: str
) -> None:
    with pytest.raises(InputError, match=rf"MASK_ON is True, .*annotations\[0\]: .*{message}"):
        _masked(folder, mask, POLYGON, RLE)


@pytest.mark.parametrize(("mask", "message"), BAD_MASKS)
def test_a_mask_that_is_none_does_not_matter_to_boxes(
    folder: Path, mask: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        register_coco("own", *_write(folder, _edit("annotations 0", segmentation=mask)(folder)))
    assert "left out 1 mask(s) that cannot be read: annotations[0] of a.jpg" in caplog.text
    boxes = [a for record in DatasetCatalog.get("own") for a in record["annotations"]]
    assert len(boxes) == 3 and not any("segmentation" in a for a in boxes)


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (lambda _: "{", r"set\.json is not a json file"),
    (lambda _: [], "not a COCO json: it has no list 'images'"),
    (_lists(annotations=None), "not a COCO json: it has no list 'annotations'"),
    (_edit("images 1", id=...), r"images\[1\].*'id' is missing"),
    (_edit("images 1", width=...), r"images\[1\].*'width' is missing"),
    (_edit("images 1", file_name=...), r"images\[1\].*'file_name' is missing"),
    (_edit("images 0", width="40"), r"images\[0\].*'width' cannot be '40'"),
    (_edit("images 0", width=float("inf")), r"images\[0\].*'width' cannot be inf"),
    (_edit("images 0", id=4), r"images\[1\]: image id 4 is there twice"),
    (_edit("images 1", id="4"), r"images\[1\]: not all ids are numbers"),
    (_edit("categories 1", name=...), r"categories\[1\].*'name' is missing"),
    (_edit("categories 0", id=0), r"categories\[1\]: id 0 .* twice"),
    (
        _lists(categories=[{**item, "name": "dog"} for item in _content()["categories"]]),
        "two categories with boxes have the name 'dog'",
    ),
    (_lists(annotations=["text"]), r"annotations\[0\].*'image_id' is missing"),
    (_edit("annotations 1", bbox=...), r"annotations\[1\].*'bbox' is miss"),
    (_edit("annotations 1", area="1"), r"annotations\[1\].*'area' cannot be '1'"),
    (_edit("annotations 1", area=float("nan")), r"annotations\[1\].*'area' cannot be nan"),
    (_edit("annotations 1", iscrowd=2), r"annotations\[1\]: 'iscrowd' must be 0 or 1, not 2"),
    (_edit("annotations 2", image_id=8), r"annotations\[2\]: 'images' has no image_id 8"),
    (_edit("annotations 2", category_id=8), r"annotations\[2\]: 'categories' has no category_id 8"),
    (_edit("annotations 0", bbox=[1, 2, 3]), r"annotations\[0\].*four numbers"),
    (_edit("annotations 0", bbox=[1, 2, 3, float("nan")]), r"annotations\[0\].*four numbers"),
    (_lists(annotations=[]), r"set\.json: .*'own' has no boxes"),
    (_lists(annotations=[NO_AREA]), "'own' has no boxes"),
    (_edit("images 1", file_name="c.jpg"), r"set\.json: .*c\.jpg is missing"),
    (_edit("images 0", width=30, height=40), r"a\.jpg is 40x30 px.*says 30x40"),
    (_damage("a.jpg", 0.7), r"a\.jpg is truncated"),
    (_damage("b.png", 0.9), r"b\.png is truncated"),
    (_damage("a.jpg", 0.05), r"a\.jpg"),
    (_damage("a.jpg"), r"a\.jpg is not an image"),
    (_damage("a.jpg", 0, b"<html>404</html>"), r"a\.jpg is not an image"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_data_is_refused_in_one_line(
    folder: Path, make: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        register_coco("own", *_write(folder, make(folder)))
    assert "\n" not in str(error.value)
    assert "own" not in DatasetCatalog.list()


def test_a_missing_json_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        register_coco("own", folder / "nowhere.json", folder / "images")


def test_images_with_an_unusual_end_are_decoded(tmp_path: Path) -> None:
    _write_image(tmp_path / "padded.jpg")
    with open(tmp_path / "padded.jpg", "ab") as file:
        file.write(b"\0" * 10)
    check_image(tmp_path / "padded.jpg", SIZE, "list")
    _write_image(tmp_path / "whole.bmp")
    check_image(tmp_path / "whole.bmp", SIZE, "list")
    data = (tmp_path / "whole.bmp").read_bytes()
    (tmp_path / "cut.bmp").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="truncated"):
        check_image(tmp_path / "cut.bmp", SIZE, "list")


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _write_image(tmp_path / "turned.jpg", exif=exif)
    check_image(tmp_path / "turned.jpg", SIZE[::-1], "list")
    with pytest.raises(InputError, match="is 30x40 px"):
        check_image(tmp_path / "turned.jpg", SIZE, "list")


def test_real_chess_pieces(real_data: Path) -> None:
    sets = [
        (f"chess_{split}", real_data / "chess" / f"{split}.json", real_data / "chess" / split)
        for split in ("train", "valid", "test")
    ]
    names = register_datasets(sets, train=["chess_train"])
    # 12 pieces, and one box that is labelled with their common name
    assert len(names) == 13 and names[0] == "bishop" and "pieces" not in names
    for name, images, boxes in (
        ("chess_train", 202, 2108),
        ("chess_valid", 58, 386),
        ("chess_test", 29, 376),
    ):
        records = DatasetCatalog.get(name)
        assert len(records) == images
        assert sum(len(record["annotations"]) for record in records) == boxes
        assert max(a["category_id"] for r in records for a in r["annotations"]) == 12
    assert any(not record["annotations"] for record in DatasetCatalog.get("chess_test"))
    assert _perfect("chess_valid")["AP"] == pytest.approx(100)
