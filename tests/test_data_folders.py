"""Exports of YOLO, Roboflow and CVAT; data without splits; --check-data."""

import json
import os
import re
import shutil
import struct
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rambo_det.cli.train import main, parse_args
from rambo_det.data import hold_out, register_datasets
from rambo_det.engine.data_pages import write_pages
from rambo_det.engine.run_data import read_data
from rambo_det.engine.setup import build_config
from rambo_det.engine.trainer import RamboTrainer
from rambo_det.errors import InputError

from .command_line import call, refusal, refused
from .models import QUICKSTART, THIN, write_broken_image, write_coco, write_image, write_voc

pytestmark = pytest.mark.usefixtures("catalogs")

LINE = "0 0.5 0.5 0.25 0.5\n"
BOX = [15, 5, 10, 10]  # the box of LINE, in an image of 40x20 px
image = partial(write_image, size=(40, 20))


def yolo(folder, yaml, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml)
    for name in images:
        image(folder / name)
    for name, text in labels.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def boxes(name="own"):
    return {
        r["file_name"].rpartition("/")[2]: [a["bbox"] for a in r["annotations"]]
        for r in DatasetCatalog.get(name)
    }


LAYOUTS = {
    "Ultralytics": (
        "path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n",
        ["images/train/a.jpg"], {"labels/train/a.txt": LINE},
    ),
    "Roboflow": (
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n",
        ["train/images/a.jpg"], {"train/labels/a.txt": LINE},
    ),
    "a list": (
        "train: train.txt\nnames: [cat]\n",
        ["images/a.jpg"], {"train.txt": "./images/a.jpg\n", "labels/a.txt": LINE},
    ),
    "a list of CVAT": (
        "train: train.txt\nnames: [cat]\n", ["images/train/a.jpg"],
        {"train.txt": "data/images/train/a.jpg\n", "labels/train/a.txt": LINE},
    ),
    "several folders": ("train: [x/images]\nnames: [cat]\n", ["x/images/a.jpg"],
                        {"x/labels/a.txt": LINE}),
    "labels beside images": ("train: x\nnames: [cat]\n", ["x/a.jpg"], {"x/a.txt": LINE}),
    "a folder called images above": ("train: x/images/train\nnames: [cat]\n",
                                     ["x/images/train/a.jpg"], {"x/labels/train/a.txt": LINE}),
    "an upper-case suffix": ("train: images\nnames: [cat]\n", ["images/a.jpg"],
                             {"labels/a.TXT": LINE}),
    "valid for val": ("valid: x\nnames: [cat]\n", ["x/a.jpg"], {"x/a.txt": LINE}),
    "byte order marks": ("\ufefftrain: x\nnames: [cat]\n", ["x/a.jpg"],
                         {"x/a.txt": LINE.encode("utf-8-sig")}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_yolo_export(layout, tmp_path):
    yolo(tmp_path, *LAYOUTS[layout])
    split = "val" if layout == "valid for val" else "train"
    assert register_datasets(yolo=[("own", tmp_path / "data.yaml", split)]) == ["cat"]
    assert boxes() == {"a.jpg": [BOX]}


def plain(folder, labels, yaml="names: [cat, dog]", images=("x/a.jpg", "x/b.jpg"), split=None):
    yolo(folder, f"train: x\n{yaml}\n", images, labels)
    return register_datasets(yolo=[("own", folder / "data.yaml", "train")], split=split)


@pytest.mark.parametrize(
    "labels, said",
    [
        ({"x/a.txt": LINE + "0 0.5 0.5 0 0.5", "x/b.txt": "\n"}, r"dropped 1 box.*a\.txt:2"),
        ({"x/a.txt": LINE}, r"1 image\(s\) have no label file.*x/b\.jpg"),
        ({"x/a.txt": LINE, "x/b.txt": "\n", "x/z.txt": LINE},
         r"ignored 1 label file\(s\) without an image: x/z\.txt"),
        # Two lines, each with a box and two keypoints.
        ({"x/a.txt": LINE + "0 .5 .5 .2 .2 .9 .1 .8 .7\n0 .5 .5 .2 .2 1 .1 .8 .7", "x/b.txt": "\n"},
         r"1 image\(s\) have polygons while other objects are boxes.*: x/a\.jpg$"),
    ],
)  # fmt: skip
def test_labels_that_are_odd_are_said(labels, said, tmp_path, warnings):
    plain(tmp_path, labels)
    assert boxes()["a.jpg"][0] == BOX and boxes()["b.jpg"] == []
    (line,) = warnings()
    assert re.search(said, line)


def test_boxes_beyond_their_image_are_no_corners(tmp_path, warnings):
    """They would fit as x1, y1, x2, y2, but only a COCO json can have these by mistake."""
    plain(tmp_path / "yolo", {"x/a.txt": "0 0.6 0.5 0.9 0.9"})
    root = write_voc(tmp_path / "voc", "train", {"a": [("cat", (10, 10, 70, 45), 0)]})
    register_datasets(voc=[("of_voc", root, "train")])
    assert sum("1 of 1 boxes extend beyond their image" in line for line in warnings()) == 2


def test_a_polygon_is_a_box_and_a_mask(tmp_path):
    plain(tmp_path, {"x/a.txt": "1 0.25 0.5 0.5 0.5 0.5 1\n"})
    (found,) = [a for r in DatasetCatalog.get("own") for a in r["annotations"]]
    assert found["bbox"] == [10, 10, 10, 10]
    assert found["segmentation"] == [[10, 10, 20, 10, 20, 20]]
    assert MetadataCatalog.get("own").get("without_mask") is None


@pytest.mark.parametrize("names", ["[no, 1]", "{0: no, 1: '1'}", "['no ', ' 1']"])
def test_names_are_text_whatever_yaml_makes_of_them(names, tmp_path):
    labels = {"x/a.txt": LINE + LINE.replace("0 ", "1 ", 1)}
    assert plain(tmp_path, labels, f"names: {names}") == ["no", "1"]


A = {"x/a.txt": LINE}


@pytest.mark.parametrize(
    "yaml, labels, message",
    [
        ("names: [a]", {"x/a.txt": "7 0.5 0.5 0.2 0.2"}, r"a.txt:1: 'names' has no class 7"),
        ("names: [a]", {"x/a.txt": LINE + "0 20 10 10 10"},
         r"a.txt:2: values from 10 to 20 are not fractions .*divide px"),
        ("names: [a]", {"x/a.txt": "0 0 -.1 .5 .1 .5 .5"}, r"from -0.1 to 0.5 .*: cut off what"),
        ("names: [a]\ntrain: {a: b}", A, "'train' must be a path or a list of paths"),
        ("names: [a]", {"x/a.txt": "cat 0.5 0.5 0.2 0.2"}, r"a.txt:1: a line must be numbers"),
        ("names: [a]", {"x/a.txt": "0 nan 0.5 0.2 0.2"}, r"a.txt:1: a line must be numbers"),
        ("names: [a]", {"x/a.txt": "0 0.5 0.5 0.2 0.2 0.9"}, r"a.txt:1: the line has 6 numbers"),
        ("names: [a]", {"x/a.txt": b"\xff\xfe"}, r"a.txt is not in UTF-8"),
        ("names: [a]", {}, r"none of the 2 images has a label file; .*a.txt for"),
        ("", A, "it has no 'names'"),
        ("names: [a, a]", A, "a name or number twice"),
        ("names: {a: b}", A, "must be a list of names"),
        ("names: [[a]]", A, "must be a list of names"),
        ("nc: 2\nnames: [a]", A, "'nc' is 2, but 'names' has 1"),
        ("names: [a]\ntrain: y", A, "the path 'y' does not exist"),
        ("names: [a]\ntrain: y\\x", A, "backslashes, write /"),
        ("names: [a", A, "is not a yaml file"),
    ],
)  # fmt: skip
def test_a_bad_export_is_refused_in_one_line(yaml, labels, message, tmp_path):
    with refusal(message):
        plain(tmp_path, labels, yaml)


@pytest.mark.parametrize(
    "yaml, message",
    [("names: [a]\nval: x", "no split 'train' .existing splits: val"), ("- a", "no 'names'")],
)
def test_a_yaml_without_the_split_or_of_another_kind(yaml, message, tmp_path):
    yolo(tmp_path, yaml, ["x/a.jpg"], A)
    with refusal(message):
        register_datasets(yolo=[("own", tmp_path / "data.yaml", "train")])


@pytest.mark.parametrize(
    "json_file, images, split",
    [
        ("train/_annotations.coco.json", "train", "train"),  # Roboflow
        ("_annotations.coco.json", "", "."),
        ("annotations/instances_default.json", "images", "default"),  # CVAT
        ("annotations/instances_default.json", "images/default", "default"),
        ("annotations/instances_train2017.json", "train2017", "train2017"),  # COCO
    ],
)
def test_a_folder_with_its_json_inside(json_file, images, split, tmp_path):
    file, folder = map(Path, write_coco(tmp_path / "drawn", 2))
    root = tmp_path / "root"
    shutil.copytree(folder, root / images)
    (root / json_file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, root / json_file)
    register_datasets(coco=[("own", root, split)])
    assert set(boxes()) == {"0000.png", "0001.png"}


def test_a_folder_with_several_jsons_or_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of .* exist: name the json file"):
        register_datasets(coco=[("own", tmp_path, "train")])
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"several \(a.json, b.json\)"):
        register_datasets(coco=[("own", tmp_path, ".")])


def test_a_split_depends_on_file_names_alone(tmp_path):
    file, images = write_coco(tmp_path, 10)
    assert len(register_datasets([("own", file, images)], split=0.2)) > 1
    first = boxes("own_val")
    assert (len(boxes("own_train")), len(first)) == (8, 2)
    assert not set(boxes("own_train")) & set(first)
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"].reverse()
    (tmp_path / "train.json").write_text(json.dumps(content))
    register_datasets([("other", file, images)], split=0.2)
    assert set(boxes("other_val")) == set(first)


def test_a_split_of_yolo_data_is_trained_on_and_written_down(tmp_path, capsys):
    names = [f"images/{k}.jpg" for k in range(5)]
    labels = {f"labels/{k}.txt": LINE for k in range(5)}
    yolo(tmp_path, "train: images\nnames: [cat]\n", names, labels)
    out = tmp_path / "out"
    words = [
        "--config", QUICKSTART, "--register-yolo", "own", str(tmp_path / "data.yaml"), "train",
        "--split", "0.4", "DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)",
        *THIN, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(out),
    ]  # fmt: skip
    assert main(words) == 0
    assert "checkpoint: " in capsys.readouterr().out
    data = read_data(out)
    parts = {name: len(files) for name, files in data.parts.items()}
    assert parts == {"own_train": 3, "own_val": 2}
    assert [item[:2] for item in data.register] == [["coco", "own_train"], ["coco", "own_val"]]
    error = refused(capsys, main, *[word.replace("own_train", "own") for word in words])
    assert "(own_train, own_val) is in DATASETS.TRAIN, which is own" in error
    # A larger share sets images aside that were trained on.
    words[words.index("0.4")] = "0.8"
    for flag in ("--eval-only", "--resume"):
        for name in parts:
            DatasetCatalog.remove(name)
        assert main([flag, *words]) == 0
        warning = f"own_val: the run in {out} was trained on 2 of 4 images, for example "
        assert warning in capsys.readouterr().out, flag
    # An evaluation on new data uses the classes of the run, not those of the config.
    words = [
        "--config", QUICKSTART, "--register-yolo", "new", str(tmp_path / "data.yaml"), "train",
        "--eval-only", "DATASETS.TEST", "('new',)", *THIN, "OUTPUT_DIR", str(out),
    ]  # fmt: skip
    assert main(words) == 0
    assert "checkpoint: " in capsys.readouterr().out


def test_the_images_of_a_test_set_need_no_annotations_no_id_and_no_size(tmp_path):
    _, images = write_coco(tmp_path, 2)
    records = [{"file_name": f"{images}/000{k}.png"} for k in range(2)]
    DatasetCatalog.register("own", lambda: records)
    assert "2 images, 2 of them without boxes" in write_pages(["own"], tmp_path / "pages")


def test_data_are_looked_at_and_nothing_is_trained(tmp_path, capsys, warnings):
    labels = {"x/a.txt": LINE + LINE.replace("0 ", "1 ", 1), "x/b.txt": "0 0.5 0.5 0 0.5\n" + LINE}
    yolo(tmp_path, "train: x\nnames: [cat, dog]\n", ["x/a.jpg", "x/b.jpg", "x/c.jpg"], labels)
    words = ["--register-yolo", "my", tmp_path / "data.yaml", "train"]
    before = set(tmp_path.iterdir())
    command = ["--check-data", tmp_path / "pages", *words]
    assert call(main, *command) == 0
    text = capsys.readouterr().out
    assert "my: 3 images, 1 of them without boxes; 3 boxes" in text
    assert "images: 40 to 40 px wide, 20 to 20 px high" in text
    assert "boxes: 3 small (below 32² px), 0 medium, 0 large" in text
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in text.splitlines()
            if line.startswith("| ")}  # fmt: skip
    assert [int(cell) for name in ("cat", "dog") for cell in rows[name]] == [2, 2, 1, 1]
    assert any("dropped 1 box(es)" in line and "b.txt:1" in line for line in warnings())
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "pages", tmp_path / "cache"}
    page = Image.open(tmp_path / "pages" / "my_boxes.jpg").convert("RGB")
    assert page.size == (3 * 384, 384)
    blank = Image.open(tmp_path / "x/a.jpg").convert("RGB").getpixel((0, 0))
    colours = {colour for _, colour in page.getcolors(page.width * page.height)}
    assert len(colours - {blank}) > 100, "no boxes are drawn"
    # With a config, the command also checks the config and inspects the datasets in it.
    named = ["--config", QUICKSTART, "DATASETS.TRAIN", "('my',)", "DATASETS.TEST", "()"]
    assert call(main, *command, *named) == 0
    assert "my: 3 images" in capsys.readouterr().out
    # A page never replaces an image of the user.
    image(tmp_path / "x/my_boxes.jpg")
    assert "my_boxes.jpg is an image of my" in refused(
        capsys, main, "--check-data", tmp_path / "x", *words
    )
    write_broken_image(tmp_path / "x/c.jpg")
    assert "c.jpg is truncated or broken" in refused(capsys, main, *command)


def test_images_of_rare_classes_come_more_often(tmp_path):
    """Detectron2's sampler for imbalanced data works with the loader of a resumed run."""
    labels = {f"x/{k}.txt": LINE for k in range(9)} | {"x/rare.txt": LINE.replace("0 ", "1 ", 1)}
    names = [name.replace("txt", "jpg") for name in labels]
    yolo(tmp_path, "train: x\nnames: [cat, dog]\n", names, labels)
    cfg = build_config(parse_args(list(map(str, [
        "--config", QUICKSTART, "--register-yolo", "my", tmp_path / "data.yaml", "train",
        "DATASETS.TRAIN", "('my',)", "DATASETS.TEST", "('my',)", "DATALOADER.SAMPLER_TRAIN",
        "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "0.9", "SEED", "3",
        "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu",
    ]))))  # fmt: skip
    loaders = [RamboTrainer.build_train_loader(cfg) for _ in range(2)]
    loaders[1].start = 30
    whole, rest = (
        [[Path(image["file_name"]).stem for image in batch] for batch in islice(loader, number)]
        for loader, number in zip(loaders, (60, 30), strict=True)
    )
    assert whole[30:] == rest, "a run that goes on does not go on in its order"
    share = sum(batch.count("rare") for batch in whole) / 240
    assert 0.2 < share < 0.3  # sqrt(0.9 / 0.1) = 3 times in 12, not once in 10


@pytest.mark.parametrize("path", ["", ".", "./"])
def test_a_yolo_split_is_never_looked_for_in_the_current_folder(path, tmp_path, monkeypatch):
    yolo(tmp_path / "here", "names: [a]\ntrain: valid", ["valid/a.jpg"], {"valid/a.txt": LINE})
    (tmp_path / "other").mkdir()
    yaml = tmp_path / "other" / "data.yaml"
    yaml.write_text(f"path: '{path}'\ntrain: valid\nnames: [b]\n")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="'valid' does not exist"):
        register_datasets(yolo=[("own", "../other/data.yaml", "train")])
    (tmp_path / "other" / "list.txt").write_text("valid/a.jpg\n")
    yaml.write_text("train: list.txt\nnames: [b]\n")
    with pytest.raises(InputError, match="other/valid/a.jpg is missing"):
        register_datasets(yolo=[("own", "../other/data.yaml", "train")])


def test_a_coco_folder_is_never_looked_for_in_the_current_folder(tmp_path, monkeypatch):
    file, images = write_coco(tmp_path / "drawn", 2)
    (tmp_path / "exp" / "annotations").mkdir(parents=True)
    shutil.copy(file, tmp_path / "exp" / "annotations" / "instances_default.json")
    monkeypatch.chdir(images)
    with pytest.raises(InputError, match="exp/annotations/0000.png is missing"):
        register_datasets(coco=[("own", tmp_path / "exp", ".")])
    shutil.copytree(images, tmp_path / "exp" / "images" / "default")
    register_datasets(coco=[("own", tmp_path / "exp", ".")])
    assert MetadataCatalog.get("own").image_root == str(tmp_path / "exp" / "images" / "default")


def test_links_to_folders_are_followed_and_hidden_files_left_out(tmp_path):
    yolo(tmp_path / "disk", "", ["a.jpg"], {})
    image(tmp_path / "images/cam1/a.jpg")
    (tmp_path / "images/cam2").symlink_to(tmp_path / "disk")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    for name in ("._a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg"):
        image(tmp_path / "images/cam1" / name)
    labels = {f"labels/cam{k}/a.txt": LINE for k in (1, 2)}
    yolo(tmp_path, "train: images\nnames: [cat]\n", [], labels)
    register_datasets(yolo=[("own", tmp_path / "data.yaml", "train")])
    records = DatasetCatalog.get("own")
    assert [len(record["annotations"]) for record in records] == [1, 1]


def test_images_behind_a_link_to_the_yaml_s_folder(tmp_path):
    yolo(tmp_path / "deep/er/est/ds", f"path: {tmp_path}/abs\ntrain: x\nnames: [a]\n", [], {})
    (tmp_path / "link").symlink_to(tmp_path / "deep/er/est")
    yolo(tmp_path / "abs", "", ["x/a.jpg"], {"x/a.txt": LINE})
    register_datasets(yolo=[("own", tmp_path / "link/ds/data.yaml", "train")])
    (record,) = DatasetCatalog.get("own")
    assert Path(record["file_name"]).samefile(tmp_path / "abs/x/a.jpg")


def test_versions_of_a_photo_stay_together(tmp_path):
    names = [f"x/p{k}_jpg.rf.{'abc'[v] * 8}.jpg" for k in range(6) for v in range(3)]
    labels = {name.replace(".jpg", ".txt"): LINE for name in names}
    plain(tmp_path, labels, images=names, split=0.2)
    train, val = ({name.partition("_")[0] for name in boxes(f"own_{p}")} for p in ("train", "val"))
    assert not train & val and len(val) == 2  # 4 of 18 images need 2 photos of 3 versions
    register_datasets(yolo=[("other", tmp_path / "data.yaml", "train")])
    (fit,), (held,) = hold_out(["other"], 4)
    fit, held = ({name.partition("_")[0] for name in boxes(part)} for part in (fit, held))
    assert not fit & held and held


def test_a_file_name_that_is_no_utf8_can_be_split(tmp_path):
    names = [f"x/{k}.jpg" for k in range(4)] + [os.fsdecode(b"x/caf\xe9.jpg")]
    labels = {name.replace(".jpg", ".txt"): LINE for name in names}
    plain(tmp_path, labels, images=names, split=0.4)
    assert len(boxes("own_train")) == 3 and len(boxes("own_val")) == 2


def test_images_that_are_trained_and_tested_on_are_said(tmp_path, warnings):
    file, images = write_coco(tmp_path, 3)
    register_datasets([("a_train", file, images), ("a_val", file, images)], train=["a_train"])
    (line,) = warnings()
    assert line.startswith("a_val: 3 of 3 images also occur in other data, ")
    assert "in a_train" in line


def test_boxes_that_may_be_of_the_image_before_it_was_turned_are_said(tmp_path, warnings):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path / "x/b.jpg", exif=exif)
    # The tag must not hold text. Such an orientation is ignored, as Detectron2 ignores it.
    entry = struct.pack("<4sIHHHI4sI", b"II*\0", 8, 1, 0x0112, 2, 2, b"6\0\0\0", 0)
    image(tmp_path / "x/c.jpg", exif=b"Exif\0\0" + entry)
    assert Image.open(tmp_path / "x/c.jpg").getexif()[0x0112] == "6"
    plain(tmp_path, {f"x/{name}.txt": LINE for name in "abc"}, images=["x/a.jpg"])
    (line,) = warnings()
    assert "1 image(s) are rotated according to their EXIF" in line and "x/b.jpg" in line


def test_two_images_with_one_label_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a.txt belongs to two images, .*a.jpg and .*a.png"):
        plain(tmp_path, {"x/a.txt": LINE}, images=["x/a.jpg", "x/a.png"])


@pytest.mark.parametrize("name", ["", "a/b", "x" * 300, "a\nb"])
def test_names_that_cannot_be_those_of_files_are_refused(name, tmp_path):
    with pytest.raises(InputError, match="a dataset cannot be named") as error:
        register_datasets([(name, *write_coco(tmp_path, 2))])
    assert str(error.value).isprintable() and name not in DatasetCatalog.list()
