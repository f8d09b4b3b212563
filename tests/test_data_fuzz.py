"""Data with one to three random changes are read as an independent reader reads them, or refused
in one line. No box is lost without a warning."""

import copy
import io
import json
import math
import shutil
import tempfile
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from rambo_det.data import register_datasets
from rambo_det.data.files import check_image
from rambo_det.errors import InputError

from .torture import WHOLE

FUZZ = settings(
    max_examples=2000 if WHOLE else 200, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SIZES = {"a.png": (40, 30), "b.jpg": (24, 36)}
ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 3, 39, 40, 41, 1e9, -1e9, 1e300, 10**400, 0.5, 0.0, -0.0,
     float("nan"), float("inf"), "", "a", "1", "nan", " ", "a.png", "b.jpg", "A.PNG", "x/../a.png",
     "\ud800", "ä\n", [], {}, [[]], [1, 2, 3, 4], [0.1, 0.1, 0.5, 0.5], [5, 5, 20, 20],
     [30, 20, 39, 29], [[1, 2, 9, 2, 9, 9]], {"size": [30, 40], "counts": "PPP0"},
     {"size": [30, 40], "counts": [600, 600]}]
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, size in SIZES.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / name)
    return folder


@pytest.fixture
def accepted():
    """Returns a list, to which a test adds the examples that are read; checks that some are."""
    examples = []
    yield examples
    assert len(examples) >= 10, "the reader refuses nearly everything"


def register(caplog, accepted, **data):
    """Returns (image, box, class, crowd) of each object, and the images; None if refused."""
    caplog.clear()
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("fuzz", None)
    try:
        classes = register_datasets(**data)
    except InputError as error:
        assert str(error) and str(error).isprintable(), repr(str(error))
        assert "fuzz" not in DatasetCatalog.list()
        return None
    accepted.append(data)
    records = DatasetCatalog.get("fuzz")
    return sorted(
        (Path(r["file_name"]).name, tuple(a["bbox"]), classes[a["category_id"]], a["iscrowd"])
        for r in records for a in r["annotations"]
    ), {Path(r["file_name"]).name for r in records}  # fmt: skip


def inside(box, size):
    """Returns whether a box (x, y, width, height) has area inside its image."""
    x, y, width, height = box
    inside_x = min(x + width, size[0]) - max(x, 0)
    inside_y = min(y + height, size[1]) - max(y, 0)
    return min(width, height, inside_x, inside_y) > 0


def check(found, wanted, all_boxes, caplog):
    """Checks that the wanted boxes were found, to 1e-6 px, and that lost boxes are warned of."""
    assert [f[0] for f in found] == [w[0] for w in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one[2:] == other[2:] and one[1] == pytest.approx(other[1], rel=1e-6, abs=1e-6)
    if len(found) < all_boxes:
        assert "dropped" in caplog.text or "ignored" in caplog.text


# COCO


def coco_content():
    boxes = [[1, 2, 10, 12], [5, 5, 20, 20], [3, 20, 15, 8], [8, 9, 7, 6]]
    return {
        "images": [
            {"id": k, "file_name": name, "width": w, "height": h}
            for k, (name, (w, h)) in enumerate(SIZES.items())
        ],
        "annotations": [
            {"id": k + 1, "image_id": k % 2, "category_id": 1 + k // 2, "bbox": box, "iscrowd": 0,
             "area": box[2] * box[3]}
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }  # fmt: skip


@st.composite
def changed_json(draw):
    """Draws the content with some of its values replaced, removed, added or doubled."""
    content = coco_content()
    for _ in range(draw(st.integers(1, 3))):
        names = ["images", "annotations", "annotations", "categories"]
        part = content[draw(st.sampled_from(names))]
        if not part:
            continue
        index = draw(st.integers(0, len(part) - 1))
        item = part[index]
        action = draw(st.sampled_from(["set", "set", "set", "box", "delete", "double", "drop"]))
        keys = [*item, "segmentation", "ignore", "keypoints"] if isinstance(item, dict) else []
        if action == "drop":
            del part[index]
        elif action == "double":
            part.append(copy.deepcopy(item))
        elif not isinstance(item, dict):
            continue
        elif action == "box" and isinstance(item.get("bbox"), list) and len(item["bbox"]) == 4:
            item["bbox"][draw(st.integers(0, 3))] = draw(ODD)
        elif action == "delete":
            item.pop(draw(st.sampled_from(keys)), None)
        else:
            item[draw(st.sampled_from(keys))] = draw(ODD)
    return content


@FUZZ
@given(content=changed_json(), coding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_coco(content, coding, images, accepted, caplog, catalogs):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "set.json"
        file.write_bytes(json.dumps(content).encode(coding))
        result = register(caplog, accepted, coco=[("fuzz", file, images)])
        if result is None:
            return
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = number  # pycocotools needs ids; this package sets its own
        file.write_bytes(json.dumps(content).encode())
        with redirect_stdout(io.StringIO()):
            truth = COCO(str(file))
    crowd = {id(a): bool(a.get("iscrowd") or a.get("ignore")) for a in truth.dataset["annotations"]}
    kept = [
        a for a in truth.dataset["annotations"]
        if inside(a["bbox"], SIZES[truth.imgs[a["image_id"]]["file_name"]])
    ]  # fmt: skip
    trained = {a["category_id"] for a in kept if not crowd[id(a)]}
    wanted = sorted(
        (truth.imgs[a["image_id"]]["file_name"], tuple(a["bbox"]),
         truth.cats[a["category_id"]]["name"].strip(), int(crowd[id(a)]))
        for a in kept if a["category_id"] in trained
    )  # fmt: skip
    found, names = result
    check(found, wanted, len(truth.dataset["annotations"]), caplog)
    assert names == {image["file_name"] for image in truth.imgs.values()}


# YOLO

WORDS = st.sampled_from(
    ["0", "1", "2", "-1", "0.5", "1.0", "1.005", "1.2", "-0.005", "nan", "inf", "1e-3", "1e400",
     "x", "0,5", "0x1", "\ufeff0", "1_0", ""]
)  # fmt: skip


@FUZZ
@given(data=st.data())
def test_yolo(data, images, accepted, caplog, catalogs):
    lines = [["0", "0.5", "0.5", "0.25", "0.5"], ["1", "0.25", "0.25", "0.1", "0.2"],
             ["1", "0.1", "0.1", "0.5", "0.1", "0.5", "0.5"]]  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines or [[]]))
        action = data.draw(st.sampled_from(["set", "set", "cut", "add", "remove", "double"]))
        if not line:
            continue
        if action == "set":
            line[data.draw(st.integers(0, len(line) - 1))] = data.draw(WORDS)
        elif action == "cut":
            line.pop()
        elif action == "add":
            line.append(data.draw(WORDS))
        elif action == "remove":
            lines.remove(line)
        else:
            lines.append(list(line))
    names = data.draw(st.sampled_from(["[cat, dog]", "{0: cat, 1: dog}", "[cat]", "{1: dog}", "x"]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "data.yaml").write_text(f"train: images\nnames: {names}\n")
        shutil.copytree(images, root / "images")
        (root / "labels").mkdir()
        end = data.draw(st.sampled_from(["\n", "\r\n", " \n\n"]))
        text = end.join(" ".join(line) for line in lines)
        (root / "labels" / "a.txt").write_text(text, newline="")
        result = register(caplog, accepted, yolo=[("fuzz", root / "data.yaml", "train")])
    if result is None:
        return
    width, height = SIZES["a.png"]
    labels = {0: "cat", 1: "dog"}
    wanted, number = [], 0
    for words in filter(None, (line.split() for line in text.removeprefix("\ufeff").split("\n"))):
        number += 1
        label, *points = map(float, words)
        if len(points) == 4:
            x, y, w, h = points
            box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        else:
            xs, ys = [x * width for x in points[::2]], [y * height for y in points[1::2]]
            box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        if inside(box, (width, height)):
            wanted.append(("a.png", box, labels[int(label)], 0))
    found, there = result
    check(sorted(found), sorted(wanted), number, caplog)
    assert there == set(SIZES) and "1 image(s) have no label file" in caplog.text  # b.jpg


# VOC

VOC = """<annotation><filename>a.png</filename><size><width>40</width><height>30</height></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax>
<ymax>25</ymax></bndbox></object><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin>
<xmax>9.5</xmax><ymax>9</ymax></bndbox></object></annotation>"""
TEXTS = st.sampled_from(
    ["", " ", "0", "1", "41", "-5", "0.5", "nan", "inf", "1e400", "x", "b.jpg", "c.jpg", "a", "A",
     "x\\a.png", "1,5"]
)  # fmt: skip


@FUZZ
@given(data=st.data())
def test_voc(data, images, accepted, caplog, catalogs):
    tree = ET.fromstring(VOC)
    for _ in range(data.draw(st.integers(1, 3))):
        parents = [(parent, child) for parent in tree.iter() for child in parent]
        if not parents:
            break
        parent, child = data.draw(st.sampled_from(parents))
        action = data.draw(st.sampled_from(["set", "set", "set", "tag", "remove", "double"]))
        if action == "set":
            child.text = data.draw(TEXTS)
        elif action == "tag":
            child.tag = data.draw(st.sampled_from(["name", "object", "xmin", "bndbox", "part"]))
        elif action == "remove":
            parent.remove(child)
        else:
            parent.append(copy.deepcopy(child))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(images, root / "JPEGImages")
        for part in ("Annotations", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        (root / "Annotations" / "a.xml").write_bytes(ET.tostring(tree))
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
        result = register(caplog, accepted, voc=[("fuzz", root, "train")])
    if result is None:
        return
    found, names = result
    assert names == {"a.png"}  # b.jpg in <filename> contradicts the name
    wanted = []
    objects = tree.findall("object")
    for item in objects:
        x1, y1, x2, y2 = (float(item.find("bndbox").findtext(k))
                          for k in ("xmin", "ymin", "xmax", "ymax"))  # fmt: skip
        box = (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
        if x2 > x1 and y2 > y1 and inside(box, SIZES["a.png"]):
            wanted.append(("a.png", box, " ".join(item.findtext("name").split()), 0))
    check(found, sorted(wanted), len(objects), caplog)


# Images


@FUZZ
@given(data=st.data())
def test_images(data, accepted, tmp_path):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"]))
    mode = data.draw(st.sampled_from(["RGB", "L", "P", "1", "RGBA", "I;16", "F", "CMYK"]))
    size = data.draw(st.sampled_from([(1, 1), (40, 30), (7, 90)]))
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.sampled_from([0, 1, 3, 6, 8, 9]))
    buffer = io.BytesIO()
    try:
        Image.new(mode, size).save(buffer, kind, exif=exif)
    except (OSError, ValueError, KeyError):  # the format lacks the mode
        return
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.0]))
    file = tmp_path / "x"
    file.write_bytes(content[: math.ceil(end * len(content))])
    try:
        found = check_image(file, "fuzz", decode=True)[:2]
    except InputError as error:
        assert str(error).isprintable()
        return
    accepted.append(kind)
    assert read_image(str(file), "RGB").shape[1::-1] == found  # as Detectron2 reads it
    with Image.open(file) as image:
        assert ImageOps.exif_transpose(image).size == found
