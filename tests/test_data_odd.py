"""Data that are odd: what is said of it, and what is refused, with file, entry and remedy."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rambo_det.data import register_datasets
from rambo_det.data.files import image_size
from rambo_det.errors import InputError

from .voc_folder import write_voc

pytestmark = pytest.mark.usefixtures("catalogs")

SIZE = 40


@pytest.fixture
def coco(tmp_path):
    """Writes a json of two images and four boxes after a change; registers it as ``own``."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.effect_noise((SIZE, SIZE), 60).convert("RGB").save(tmp_path / "images" / name)
    boxes = [[1, 2, 10, 12], [5, 5, 20, 20], [3, 20, 30, 8], [8, 9, 7, 6]]
    content = {
        "images": [
            {"id": k, "file_name": name, "width": SIZE, "height": SIZE}
            for k, name in enumerate(("a.png", "b.png"))
        ],
        "annotations": [
            {"id": k, "image_id": k % 2, "category_id": 1 + k // 2, "bbox": box, "iscrowd": 0}
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }

    def register(change=lambda content: None, coding="utf-8", name="own"):
        change(content)
        (tmp_path / "set.json").write_bytes(json.dumps(content).encode(coding))
        return register_datasets([(name, tmp_path / "set.json", tmp_path / "images")])

    register.folder = tmp_path
    return register


def each(**fields):
    """A change of all annotations; a function gives the value from the annotation."""

    def change(content):
        for item in content["annotations"]:
            item.update({k: v(item) if callable(v) else v for k, v in fields.items()})

    return change


def first(**fields):
    return lambda content: content["annotations"][0].update(fields)


def corners(item):
    x, y, w, h = item["bbox"]
    return [x + 10, y + 10, x + w, y + h] if w > 10 and h > 10 else [20, 21, 38, 39]


def small_corners(content):
    """One of four boxes reaches beyond its image."""
    each(bbox=[2, 3, 9, 10])(content)
    first(bbox=[20, 21, 38, 39])(content)


SAID = {
    "corners": (small_corners, "1 of 4 boxes reach beyond .* are they x1, y1, x2, y2"),
    "beyond": (first(bbox=[30, 30, 15, 5]), r"1 of 4 boxes reach beyond .*: annotations\[0\] of a"),
    "a part of 1": (first(bbox=[0.1, 0.2, 0.3, 0.3]), "1 of 4 boxes have fractions .* multiply"),
    "area 0": (each(area=0), r"4 'area'\(s\) are 0 or far"),
    "area of the image": (first(area=1600), r"1 'area'\(s\) are 0 or far"),
    "area as a part": (first(area=0.05), r"1 'area'\(s\) are 0 or far"),
    "area of another mask": (
        first(area=4, segmentation=[[1, 2, 11, 2, 11, 14, 1, 14]]), r"1 'area'\(s\) are 0 or far",
    ),
    "twice": (first(image_id=0, category_id=2, bbox=[3, 20, 30, 8]), "1 box.* there twice"),
    "mask outside": (first(segmentation=[[50, 50, 60, 50, 60, 60]]), "left out 1 mask.* or pol"),
    "mask beyond": (first(segmentation=[[1, 2, 50, 2, 50, 14, 1, 14]], bbox=[1, 2, 39, 12]),
                    "1 mask.* reach beyond"),
    "mask away": (first(segmentation=[[30, 30, 39, 30, 39, 39]]), r"1 mask\(s\) lie elsewhere"),
    "few points": (first(segmentation=[[1, 2, 3, 4]]), r"left out 1 polygon\(s\) of fewer"),
    "same file": (lambda c: c["images"][1].update(file_name="a.png"), r"1 image\(s\) name a file"),
    "a crowd of a class": (
        lambda c: [c["annotations"][k].update(iscrowd=1) for k in (2, 3)], r"left out 2 crowd box",
    ),
    "dropped": (first(bbox=[5, 5, 0, 4]), r"dropped 1 box\(es\) .*: annotations\[0\] of a.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_what_is_odd_is_said_with_its_place(coco, case, caplog):
    change, message = SAID[case]
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        coco(change)
    (line,) = [r.getMessage() for r in caplog.records if "set.json" in r.getMessage()]
    assert re.search(message, line), line


def test_nothing_is_said_of_good_data(coco, caplog):
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        coco(each(area=lambda item: item["bbox"][2] * item["bbox"][3] * 0.6))
    assert not caplog.records


def test_ten_places_are_named_and_the_others_counted(coco, caplog):
    slip = {"image_id": 0, "category_id": 1, "bbox": [5, 5, 0, 4]}
    with caplog.at_level(logging.WARNING, logger="rambo_det"):
        coco(lambda content: content["annotations"].extend(dict(slip) for _ in range(12)))
    assert "annotations[13] of a.png and 2 more" in caplog.text
    assert "annotations[14]" not in caplog.text


def test_an_area_that_cannot_be_is_that_of_box_or_mask(coco):
    coco(lambda c: (each(area=0)(c), first(segmentation=[[1, 2, 11, 2, 11, 14]])(c)))
    stored = json.loads(Path(MetadataCatalog.get("own").json_file).read_text())["annotations"]
    assert [item["area"] for item in stored] == [60, 400, 240, 42]


REFUSED = {
    "all crowd": (each(iscrowd=1), "no box that can be trained on or counted: all 4 are crowds"),
    "corners": (each(bbox=corners), r"3 of 4 boxes .*annotations\[0\] of a.png.*x, y, width"),
    "all ignored": (each(ignore=1), "all 4 are crowds"),
    "all parts of 1": (each(bbox=[0.1, 0.2, 0.3, 0.3]), r"all 4 boxes have fractions .*multiply"),
    "all without area": (
        each(bbox=[5, 5, 0, 4]),
        r"no boxes with area inside.*annotations\[0\] of",
    ),
    "a number too large": (first(bbox=[1, 2, 3, 10**400]), r"annotations\[0\]: 'bbox' is"),
    "a truth value": (first(bbox=[1, 2, 3, True]), r"annotations\[0\]: 'bbox' is"),
    "backslashes": (lambda c: c["images"][0].update(file_name="x\\a.png"), "backslashes, write /"),
    "half a letter": (lambda c: c["categories"][0].update(name="\ud800"), r"categories\[0\]"),
    "a name in two lines": (
        lambda c: c["images"][0].update(file_name="a\nb"),
        r"a\\nb' is missing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(coco, case):
    change, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as error:
        coco(change)
    assert "\n" not in str(error.value) and "own" not in DatasetCatalog.list()


def test_a_byte_order_mark_is_read(coco):
    assert coco(coding="utf-8-sig") == ["cat", "dog"]


def test_a_set_can_be_registered_again_once_it_is_removed(coco):
    coco()
    with pytest.raises(InputError, match=r"already registered: .*DatasetCatalog.remove\('own'\)"):
        coco()
    DatasetCatalog.remove("own")  # not from the other catalog, as people do
    assert coco(lambda c: c["annotations"].pop()) == ["cat", "dog"]
    assert sum(len(r["annotations"]) for r in DatasetCatalog.get("own")) == 3


DEEP = {
    "16-bit": np.full((8, 8), 900, np.uint16),
    "32-bit": np.full((8, 8), 900, np.int32),
    "floating point": np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8),
}


@pytest.mark.parametrize("kind", DEEP)
def test_images_of_more_than_8_bits_are_refused(kind, tmp_path):
    Image.fromarray(DEEP[kind]).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"a.tif is a {kind} image with values .* 8 bits"):
        image_size(tmp_path / "a.tif", "list")
    Image.fromarray(DEEP[kind] * 0 + 200).save(tmp_path / "a.tif")  # as 8 bits have them
    assert image_size(tmp_path / "a.tif", "list") == (8, 8)


def test_an_image_over_pillows_limit_is_not_called_broken(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(InputError, match=r"a.png: Image size .* exceeds limit.*Scale it down"):
        image_size(tmp_path / "a.png", "list")


def test_predict_refuses_them_by_name_too(tmp_path, finished_run):
    Image.fromarray(DEEP["16-bit"]).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "rambo_det.cli.predict", "--run", finished_run / "out"]
    command += [tmp_path / "a.png", "--output", tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 2 and "16-bit" in done.stderr.splitlines()[-1]


def write_xml(file, filename=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    box = "<xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>30</ymax>"
    file.write_text(
        f"<annotation><filename>{filename}</filename><object><name>a</name><bndbox>{box}</bndbox>"
        "</object></annotation>"
    )


def voc(root, lines, images, xmls):
    """A VOC tree; ``xmls``: name -> ``<filename>``."""
    for name in images:
        (root / "JPEGImages" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(root / "JPEGImages" / name)
    for name, filename in xmls.items():
        write_xml(root / "Annotations" / f"{name}.xml", filename)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(lines))
    register_datasets(voc=[("own", root, "train")])
    folder = root / "JPEGImages"
    return [Path(r["file_name"]).relative_to(folder).as_posix() for r in DatasetCatalog.get("own")]


NAMES = {
    "folders": (["a/1", "b/1"], ["1.jpg", "a/1.jpg", "b/1.jpg"], {"a/1": "1.jpg", "b/1": "1.jpg"},
                ["a/1.jpg", "b/1.jpg"]),
    "folders in the filename": (["a/1"], ["1.jpg", "a/1.jpg"], {"a/1": "a/1.jpg"}, ["a/1.jpg"]),
    "folders, no filename": (["a/1"], ["1.jpg", "a/1.png"], {"a/1": ""}, ["a/1.png"]),
    "names with numbers": (["frame 0", "frame 1"], ["frame 0.jpg", "frame 1.jpg"],
                           {"frame 0": "", "frame 1": ""}, ["frame 0.jpg", "frame 1.jpg"]),
    "beside the name cut off": (["frame 0"], ["frame.jpg", "frame 0.jpg"],
                                {"frame": "", "frame 0": ""}, ["frame 0.jpg"]),
    "flags": (["x  1", "y y -1"], ["x.jpg", "y y.jpg"], {"x": "", "y y": ""}, ["x.jpg", "y y.jpg"]),
    "the ending of the filename": (["a"], ["a.jpg", "a.png"], {"a": "a.png"}, ["a.png"]),
    "an image of another name": (["a"], ["b.jpg"], {"a": "b.jpg"}, ["b.jpg"]),
    "a filename that is not there": (["a"], ["a.jpg"], {"a": "b.jpg"}, ["a.jpg"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_the_image_of_an_xml(case, tmp_path):
    lines, images, xmls, wanted = NAMES[case]
    assert voc(tmp_path, lines, images, xmls) == wanted


UNCLEAR = {
    "two endings": (["a"], ["a.jpg", "a.png"], {"a": ""}, "<filename> must say which"),
    "two names": (["a"], ["a.jpg", "b.jpg"], {"a": "b.jpg"}, "correct <filename>"),
    "one image of two": (["a", "b"], ["c.jpg"], {"a": "c.jpg", "b": "c.jpg"}, "that of a.xml too"),
    "the image at the top": (["a/1"], ["1.jpg"], {"a/1": "1.jpg"}, r"a/1\.jpg is missing"),
    "backslashes": (["a"], ["b.jpg"], {"a": "x\\b.jpg"}, "backslashes, write /"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_an_xml_whose_image_is_unclear(case, tmp_path):
    *what, message = UNCLEAR[case]
    with pytest.raises(InputError, match=message):
        voc(tmp_path, *what)


def test_objects_that_lie_deeper_are_not_overlooked(tmp_path):
    root = write_voc(tmp_path, "train", {"a": [("dog", (5, 6, 20, 30), 0)]})
    file = root / "Annotations" / "a.xml"
    file.write_text(f"<annotations>{file.read_text()}</annotations>")
    with pytest.raises(InputError, match=r"a.xml is not VOC's: <object> must lie"):
        register_datasets(voc=[("own", root, "train")])
