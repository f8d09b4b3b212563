"""Registering a user's data in VOC layout: what is read, what is refused."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from PIL import Image

from rambo_det.data import register_datasets
from rambo_det.data.voc import read_voc
from rambo_det.errors import InputError

from .voc_folder import write_voc

pytestmark = pytest.mark.usefixtures("catalogs")


def register_voc(name: str, root: Path, split: str, classes: list[str] | None = None) -> list[str]:
    return register_datasets(voc=[(name, root, split)], classes=classes)


XML, JPG, SPLIT = "Annotations/a_2.xml", "JPEGImages/a_2.jpg", "ImageSets/Main/train.txt"
TRAIN = {
    "b_1": [("dog", (1, 1, 60, 50), 0), ("cat", (5, 6, 20, 30), 1)],
    "a_2": [("dog", (10, 10, 30, 20), 0)],
    "empty": [],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", "train", TRAIN)


def _boxes(records: list[dict]) -> dict[str, list[tuple]]:
    return {
        record["image_id"]: [
            (
                a["category_id"],
                *BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS),
            )
            for a in record["annotations"]
        ]
        for record in records
    }


def test_boxes_and_classes_are_those_of_detectron2s_own_loader(root: Path) -> None:
    names = register_voc("own", root, "train")
    assert names == ["cat", "dog"]
    records = DatasetCatalog.get("own")
    assert _boxes(records) == _boxes(load_voc_instances(str(root), "train", names))
    assert _boxes(records)["b_1"][0] == (1, 0, 0, 60, 50)
    assert all(Path(record["file_name"]).is_file() for record in records)
    assert {(record["width"], record["height"]) for record in records} == {(60, 50)}
    difficult = {r["image_id"]: [a["difficult"] for a in r["annotations"]] for r in records}
    assert difficult == {"b_1": [0, 1], "a_2": [0], "empty": []}


def test_coco_evaluator_is_not_given_a_stale_file(root: Path, tmp_path: Path) -> None:
    # Without a json of ours COCOEvaluator would convert the set once and find it for ever after.
    stale = tmp_path / "own_coco_format.json"
    stale.write_text("{}")
    register_voc("own", root, "train")
    assert MetadataCatalog.get("own").evaluator_type == "coco"
    evaluator = COCOEvaluator("own", output_dir=str(tmp_path), use_fast_impl=False)
    assert len(evaluator._coco_api.anns) == 3 and stale.read_text() == "{}"


def test_files_of_other_tools(root: Path) -> None:
    """No size, no difficult, a flag in the split file, a name twice, png images, 1.0 for 1."""
    (root / JPG).unlink()
    Image.new("RGB", (33, 22)).save(root / "JPEGImages" / "a_2.png")
    (root / SPLIT).write_text("a_2  1\nb_1 -1\n\na_2  1\n")
    (root / XML).write_text(
        "<annotation><size><width>0</width></size><object><name> dog </name><bndbox>"
        "<xmin>1.0</xmin><ymin>2.5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "</annotation>"
    )
    assert register_voc("own", root, "train") == ["cat", "dog"]
    records = {record["image_id"]: record for record in DatasetCatalog.get("own")}
    assert set(records) == {"a_2", "b_1"}
    assert records["a_2"]["file_name"].endswith("a_2.png")
    assert (records["a_2"]["width"], records["a_2"]["height"]) == (33, 22)
    assert _boxes([records["a_2"]])["a_2"] == [(1, 0, 1.5, 9, 9)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_xml_may_begin_with_a_byte_order_mark(root: Path, encoding: str) -> None:
    (root / XML).write_text((root / XML).read_text(), encoding=encoding)
    assert register_voc("own", root, "train") == ["cat", "dog"]


def test_names_with_spaces_and_a_byte_order_mark(tmp_path: Path) -> None:
    images = {"my photo": TRAIN["a_2"], "other": []}
    root = write_voc(tmp_path / "voc", "train", images)
    for text in ("my photo\r\nother\r\n", "my photo -1\nother  1\n"):
        (root / SPLIT).write_bytes(text.encode("utf-8-sig"))
        assert set(read_voc("own", root, "train").images) == set(images)


CELL = [("dog", (10, 10, 30, 20), 0)]


@pytest.mark.parametrize(
    ("images", "lines", "ids"),
    [
        (["frame 0", "frame 1"], ["frame 0", "frame 1"], ["frame 0", "frame 1"]),
        (["frame", "frame 0"], ["frame 0"], ["frame 0"]),
        (["frame 0", "frame 1"], ["frame 0  1", "frame 1 -1"], ["frame 0", "frame 1"]),
        (["a", "b 1"], ["a", "b 1"], ["a", "b 1"]),
        (["cam1/0001", "cam2/0001"], ["cam1/0001", "cam2/0001"], ["cam1/0001", "cam2/0001"]),
        (["cam1/0001", "cam2/0001"], ["cam2/0001 -1", "cam1/0001  0"], ["cam2/0001", "cam1/0001"]),
    ],
)
def test_lines_of_a_split(
    tmp_path: Path, images: list[str], lines: list[str], ids: list[str]
) -> None:
    for folder in ("Annotations", "JPEGImages"):
        for stem in images:
            (tmp_path / folder / stem).parent.mkdir(parents=True, exist_ok=True)
    root = write_voc(tmp_path, "train", {stem: CELL for stem in images})
    (root / SPLIT).write_text("\n".join(lines))
    register_voc("own", root, "train")
    records = {record["image_id"]: record["file_name"] for record in DatasetCatalog.get("own")}
    assert records == {stem: str(root / "JPEGImages" / f"{stem}.jpg") for stem in ids}


@pytest.mark.parametrize("line", ["gone 1", "gone", "cam1/gone"])
def test_a_line_without_xml_is_named_as_it_is(root: Path, line: str) -> None:
    (root / SPLIT).write_text(line)
    with pytest.raises(InputError, match=f"train.txt names '{line}', but .*{line}.xml does not"):
        register_voc("own", root, "train")


@pytest.mark.parametrize(
    ("written", "there", "read"),
    [
        ("cam1/x.png", ["cam1/x.png"], "cam1/x.png"),
        ("x.png", ["cam1/x.png", "x.png"], "cam1/x.png"),
        ("a.png", ["cam1/a.png", "cam1/a.jpg"], "cam1/a.png"),
        ("a.tif", ["cam1/a.tif"], "cam1/a.tif"),
        ("gone.jpg", ["cam1/a.JPEG"], "cam1/a.JPEG"),
        (" ", ["cam1/a.png"], "cam1/a.png"),
    ],
)
def test_the_image_that_is_checked_is_the_one_that_is_read(
    root: Path,
    written: str,
    there: list[str],
    read: str,
) -> None:
    """Only the image that is to be read is whole and of the size in the xml."""
    stem = "a" if written.startswith("cam1") else "cam1/a"
    (root / SPLIT).write_text(stem)
    for folder in ("Annotations/cam1", "JPEGImages/cam1"):
        (root / folder).mkdir()
    for name in there:
        Image.new("RGB", (60, 50) if name == read else (9, 9)).save(root / "JPEGImages" / name)
    text = (root / XML).read_text()
    named = f"<annotation><filename>{written}</filename>"
    (root / "Annotations" / f"{stem}.xml").write_text(text.replace("<annotation>", named))
    register_voc("own", root, "train")
    (record,) = DatasetCatalog.get("own")
    assert record["file_name"] == str(root / "JPEGImages" / read)


def test_boxes_without_area_are_dropped_with_one_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slips = [("dog", box, 0) for box in ((5, 5, 5, 9), (5, 5, 4, 9), (5, 9, 9, 9), (61, 1, 70, 9))]
    write_voc(root, "train", {**TRAIN, "empty": slips})
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        register_voc("own", root, "train")
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 1 and "dropped 4 box" in texts[0] and "train.txt" in texts[0]
    assert sum(len(record["annotations"]) for record in DatasetCatalog.get("own")) == 3


def test_classes_of_a_run_are_those_of_training(root: Path) -> None:
    write_voc(root, "val", {"v": [("dog", (2, 2, 9, 9), 0)]})
    sets = [("own_val", root, "val"), ("own_train", root, "train")]
    assert register_datasets(voc=sets, train=["own_train"]) == ["cat", "dog"]
    assert MetadataCatalog.get("own_val").thing_classes == ["cat", "dog"]
    assert _boxes(DatasetCatalog.get("own_val"))["v"][0][0] == 1


def test_a_class_that_training_lacks_is_refused(root: Path) -> None:
    write_voc(root, "val", {"v": [("bird", (2, 2, 9, 9), 0)]})
    sets = [("own_train", root, "train"), ("own_val", root, "val")]
    with pytest.raises(InputError, match=r"val\.txt: class 'bird' is not among the training.*cat"):
        register_datasets(voc=sets, train=["own_train"])
    with pytest.raises(InputError, match=r"val\.txt: class 'bird' is not among the given"):
        register_voc("own_val", root, "val", classes=["cat", "dog"])
    assert not {"own_train", "own_val"} & set(DatasetCatalog.list())


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / XML
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def _cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / SPLIT).write_text("b\\1"), r"b\\1\.xml does .*backslashes, write / for"),
    (lambda root: (root / XML).unlink(), r"train\.txt names 'a_2', but .*a_2\.xml does not exist"),
    (lambda root: _cut(root / XML, 0.6), r"a_2\.xml is not valid xml"),
    (lambda root: (root / JPG).unlink(), r"a_2\.xml: the image .*a_2\.jpg is missing"),
    (lambda root: _cut(root / JPG, 0.7), r"a_2\.xml: the image .*a_2\.jpg is truncated"),
    (_replace("<width>60<", "<width>61<"), r"a_2\.jpg is 60x50 px.*says 61x50"),
    (_replace("<xmin>10</xmin>", ""), r"a_2\.xml: 'dog' needs a bndbox"),
    (_replace("<xmin>10<", "<xmin>ten<"), r"a_2\.xml: 'dog' needs a bndbox"),
    (_replace("<xmin>10<", "<xmin>inf<"), r"a_2\.xml: 'dog' needs a bndbox"),
    (_replace("<name>dog</name>", ""), r"a_2\.xml: an object has no name"),
    (lambda root: write_voc(root, "train", {"empty": []}), r"train\.txt: .* 'own' has no boxes"),
    (lambda root: (root / SPLIT).write_text("\n"), r"train\.txt names no image"),
    (lambda root: (root / SPLIT).write_bytes(b"\xff"), r"train\.txt is not in UTF-8"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_data_is_refused_in_one_line(
    root: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(root)
    with pytest.raises(InputError, match=message) as error:
        register_voc("own", root, "train")
    assert "\n" not in str(error.value)
    assert "own" not in DatasetCatalog.list()


def test_a_missing_split_names_those_that_are_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test\.txt does not exist \(splits there: train\)"):
        register_voc("own", root, "test")
    with pytest.raises(InputError, match=r"does not exist \(splits there: none\)"):
        register_voc("own", tmp_path / "nowhere", "train")


def test_real_blood_cells(real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = [(f"bccd_{split}", real_data / "bccd", split) for split in ("train", "val", "test")]
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        names = register_datasets(voc=sets, train=["bccd_train"])
    assert names == ["Platelets", "RBC", "WBC"]
    # the two boxes of zero size that are known: one in train, one in val
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == [
        "dropped 1 box(es) without area inside their image"
    ] * 2
    counts: Counter[str] = Counter()
    for name, images in (("bccd_train", 205), ("bccd_val", 87), ("bccd_test", 72)):
        records = DatasetCatalog.get(name)
        assert len(records) == images
        counts.update(names[a["category_id"]] for r in records for a in r["annotations"])
    assert counts == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
