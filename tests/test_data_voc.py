"""Data in VOC's layout and folders of images with xml: what is read, what is refused."""

from collections import Counter
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from PIL import Image

from rambo_det.data import register_datasets

from .command_line import refusal
from .models import write_image, write_voc

pytestmark = pytest.mark.usefixtures("catalogs")

XML, JPG, SPLIT = "Annotations/a_2.xml", "JPEGImages/a_2.jpg", "ImageSets/Main/train.txt"
SIZE = 40


def register(root, split="train"):
    return register_datasets(voc=[("own", root, split)])


def refused(root, message, split="train"):
    with refusal(message):
        register(root, split)


@pytest.fixture
def root(tmp_path):
    objects = {
        "b_1": [("dog", (1, 1, 60, 50), 0), ("cat", (5, 6, 20, 30), 1)],
        "a_2": [("dog", (10, 10, 30, 20), 0)],
        "empty": [],
    }
    return write_voc(tmp_path / "voc", "train", objects)


def boxes_of(records):
    return {
        record["image_id"]: [
            (a["category_id"], *BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS))
            for a in record["annotations"]
        ]
        for record in records
    }


def test_boxes_and_classes_are_those_of_detectron2s_own_loader(root):
    names = register(root)
    assert names == ["cat", "dog"]
    records = DatasetCatalog.get("own")
    assert boxes_of(records) == boxes_of(load_voc_instances(str(root), "train", names))
    assert boxes_of(records)["b_1"][0] == (1, 0, 0, 60, 50)
    assert all(Path(record["file_name"]).is_file() for record in records)
    assert {(record["width"], record["height"]) for record in records} == {(60, 50)}
    difficult = {r["image_id"]: [a["difficult"] for a in r["annotations"]] for r in records}
    assert difficult == {"b_1": [0, 1], "a_2": [0], "empty": []}


def test_coco_evaluator_is_not_given_a_stale_file(root, tmp_path):
    # Without our json, COCOEvaluator would convert the dataset once and reuse that file for ever.
    stale = tmp_path / "own_coco_format.json"
    stale.write_text("{}")
    register(root)
    assert MetadataCatalog.get("own").evaluator_type == "coco"
    evaluator = COCOEvaluator("own", output_dir=str(tmp_path), use_fast_impl=False)
    assert len(evaluator._coco_api.anns) == 3 and stale.read_text() == "{}"


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_other_tools(root, coding):
    """Files may lack size and difficult, have flags and repeated names, png images, 1.0 for 1."""
    (root / JPG).unlink()
    Image.new("RGB", (33, 22)).save(root / "JPEGImages" / "a_2.png")
    (root / SPLIT).write_text("a_2  1\nb_1 -1\n\na_2  1\n")
    (root / XML).write_text(
        "<annotation><size><width>0</width></size><object><name> dog </name><bndbox>"
        "<xmin>1.0</xmin><ymin>2.5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "</annotation>",
        encoding=coding,
    )
    assert register(root) == ["cat", "dog"]
    records = {record["image_id"]: record for record in DatasetCatalog.get("own")}
    assert set(records) == {"a_2", "b_1"}
    assert records["a_2"]["file_name"].endswith("a_2.png")
    assert (records["a_2"]["width"], records["a_2"]["height"]) == (33, 22)
    assert boxes_of([records["a_2"]])["a_2"] == [(1, 0, 1.5, 9, 9)]


def write_xml(file, filename=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    box = "<xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>30</ymax>"
    file.write_text(
        f"<annotation><filename>{filename}</filename><size><width>{SIZE}</width><height>{SIZE}"
        f"</height></size><object><name>a</name><bndbox>{box}</bndbox></object></annotation>"
    )


def images_of(root):
    """Returns the dataset's image files, relative to ``root``."""
    return [Path(r["file_name"]).relative_to(root).as_posix() for r in DatasetCatalog.get("own")]


def layout(root, lines, images, xmls, right):
    """Makes a VOC folder. ``xmls``: name -> ``<filename>``; ``right``: images of the xml's size."""
    for name in images:
        write_image(root / "JPEGImages" / name, (SIZE, SIZE) if name in right else (9, 9))
    for name, filename in xmls.items():
        write_xml(root / "Annotations" / f"{name}.xml", filename)
    (root / SPLIT).parent.mkdir(parents=True)
    (root / SPLIT).write_bytes("\r\n".join(lines).encode("utf-8-sig"))


NAMES = {
    "folders": (["a/1", "b/1"], ["1.jpg", "a/1.jpg", "b/1.jpg"], {"a/1": "1.jpg", "b/1": "1.jpg"},
                ["a/1.jpg", "b/1.jpg"]),
    "folders in the filename": (["a/1"], ["1.jpg", "a/1.jpg"], {"a/1": "a/1.jpg"}, ["a/1.jpg"]),
    "folders, no filename": (["a/1"], ["1.jpg", "a/1.png"], {"a/1": " "}, ["a/1.png"]),
    "another name in a folder": (["a/1"], ["a/x.png", "x.png"], {"a/1": "x.png"}, ["a/x.png"]),
    "a folder for the xml alone": (["a"], ["b/x.png"], {"a": "b/x.png"}, ["b/x.png"]),
    "names with numbers": (["frame 0", "frame 1"], ["frame 0.jpg", "frame 1.jpg"],
                           {"frame 0": "", "frame 1": ""}, ["frame 0.jpg", "frame 1.jpg"]),
    "beside the name cut off": (["frame 0"], ["frame.jpg", "frame 0.jpg"],
                                {"frame": "", "frame 0": ""}, ["frame 0.jpg"]),
    "flags": (["x 0  1", "y y -1", "a/1  0"], ["x 0.jpg", "y y.jpg", "a/1.jpg"],
              {"x 0": "", "y y": "", "a/1": ""}, ["a/1.jpg", "x 0.jpg", "y y.jpg"]),
    "endings in the list": (["x.jpg"], ["x.jpg"], {"x": ""}, ["x.jpg"]),
    "the ending of the filename": (["a"], ["a.jpg", "a.png"], {"a": "a.png"}, ["a.png"]),
    "an image of another name": (["a"], ["b.tif"], {"a": "b.tif"}, ["b.tif"]),
    "a filename that is not there": (["a"], ["a.JPEG"], {"a": "b.jpg"}, ["a.JPEG"]),
    **{f"the filename {said[:2]}": (["a"], ["a.jpg"], {"a": said}, ["a.jpg"])
       for said in (".", "/", "./", "x" * 300)},
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_the_image_of_an_xml(case, tmp_path):
    *what, wanted = NAMES[case]
    layout(tmp_path, *what, wanted)
    register(tmp_path)
    assert images_of(tmp_path / "JPEGImages") == wanted


def no_xml(line):
    return [line], [], {}, f"train.txt lists '{line}', but .*{line}.xml does not exist"


UNCLEAR = {
    "two endings": (["a"], ["a.jpg", "a.png"], {"a": ""}, "<filename> must say which"),
    "two names": (["a"], ["a.jpg", "b.jpg"], {"a": "b.jpg"}, "correct <filename>"),
    "one image of two": (
        ["a", "b"],
        ["c.jpg"],
        {"a": "c.jpg", "b": "c.jpg"},
        "a.xml and .*b.xml both describe the image c.jpg",
    ),
    "the image at the top": (["a/1"], ["1.jpg"], {"a/1": "1.jpg"}, r"a/1\.jpg is missing"),
    "backslashes": (["a"], ["b.jpg"], {"a": "x\\b.jpg"}, "backslashes, write /"),
    "backslashes in the list": (["b\\1"], [], {}, r"b\\1\.xml does .*backslashes, write / for"),
    **{line: no_xml(line) for line in ("gone", "gone 1", "cam1/gone")},
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_a_line_whose_xml_or_image_is_unclear(case, tmp_path):
    lines, images, xmls, message = UNCLEAR[case]
    layout(tmp_path, lines, images, xmls, images)
    refused(tmp_path, message)


def replace(old, new):
    def change(root):
        text = (root / XML).read_text()
        assert old in text
        (root / XML).write_text(text.replace(old, new))

    return change


def cut(name, keep):
    def change(root):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(keep * len(data))])

    return change


def coded(name):
    text = f"<?xml version='1.0' encoding='{name}'?><annotation></annotation>"
    return lambda root: (root / XML).write_text(text)


def folder(root):
    (root / SPLIT).unlink()
    (root / SPLIT).mkdir()


def deeper(root):
    text = (root / XML).read_text()
    (root / XML).write_text(f"<annotations>{text}</annotations>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(XML, 0.6), r"a_2\.xml is not valid xml"),
        (cut(XML, 0), r"a_2\.xml"),
        (coded("gb2312"), r"a_2\.xml"),  # an encoding that expat lacks
        (coded("own"), r"a_2\.xml"),
        (deeper, r"a_2.xml is not a VOC annotation: .*<annotations>"),
        (lambda root: (root / JPG).unlink(), r"a_2\.xml: the image .*a_2\.jpg is missing"),
        (cut(JPG, 0.7), r"a_2\.xml: the image .*a_2\.jpg is truncated"),
        (replace("<width>60<", "<width>61<"), r"a_2\.jpg is 60x50 px.*says 61x50"),
        (replace("<xmin>10</xmin>", ""), r"a_2\.xml: object 1, 'dog' needs a bndbox"),
        (replace("<xmin>10<", "<xmin>ten<"), r"a_2\.xml: object 1, 'dog' needs a bndbox"),
        (replace("<xmin>10<", "<xmin>inf<"), r"a_2\.xml: object 1, 'dog' needs a bndbox"),
        (replace("<name>dog</name>", ""), r"a_2\.xml: object 1 has no name"),
        (lambda root: (root / SPLIT).write_text("empty"), r"train\.txt: .* 'own' has no boxes"),
        (lambda root: (root / SPLIT).write_text("\n"), r"train\.txt lists no image"),
        (lambda root: (root / SPLIT).write_bytes(b"\xff"), r"train\.txt is not in UTF-8"),
        (folder, r"train\.txt"),
    ],
)
def test_bad_data_is_refused_in_one_line(root, damage, message):
    damage(root)
    refused(root, message)


def test_a_missing_split_names_those_that_are_there(root, tmp_path):
    for split in ("test", "train.txt"):
        refused(root, rf"{split}\.txt does not exist \(existing splits: train\)", split)
    refused(tmp_path / "nowhere", r"does not exist \(existing splits: none\)")


# Folders of images and xml, as LabelImg, Roboflow and others write them


@pytest.mark.parametrize(
    ("file", "xml", "root", "split"),
    [
        ("a.jpg", "a.xml", "", "."),  # LabelImg
        ("train/a.jpg", "train/a.xml", "", "train"),  # Roboflow
        ("images/a.jpg", "annotations/a.xml", "", "."),
        ("sub/a.jpg", "sub/a.xml", "", "."),
        ("images/a.jpg", "images/a.xml", "", "."),
        ("images/a.jpg", "labels/a.xml", "", "."),
        ("Images/a.jpg", "Annotations/a.xml", "", "."),
    ],
)
def test_a_folder_of_images_with_xml(file, xml, root, split, tmp_path, warnings):
    write_image(tmp_path / file)
    write_image(tmp_path / file.replace("a.jpg", "left.jpg"))
    for name in ("a.xml", "._a.xml", ".ipynb_checkpoints/a.xml"):
        write_xml(tmp_path / xml.replace("a.xml", name), "a.jpg")
    assert register(tmp_path / root, split) == ["a"]
    assert images_of(tmp_path) == [file]
    (record,) = DatasetCatalog.get("own")
    assert [a["bbox"] for a in record["annotations"]] == [[4, 4, 16, 26]]
    (line,) = warnings()
    assert "ignored 1 image(s) without an xml" in line and "left.jpg" in line


def test_a_folder_that_is_not_whole(tmp_path):
    write_image(tmp_path / "a.jpg")
    refused(tmp_path, f"the folder {tmp_path} contains no xml files", ".")
    write_xml(tmp_path / "a.xml")
    refused(tmp_path, "use . as the split")
    # An xml file in a different folder is not ignored.
    write_image(tmp_path / "images/b.jpg")
    write_xml(tmp_path / "annotations/b.xml", "b.jpg")
    refused(tmp_path, "annotations/b.jpg is missing", ".")


def test_boxes_that_are_rotated_are_said(root, warnings):
    turned = "<attribute><name>rotation</name><value>45.0</value></attribute></object>"
    replace("</object>", turned)(root)
    register(root)
    (line,) = warnings()
    assert "1 box(es) are marked as rotated" in line


def test_real_blood_cells(real_data, warnings):
    sets = [(f"bccd_{split}", real_data / "bccd", split) for split in ("train", "val", "test")]
    names = register_datasets(voc=sets, train=["bccd_train"])
    assert names == ["Platelets", "RBC", "WBC"]
    # The data have two boxes of zero size: one in train, one in val.
    dropped = "dropped 1 box(es) without area inside their image"
    assert [line.split(": ")[1] for line in warnings()] == [dropped] * 2
    counts = Counter()
    for name, images in (("bccd_train", 205), ("bccd_val", 87), ("bccd_test", 72)):
        records = DatasetCatalog.get(name)
        assert len(records) == images
        counts.update(names[a["category_id"]] for r in records for a in r["annotations"])
    assert counts == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
