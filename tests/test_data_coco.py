"""A user's COCO data: what is read, how COCOEvaluator scores it, what is warned of or refused."""

import json
import os
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from rambo_det.cli.train import parse_args
from rambo_det.data import register_datasets
from rambo_det.data.files import check_image
from rambo_det.engine.setup import build_config
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

from .command_line import disk_full, refusal

pytestmark = pytest.mark.usefixtures("catalogs")

SIZE = (40, 30)
POLYGON = [[1, 2, 11, 2, 11, 14]]
RLE = {"size": [30, 40], "counts": [100, 500, 600]}


def content():
    """Returns a json: unordered ids other than 1..K, a category and an image without boxes."""
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


class Own:
    """A folder of images and a COCO json beside it, which a test changes before it is written."""

    def __init__(self, folder):
        self.images, self.file = folder / "images", folder / "set.json"
        self.images.mkdir()
        for name in ("a.jpg", "b.png", "empty.jpg"):
            Image.effect_noise(SIZE, 60).convert("RGB").save(self.images / name)
        with open(self.images / "empty.jpg", "ab") as file:  # as some cameras pad them
            file.write(b"\0" * 10)

    def write(self, change=lambda made: None, file=None):
        """Writes the changed json, or the text that ``change`` returns; returns json and images."""
        file, made = file or self.file, content()
        text = change(made)
        file.write_text(text if isinstance(text, str) else json.dumps(made))
        return file, self.images

    def register(self, change=lambda made: None, classes=None):
        return register_datasets([("own", *self.write(change))], classes=classes)


@pytest.fixture
def own(tmp_path):
    return Own(tmp_path)


def each(**fields):
    """Returns a change that updates all annotations."""
    return lambda made: [item.update(fields) for item in made["annotations"]]


def of(place, **fields):
    """Returns a change of an entry such as "images 0"; the value ``...`` removes a field."""
    name, index = place.split()

    def change(made):
        entry = made[name][int(index)]
        entry.update(fields)
        for key in [key for key, value in fields.items() if value is ...]:
            del entry[key]

    return change


def first(**fields):
    return of("annotations 0", **fields)


def whole(**lists):
    return lambda made: made.update(lists)


def both(*changes):
    return lambda made: [change(made) for change in changes]


def annotations_of(name="own"):
    return [a for record in DatasetCatalog.get(name) for a in record["annotations"]]


def stored():
    """Returns the annotations that COCOEvaluator reads."""
    return json.loads(Path(MetadataCatalog.get("own").json_file).read_text())["annotations"]


def perfect(name, only=None):
    """Returns COCOEvaluator's result if the ground truth (of one class) is predicted."""
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
        labels = [a["category_id"] for a in record["annotations"]]
        found.pred_classes = torch.tensor(labels, dtype=torch.int64)
        if only is not None:
            found = found[found.pred_classes == names.index(only)]
        evaluator.process([record], [{"instances": found}])
    return dict(evaluator.evaluate()["bbox"])


def test_classes_are_the_used_categories_by_id(own):
    assert own.register() == ["cat", "dog"]
    records = {record["image_id"]: record for record in DatasetCatalog.get("own")}
    assert set(records) == {4, 5, 7}
    assert records[5]["annotations"] == []
    assert records[4]["file_name"] == str(own.images / "b.png")
    assert [a["category_id"] for a in records[7]["annotations"]] == [1, 0]
    assert records[7]["annotations"][0]["bbox"] == [1, 2, 10, 12]
    assert records[7]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    metadata = MetadataCatalog.get("own")
    assert metadata.evaluator_type == "coco" and metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}


def test_a_category_without_boxes_may_have_the_name_of_a_class(own):
    assert own.register(of("categories 1", name="dog")) == ["cat", "dog"]  # as Roboflow writes it


@pytest.mark.parametrize("classes", [None, ["dog", "cat"], ["cat", "bird", "dog"]])
def test_coco_evaluator_scores_the_truth_with_100(own, classes):
    # The annotation id 0 is a trap: pycocotools counts a detection that matches it as wrong.
    assert own.register(classes=classes) == (classes or ["cat", "dog"])
    assert perfect("own")["AP"] == pytest.approx(100)
    dogs = perfect("own", only="dog")
    assert dogs["AP-dog"] == pytest.approx(100) and dogs["AP-cat"] == pytest.approx(0)


def test_a_name_is_taken_until_the_set_is_removed(own):
    own.register()
    old = MetadataCatalog.get("own").json_file
    with pytest.raises(InputError, match=r"already registered: .*DatasetCatalog.remove\('own'\)"):
        own.register()
    DatasetCatalog.remove("own")  # as users do, who leave MetadataCatalog as it is
    for names, why in ((("own", "own"), "two datasets"), (("coco_2017_val",), "is already reg")):
        with pytest.raises(InputError, match=why):
            register_datasets([(name, *own.write()) for name in names])
    assert own.register(lambda made: made["annotations"].pop()) == ["cat", "dog"]
    assert MetadataCatalog.get("own").json_file != old and len(stored()) == 2
    assert perfect("own")["AP"] == pytest.approx(100)


def test_area_crowd_and_masks_are_kept(own):
    crowds = of("annotations 1", iscrowd=1), of("annotations 2", ignore=1)
    own.register(both(first(area=60.0, segmentation=POLYGON), *crowds), ["cat", "dog"])
    assert [item["area"] for item in stored()] == [60.0, 400, 1200]
    assert [item["iscrowd"] for item in stored()] == [0, 1, 1]
    assert [a["segmentation"] for a in annotations_of() if "segmentation" in a] == [POLYGON]


@pytest.mark.parametrize(
    ("fields", "area", "is_said"),
    [
        ({"area": 150}, 150, False),  # 1.25 times the box's
        ({"area": 153}, 120, True),
        ({"area": 0.05}, 120, True),
        ({"area": 0}, 120, True),
        ({"area": -3}, 120, True),
        ({"area": None}, 120, False),
        ({}, 120, False),
        ({"segmentation": []}, 120, False),
        ({"segmentation": POLYGON}, 60, False),
        ({"segmentation": POLYGON, "area": 59}, 59, False),
        ({"segmentation": POLYGON, "area": 4}, 60, True),
        ({"segmentation": POLYGON, "area": 125}, 60, True),
        ({"segmentation": {"size": [30, 40], "counts": [100, 50, 1000, 30, 20]}}, 80, False),
        ({"segmentation": {"size": [30, 40], "counts": "T3b1jP1"}}, 50, False),
    ],
)
def test_an_impossible_area_is_that_of_the_mask_or_the_box(own, fields, area, is_said, warnings):
    own.register(first(**fields))
    assert [item["area"] for item in stored()] == [area, 400, 1200]
    assert any("1 'area' value(s) are 0 or do not fit" in line for line in warnings()) == is_said


def masks(*given):
    return lambda made: [
        annotation.update(segmentation=mask)
        for annotation, mask in zip(made["annotations"], given, strict=True)
    ]


def masked(own, *given):
    """Returns the config of a mask model on data with these masks; the last object is a crowd."""
    file, images = map(str, own.write(both(masks(*given), of("annotations 2", iscrowd=1))))
    return build_config(parse_args([
        "--config", "configs/mask_rcnn_rambo.yaml", "--register-coco", "own", file, images,
        "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)", "MODEL.DEVICE", "cpu",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2",
    ]))  # fmt: skip


def test_an_empty_mask_does_not_cost_the_box(own):
    own.register(masks([], [[1, 2, 11, 14]], [[], *POLYGON]))
    assert [a["segmentation"] for a in annotations_of() if "segmentation" in a] == [POLYGON]
    assert len(annotations_of()) == 3


def compressed(seed):
    noise = np.random.default_rng(seed).random((30, 40)) < (0.5, 0.01, 0.99)[seed]
    rle = mask_util.encode(np.asfortranarray(noise, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("rle", [RLE, *map(compressed, range(3))])
def test_rle_is_trained_on(own, rle):
    cfg = masked(own, POLYGON, rle, rle)
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    (batch,) = islice(RamboTrainer.build_train_loader(cfg), 1)
    assert all(len(image["instances"].gt_masks) for image in batch)


def test_a_crowd_as_rle_leaves_polygons(own):
    assert masked(own, POLYGON, POLYGON, RLE).INPUT.MASK_FORMAT == "polygon"


@pytest.mark.parametrize("empty", [[], [[]], [[1, 2, 11, 14]], None])
def test_a_model_with_masks_and_a_box_without(own, empty):
    with pytest.raises(InputError, match=r"MASK_ON is True, but .*annotations\[1\] has no mask"):
        masked(own, POLYGON, empty, RLE)


NOT_FULL, NO_MASK = "mask's counts do not add up", "must be polygons"


def counts(given):
    return {"size": [30, 40], "counts": given}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 2, 11, 2, 11, 14, 1]], NO_MASK),
        ([["1", "2", "11", "2", "11", "14"]], NO_MASK),
        ([[1, 2, 11, 2, 11, 10**400]], NO_MASK),
        ("11 2", NO_MASK),
        ([1, 2, 3, 4, 5, 6], NO_MASK),
        ({"size": [40, 30], "counts": [0, 1200]}, r"RLE that fills the .* {'size': \[30, 40\]"),
        (counts([0, 1199]), f"{NOT_FULL} to height x width"),
        (counts([1300, -100]), NOT_FULL),
        (counts(5), NO_MASK),
        (counts("01X1"), NOT_FULL),  # too short
        (counts("01X1" + "00" * 2000), NOT_FULL),
        *(
            (counts(text), f"{NO_MASK}|{NOT_FULL}")
            for text in ("", "`U", "`U11", "`U10O1", "`U1\x7f", "`U1ä", "`" * 40 + "0")
        ),
        (counts("~~~"), NO_MASK),
        (counts("ooo"), NO_MASK),  # a number without an end
    ],
)
def test_a_mask_that_is_none_matters_to_a_model_with_masks_alone(own, mask, message, warnings):
    own.register(first(segmentation=mask))
    said = "ignored 1 mask(s) that cannot be read: annotations[0] of a.jpg"
    assert any(said in line for line in warnings())
    assert len(annotations_of()) == 3 and not any("segmentation" in a for a in annotations_of())
    DatasetCatalog.remove("own")
    with pytest.raises(InputError, match=rf"MASK_ON is True, .*annotations\[0\]: .*{message}"):
        masked(own, mask, POLYGON, RLE)


CORNERS = [20, 21, 38, 29]
SAID = {
    "corners": (both(each(bbox=[2, 3, 9, 10]), first(bbox=CORNERS)),
                "1 of 3 boxes extend beyond .* image and coordinate format are"),
    "beyond": (first(bbox=[30, 20, 15, 5]), r"1 of 3 boxes extend .*: annotations\[0\] of a"),
    "a part of 1": (first(bbox=[0.1, 0.2, 0.3, 0.3]), "1 of 3 boxes have coord.* multiply"),
    "twice": (first(category_id=3, bbox=[5, 5, 20, 20]), "1 box.* occur twice"),
    "mask outside": (first(segmentation=[[50, 50, 60, 50, 60, 60]]), "ignored 1 mask.* or pol"),
    "mask beyond": (first(segmentation=[[1, 2, 50, 2, 50, 14, 1, 14]], bbox=[1, 2, 39, 12]),
                    "1 mask.* extend beyond"),
    "mask away": (first(segmentation=[[30, 20, 39, 20, 39, 29]]), r"1 mask\(s\) hardly overlap"),
    "few points": (first(segmentation=[[1, 2, 3, 4]]), r"ignored 1 polygon\(s\) with fewer"),
    "same file": (of("images 1", file_name="a.jpg"), r"1 image entries use a file"),
    "a crowd of a class": (of("annotations 1", iscrowd=1), r"ignored 1 crowd box"),
    "rotated": (both(first(attributes={"rotation": 45.0, "occluded": False}),
                     of("annotations 1", attributes={"rotation": 0.0})),
                r"1 box\(es\) are marked as rotated"),
    "none of it": (first(area=72), None),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_is_odd_is_said_with_its_place(own, case, warnings):
    change, message = SAID[case]
    own.register(change)
    if message is None:
        assert warnings() == []
    else:
        (line,) = [line for line in warnings() if "set.json" in line]
        assert re.search(message, line), line
        assert MetadataCatalog.get("own").flagged_images, "--check-data would not draw it first"


def test_boxes_without_area_are_dropped_ten_are_named_the_others_counted(own, warnings):
    boxes = 3 * [[5, 5, 0, 4], [5, 5, 4, -1], [40, 0, 5, 5], [-9, 0, 9, 9]]
    slips = [{"id": 99, "image_id": 7, "category_id": 3, "bbox": box} for box in boxes]
    own.register(lambda made: made["annotations"].extend(slips))
    (line,) = warnings()
    assert "set.json: dropped 12 box(es)" in line
    assert "annotations[12] of a.jpg and 2 more" in line and "annotations[13]" not in line
    assert len(annotations_of()) == 3


def test_the_stored_annotations_can_be_read_by_others_and_a_full_disk_leaves_nothing(own):
    own.register()
    file = Path(MetadataCatalog.get("own").json_file)
    mask = os.umask(0)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask  # a cache may be shared
    DatasetCatalog.remove("own")
    file.unlink()
    with disk_full(), pytest.raises(OSError, match="File too large"):
        own.register()
    assert list(file.parent.iterdir()) == []


def test_a_category_is_only_unused_if_training_does_not_use_it(own):
    def dogs(made):
        """Gives "dog" another id and removes "cat"."""
        made["annotations"] = [a for a in made["annotations"] if a["category_id"] == 9]
        made["categories"] = [{"id": 1, "name": "dog"}]
        each(category_id=1)(made)

    train = ("own_train", *own.write())
    test = ("own_test", *own.write(dogs, own.file.with_name("test.json")))
    assert register_datasets([test, train], train=["own_train"]) == ["cat", "dog"]
    assert {a["category_id"] for a in annotations_of("own_test")} == {1}
    assert perfect("own_test")["AP-dog"] == pytest.approx(100)


def test_a_class_that_training_lacks_is_refused_and_nothing_registered(own):
    test = ("own_test", *own.write(file=own.file.with_name("test.json")))
    train = ("own_train", *own.write(lambda made: made.update(annotations=made["annotations"][:1])))
    with pytest.raises(InputError, match="train: 'own' is not one of the datasets: own_"):
        register_datasets([train, test], train=["own"])
    with pytest.raises(InputError, match=r"test\.json: class 'cat' is not one of the train.*dog"):
        register_datasets([train, test], train=["own_train"])
    assert not {"own_train", "own_test"} & set(DatasetCatalog.list())
    assert register_datasets([train, test]) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ["dog"],
            r"set\.json: class 'cat' is not one of the expected classes \(dog\): .*use other",
        ),
        ([], "class 'cat' is not one of"),
        (["cat", "dog", "cat"], "must be unique and not empty"),
        (["cat", "dog", ""], "must be unique and not empty"),
    ],
)
def test_given_classes_that_do_not_fit(own, classes, message):
    with refusal(message):
        own.register(classes=classes)


def test_a_given_class_without_boxes_is_warned_of(own, warnings):
    own.register(classes=["cat", "dog", "bird"])
    (line,) = warnings()
    assert "'bird'" in line


# test_data_fuzz.py has wrong values of every kind in every place.
REFUSED = [
    (lambda made: "{", r"set\.json is not a json file"),
    (lambda made: "[]", "not a COCO json: it has no list 'images'"),
    (whole(annotations=None), "not a COCO json: it has no list 'annotations'"),
    (of("images 1", width=...), r"images\[1\].*'width' is missing"),
    (of("images 0", width="40"), r"images\[0\].*'width' has the invalid value '40'"),
    (of("images 0", id=4), r"images\[1\]: image id 4 occurs twice"),
    (of("images 0", id=2**63), r"images\[0\]: the id 9223372036854775808 does not fit into"),
    (of("images 1", id="4"), r"images\[1\]: image ids must be all int.* this one is '4'"),
    (of("images 1", file_name="c.jpg"), r"set\.json: .*c\.jpg is missing"),
    (of("images 0", file_name="x\\a.png"), "backslashes, write /"),
    (of("images 0", file_name="a\nb"), r"a\\nb' is missing"),
    (of("images 0", width=30, height=40), r"a\.jpg is 40x30 px.*says 30x40"),
    (of("categories 1", name=...), r"categories\[1\].*'name' is missing"),
    (of("categories 0", name="\ud800"), r"categories\[0\]"),
    (of("categories 0", id=0), r"categories\[1\]: category id 0 occurs twice"),
    (of("categories 2", name="dog"), "two categories with boxes have the name 'dog'"),
    (whole(annotations=["text"]), r"annotations\[0\].*'image_id' is missing"),
    (of("annotations 1", bbox=...), r"annotations\[1\].*'bbox' is miss"),
    (of("annotations 1", area="1"), r"annotations\[1\].*'area' has the invalid value '1'"),
    (of("annotations 1", iscrowd=2), r"annotations\[1\]: 'iscrowd' must be 0 or 1, not 2"),
    (of("annotations 2", image_id=8), r"annotations\[2\]: image_id 8 is not in 'images'"),
    (of("annotations 2", category_id=8), r"annotations\[2\]: category_id 8 is not in 'categories'"),
    (first(bbox=[1, 2, 3]), r"annotations\[0\].*four numbers"),
    (first(bbox=[1, 2, 3, 10**400]), r"annotations\[0\]: 'bbox' is"),
    (first(bbox=[1, 2, 3, True]), r"annotations\[0\]: 'bbox' is"),
    (whole(annotations=[]), r"set\.json: .*'own' has no boxes"),
    (each(bbox=[5, 5, 0, 4]), r"no boxes with area inside.*annotations\[0\] of a.jpg"),
    (each(iscrowd=1), "no box that can be trained on or counted: all 3 are crowds"),
    (each(ignore=1), "all 3 are crowds"),
    (each(bbox=[0.1, 0.2, 0.3, 0.3]), r"3 of 3 boxes have coordinates .*multiply"),
    (both(each(bbox=CORNERS), of("annotations 1", bbox=[2, 3, 9, 10])),
     r"2 of 3 boxes .*annotations\[0\] of a.jpg.*x, y, width"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(own, change, message):
    with refusal(message):
        own.register(change)


def test_a_missing_json_is_named(own):
    with refusal(r"nowhere\.json cannot be read"):
        register_datasets([("own", own.file.with_name("nowhere.json"), own.images)])


# Images


@pytest.mark.parametrize(
    ("name", "keep", "put", "message"),
    [
        ("a.jpg", 0.7, b"", r"a\.jpg is truncated"),
        ("b.png", 0.9, b"", r"b\.png is truncated"),
        ("a.jpg", 0.05, b"", r"a\.jpg"),
        ("a.jpg", 0, b"", r"a\.jpg is not an image"),
        ("a.jpg", 0, b"<html>404</html>", r"a\.jpg is not an image"),
    ],
)
def test_an_image_that_is_not_whole_is_named(own, name, keep, put, message):
    data = (own.images / name).read_bytes()
    (own.images / name).write_bytes(data[: int(keep * len(data))] + put)
    with refusal(message):
        own.register()


DEEP = [
    ("16-bit", np.full((8, 8), 900, "<u2")),
    ("16-bit", np.full((8, 8), 900, ">u2")),  # of a microscope
    ("32-bit", np.full((8, 8), 900, np.int32)),
    ("floating point", np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)),
]


@pytest.mark.parametrize("kind, pixels", DEEP)
def test_images_of_more_than_8_bits_are_refused(kind, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"a.tif is a {kind} image with values .* 8 bits"):
        check_image(tmp_path / "a.tif", "list")
    Image.fromarray(np.full_like(pixels, 200)).save(tmp_path / "a.tif")  # values fit 8 bits
    assert check_image(tmp_path / "a.tif", "list") == (8, 8, 1)


def test_an_image_over_pillows_limit_is_not_called_broken(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(InputError, match=r"a.png is too large \(Image size .* scale it down"):
        check_image(tmp_path / "a.png", "list")


def test_real_chess_pieces(real_data):
    sets = [
        (f"chess_{split}", real_data / "chess" / f"{split}.json", real_data / "chess" / split)
        for split in ("train", "valid", "test")
    ]
    names = register_datasets(sets, train=["chess_train"])
    # 12 pieces with their colour, and one box of a "bishop" without a colour
    assert len(names) == 13 and names[0] == "bishop" and "pieces" not in names
    for name, images, boxes in (
        ("chess_train", 202, 2108),
        ("chess_valid", 58, 386),
        ("chess_test", 29, 376),
    ):
        assert len(DatasetCatalog.get(name)) == images and len(annotations_of(name)) == boxes
        assert max(a["category_id"] for a in annotations_of(name)) == 12
    assert any(not record["annotations"] for record in DatasetCatalog.get("chess_test"))
    assert perfect("chess_valid")["AP"] == pytest.approx(100)
