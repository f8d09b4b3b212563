"""The quickstart's drawn dataset: the content of the images, and the safety of the cache."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from rambo_det.data import drawing, register_shapes, shapes
from rambo_det.errors import InputError

from .forked import python


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Sets an empty cache and a dataset of 9 images; returns the folder of the dataset."""
    monkeypatch.setenv("RAMBO_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(drawing.SPEC, "images", {"train": 6, "val": 3})
    return shapes.shapes_folder()


def printed_by(program, **environment):
    done = python("-c", program, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="takes on the id of a user without a home")
@pytest.mark.parametrize("exists", [False, True])
def test_a_user_without_a_home_has_a_cache_but_not_that_of_another_user(exists):
    """The package loads compiled code from its cache, so no other user may write into it."""
    folder = Path("/tmp/rambo_det-54321")
    if exists:
        folder.mkdir()
    try:
        printed = printed_by(
            "import os; from rambo_det.paths import cache_dir\n"
            "del os.environ['HOME']; os.environ.pop('RAMBO_DET_CACHE', None); os.setuid(54321)\n"
            "try: print(folder := cache_dir(), oct(folder.stat().st_mode))\n"
            "except ValueError as error: print(error)",
            TMPDIR="/tmp", HOME="/",
        )  # fmt: skip
    finally:
        folder.rmdir()
    assert printed.startswith(f"{folder} belongs to another user: set " if exists else
                              f"{folder} 0o40700\n")  # fmt: skip


def test_an_image_depends_only_on_its_split_and_index():
    image, objects = drawing.draw_image("train", 5)
    drawing.draw_image("val", 5)
    again, same_objects = drawing.draw_image("train", 5)
    assert np.array_equal(image, again) and objects == same_objects
    assert not np.array_equal(image, drawing.draw_image("val", 5)[0])
    assert not np.array_equal(image, drawing.draw_image("train", 6)[0])


def test_boxes_enclose_the_visible_part_of_objects():
    labels: Counter[int] = Counter()
    sides = []
    for index in range(60):
        image, objects = drawing.draw_image("train", index)
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8 and image.std() > 10
        assert 1 <= len(objects) <= 5
        for label, (x, y, width, height), area in objects:
            assert 0 <= x < x + width <= 96 and 0 <= y < y + height <= 96
            assert 0 < area <= width * height
            labels[label] += 1
            sides.append(max(width, height))
    counts = [labels[index] for index in range(len(drawing.CLASSES))]
    assert counts == sorted(counts, reverse=True) and counts[3] > 0
    assert counts[0] > 3 * counts[3]
    assert min(sides) < 21 and max(sides) > 40


def test_a_drawn_object_differs_from_what_it_covers(monkeypatch):
    image, objects = drawing.draw_image("val", 1)
    monkeypatch.setattr(drawing, "_paint", lambda *arguments: None)
    background, _ = drawing.draw_image("val", 1)
    for _, (x, y, width, height), area in objects:
        inside = np.s_[y : y + height, x : x + width]
        change = np.abs(image[inside].astype(int) - background[inside].astype(int)).max(axis=2)
        assert (change > 10).sum() > 0.5 * area


def test_files_are_a_coco_data_set(small):
    assert shapes.prepare_shapes() == small
    for split, count in (("train", 6), ("val", 3)):
        content = json.loads((small / f"{split}.json").read_text())
        assert len(content["images"]) == count
        assert [category["name"] for category in content["categories"]] == list(drawing.CLASSES)
        # pycocotools treats annotation id 0 as "no match".
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        for image in content["images"]:
            drawn, objects = drawing.draw_image(split, image["id"] - 1)
            stored = cv2.imread(str(small / split / image["file_name"]))
            assert np.array_equal(stored, drawn)
            boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
            assert boxes == [box for _, box, _ in objects]


def test_a_set_that_is_there_is_reused(small):
    shapes.prepare_shapes()
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    shapes.prepare_shapes()
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_a_failure_leaves_nothing_behind(small, monkeypatch):
    monkeypatch.setattr(shapes.cv2, "imwrite", lambda *arguments: False)
    with pytest.raises(OSError, match="could not write"):
        shapes.prepare_shapes()
    assert list(small.parent.iterdir()) == []


def test_several_at_once_end_with_one_set(small):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: shapes.prepare_shapes(), range(4)))
    assert set(folders) == {small} and len(list(small.rglob("*.png"))) == 9
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_other_drawing_parameters_get_another_folder(small, monkeypatch):
    monkeypatch.setitem(drawing.SPEC, "min_contrast", 10)
    assert shapes.shapes_folder() != small


def test_registered_set_draws_at_first_use(catalogs, small):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in ("rambo_shapes_train", "rambo_shapes_val"):
            catalog.pop(name)  # the fixture registered the full dataset
    register_shapes()
    register_shapes()
    assert not small.exists()
    records = DatasetCatalog.get("rambo_shapes_train")
    assert len(records) == 6 and all(Path(record["file_name"]).is_file() for record in records)
    assert MetadataCatalog.get("rambo_shapes_train").thing_classes == list(drawing.CLASSES)


def test_importing_the_package_registers_no_data_set():
    pytest.importorskip("detectron2")
    printed = printed_by(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "before = set(DatasetCatalog), set(MetadataCatalog.list())\n"
        "import rambo_det, rambo_det.data\n"
        "assert (set(DatasetCatalog), set(MetadataCatalog.list())) == before\n"
        "rambo_det.data.register_shapes()\n"
        "print(sorted(set(DatasetCatalog) - before[0]))"
    )
    assert printed == "['rambo_shapes_train', 'rambo_shapes_val']\n"


def test_an_unwritable_cache_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAMBO_DET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="RAMBO_DET_CACHE"):
        shapes.prepare_shapes()
