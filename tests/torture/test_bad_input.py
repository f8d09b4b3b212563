"""Mistakes that users make, through the real command line: one line, status 2, nothing touched.

The short form calls the command line's main in this process, but for one case; the whole form
starts a process for each. Beside these there are the tables of tests/test_train_net.py (19 cases),
test_data_coco.py (25), test_data_voc.py (11), test_architecture_errors.py (5) and
test_lazy_config.py (6).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("detectron2")

from rambo_det.cli import lazy, train

from ..models import write_coco
from ..voc_folder import write_voc
from .conftest import WHOLE
from .processes import (
    QUICKSTART,
    assert_one_line,
    printed,
    run,
    snapshot,
    started,
    without_torchs_own,
)

LAZY = "configs/lazy/retinanet_rambo.py"


class Case(NamedTuple):
    """``make``: from the folder with the user's data, which it may damage, to the arguments."""

    make: Callable[[Path], list[str]]
    message: str
    tool: str = "train_net.py"


def good(folder: Path, *extra: str, config: str = QUICKSTART) -> list[str]:
    """Arguments without a mistake; the last of a key that is there twice is the one that counts."""
    return [
        "--config", config,
        "--register-coco", "tt_data", str(folder / "train.json"), str(folder / "train"),
        *(e for e in extra if e.startswith("--")),
        "DATASETS.TRAIN", "('tt_data',)", "DATASETS.TEST", "('tt_data',)",
        "OUTPUT_DIR", str(folder / "out"), "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2",
        *(e for e in extra if not e.startswith("--")),
    ]  # fmt: skip


def voc(folder: Path, root: str = "voc", split: str = "train") -> list[str]:
    return [
        "--config", QUICKSTART, "--register-voc", "tt_data", str(folder / root), split,
        "DATASETS.TRAIN", "('tt_data',)", "DATASETS.TEST", "('tt_data',)",
        "OUTPUT_DIR", str(folder / "out"),
    ]  # fmt: skip


def lazily(folder: Path, *extra: str, config: str = LAZY) -> list[str]:
    return [
        "--config", config,
        "--register-coco", "tt_data", str(folder / "train.json"), str(folder / "train"),
        "dataloader.train.dataset.names=tt_data", "dataloader.test.dataset.names=tt_data",
        f"train.output_dir={folder}/out", "train.init_checkpoint=", *extra,
    ]  # fmt: skip


def keys(*pairs: str) -> Callable[[Path], list[str]]:
    """Good arguments but for these."""
    return lambda folder: good(folder, *(p.replace("{folder}", str(folder)) for p in pairs))


def config_file(text: str | bytes, name: str = "own.yaml") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        content = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(content.replace(b"{folder}", str(folder).encode()))
        return good(folder, config=str(folder / name))

    return make


def lazy_file(text: str, name: str = "own.py") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_text(text)
        return lazily(folder, config=str(folder / name))

    return make


def coco(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], list[str]]:
    """Good arguments, with a change in the annotation file."""

    def make(folder: Path) -> list[str]:
        content = json.loads((folder / "train.json").read_text())
        change(content)
        (folder / "train.json").write_text(json.dumps(content))
        return good(folder)

    return make


def annotation(**fields: Any) -> Callable[[Path], list[str]]:
    return coco(lambda content: content["annotations"][1].update(fields))


def image(**fields: Any) -> Callable[[Path], list[str]]:
    return coco(lambda content: content["images"][1].update(fields))


def file(name: str, content: bytes | None) -> Callable[[Path], list[str]]:
    """Good arguments, with a file of other content; None: a folder in its place."""

    def make(folder: Path) -> list[str]:
        path = folder / name
        if content is None:
            path.unlink(missing_ok=True)
            path.mkdir()
        else:
            path.write_bytes(content)
        return voc(folder) if name.startswith("voc") else good(folder)

    return make


def arguments(*args: str) -> Callable[[Path], list[str]]:
    return lambda folder: [a.replace("{folder}", str(folder)) for a in args]


NO_CODING = b"<?xml version='1.0' encoding='gb2312'?><annotation></annotation>"

CASES: dict[str, Case] = {
    # The command line itself.
    "a flag that does not exist": Case(arguments("--epochs", "5"), "--epochs"),
    "a flag without its value": Case(arguments("--config"), "--config"),
    "two words for --register-coco": Case(
        arguments("--config", QUICKSTART, "--register-coco", "a", "b"), "--register-coco"
    ),
    "a number of GPUs that is none": Case(arguments("--num-gpus", "two"), "--num-gpus"),
    "KEY=VALUE for a yaml": Case(keys("SOLVER.MAX_ITER=5", "x"), "SOLVER.MAX_ITER=5"),
    "a key in lower case": Case(keys("solver.max_iter", "5"), "solver.max_iter"),
    "a number for a whole node": Case(keys("MODEL.RAMBO", "3"), "MODEL.RAMBO"),
    "--resume and --fresh": Case(keys("--resume", "--fresh"), "--fresh"),
    # Config files.
    "a folder as config": Case(arguments("--config", "configs"), "configs"),
    "a picture as config": Case(
        lambda folder: good(folder, config=str(folder / "train" / "0.png")), "0.png"
    ),
    "an empty config": Case(config_file(""), "own.yaml"),
    "a config that is a list": Case(config_file("- MODEL\n- SOLVER\n"), "own.yaml"),
    "a LazyConfig for a yaml": Case(lambda folder: good(folder, config=LAZY), LAZY),
    "a base that does not exist": Case(config_file("_BASE_: none.yaml\n"), "none.yaml"),
    "a base that is the file itself": Case(config_file("_BASE_: own.yaml\n"), "own.yaml"),
    "an unknown key in a file": Case(config_file("VERSION: 2\nSOLVER:\n  EPOCHS: 5\n"), "EPOCHS"),
    "text for a number in a file": Case(
        config_file("VERSION: 2\nSOLVER:\n  MAX_ITER: many\n"), "MAX_ITER"
    ),
    "a tab in a yaml": Case(config_file("SOLVER:\n\tMAX_ITER: 5\n"), "own.yaml"),
    # Values.
    "a batch of nothing": Case(keys("SOLVER.IMS_PER_BATCH", "0"), "IMS_PER_BATCH"),
    "a negative learning rate": Case(keys("SOLVER.BASE_LR", "-0.1"), "SOLVER.BASE_LR"),
    "a learning rate of 0": Case(keys("SOLVER.BASE_LR", "0"), "SOLVER.BASE_LR must be > 0"),
    "an unknown scheduler": Case(keys("SOLVER.LR_SCHEDULER_NAME", "Cosine"), "LR_SCHEDULER_NAME"),
    "an unknown architecture": Case(keys("MODEL.META_ARCHITECTURE", "YOLO"), "META_ARCHITECTURE"),
    "unknown heads": Case(keys("MODEL.ROI_HEADS.NAME", "RamboHeads"), "MODEL.ROI_HEADS.NAME"),
    "an unknown backbone": Case(keys("MODEL.BACKBONE.NAME", "resnet50"), "MODEL.BACKBONE.NAME"),
    "a ResNet of 20 layers": Case(keys("MODEL.RESNETS.DEPTH", "20"), "MODEL.RESNETS.DEPTH"),
    "an unknown device": Case(keys("MODEL.DEVICE", "gpu"), "MODEL.DEVICE"),
    "an infinite margin": Case(keys("MODEL.RAMBO.MARGIN", "1e999"), "MODEL.RAMBO.MARGIN"),
    "an infinite lift": Case(keys("MODEL.RAMBO.LIFT", "1e999"), "MODEL.RAMBO.LIFT"),
    "a margin that is no number": Case(keys("MODEL.RAMBO.MARGIN", "wide"), "MODEL.RAMBO.MARGIN"),
    "a rule that does not exist": Case(
        keys("MODEL.RAMBO.LAMBDA_RULE", "paper"), "MODEL.RAMBO.LAMBDA_RULE"
    ),
    "no weight for the loss": Case(keys("MODEL.RAMBO.LOSS_WEIGHT", "0"), "MODEL.RAMBO.LOSS_WEIGHT"),
    "a memory of one": Case(keys("MODEL.RAMBO.MEMORY_SIZE", "1"), "MODEL.RAMBO.MEMORY_SIZE"),
    "no iterations": Case(keys("SOLVER.MAX_ITER", "-1"), "SOLVER.MAX_ITER"),
    "no training data": Case(keys("DATASETS.TRAIN", "()"), "DATASETS.TRAIN"),
    "a name for a list of names": Case(keys("DATASETS.TRAIN", "tt_data"), "DATASETS.TRAIN"),
    "own data that nothing trains on": Case(
        keys("DATASETS.TRAIN", "('rambo_shapes_trian',)"), "rambo_shapes_trian"
    ),
    "COCO's data that are not there": Case(
        keys("DATASETS.TRAIN", "('coco_2014_train',)"), "coco_2014_train"
    ),
    # Files and folders.
    "weights that are text": Case(
        lambda folder: (
            (folder / "w.pth").write_text("weights")
            and good(folder, "MODEL.WEIGHTS", str(folder / "w.pth"))
        ),
        "w.pth",
    ),
    "weights that are empty": Case(
        lambda folder: (
            (folder / "w.pth").write_bytes(b"")
            or good(folder, "MODEL.WEIGHTS", str(folder / "w.pth"))
        ),
        "w.pth",
    ),
    "weights that are a folder": Case(keys("MODEL.WEIGHTS", "{folder}/train"), "MODEL.WEIGHTS"),
    "an output that is a file": Case(keys("OUTPUT_DIR", "{folder}/train.json"), "train.json"),
    "an output below a file": Case(keys("OUTPUT_DIR", "{folder}/train.json/out"), "train.json/out"),
    "an output where nothing can be": Case(keys("OUTPUT_DIR", "/proc/none/out"), "/proc/none/out"),
    "an output without a name": Case(keys("OUTPUT_DIR", ""), "OUTPUT_DIR"),
    # COCO's format.
    "a folder as annotations": Case(file("train.json", None), "train.json"),
    "annotations in another coding": Case(file("train.json", "{}".encode("utf-16")), "train.json"),
    "annotations cut short": Case(file("train.json", b'{"images": [{"id": 1,'), "train.json"),
    "an image of no width": Case(image(width=float("nan")), "images[1]"),
    "an image of endless height": Case(image(height=float("inf")), "images[1]"),
    "images that are file names": Case(coco(lambda c: c.update(images=["0.png"])), "images[0]"),
    "numbers and names as image ids": Case(
        coco(lambda c: (c["images"][1].update(id="1"), c.update(annotations=c["annotations"][:1]))),
        "images[1]",
    ),
    "an annotation that is null": Case(
        coco(lambda c: c["annotations"].append(None)), "annotations["
    ),
    "a class that is a name": Case(annotation(category_id="circle"), "annotations[1]"),
    "a box as text": Case(annotation(bbox="1 2 3 4"), "annotations[1]"),
    "a crowd flag as text": Case(annotation(iscrowd="0"), "annotations[1]"),
    "a polygon not in a list": Case(annotation(segmentation=[1, 2, 3, 4, 5, 6]), "annotations[1]"),
    "an area that is text": Case(annotation(area="big"), "annotations[1]"),
    "an image that is a folder": Case(file("train/1.png", None), "1.png"),
    "an image that is text": Case(file("train/1.png", b"version https://git-lfs"), "1.png"),
    "no folder of images": Case(
        lambda folder: (folder / "train").rename(folder / "other") and good(folder), "0.png"
    ),
    # VOC's.
    "no VOC folder": Case(lambda folder: voc(folder, "none"), "none"),
    "a split with its ending": Case(
        lambda folder: voc(folder, split="train.txt"), "splits there: train"
    ),
    "a split in another coding": Case(
        file("voc/ImageSets/Main/train.txt", "größe\n".encode("latin-1")), "train.txt"
    ),
    "a split that is a folder": Case(file("voc/ImageSets/Main/train.txt", None), "train.txt"),
    "xml in a coding that expat lacks": Case(file("voc/Annotations/a.xml", NO_CODING), "a.xml"),
    "xml in an unknown coding": Case(
        file("voc/Annotations/a.xml", NO_CODING.replace(b"gb2312", b"own")), "a.xml"
    ),
    "xml that is empty": Case(file("voc/Annotations/a.xml", b""), "a.xml"),
    # LazyConfigs.
    "a yaml for a LazyConfig": Case(
        lambda folder: lazily(folder, config=QUICKSTART), QUICKSTART, "lazyconfig_train_net.py"
    ),
    "a LazyConfig that is no Python": Case(
        lazy_file("model = ("), "own.py", "lazyconfig_train_net.py"
    ),
    "a LazyConfig of a missing module": Case(
        lazy_file("import no_such_module\n"), "no_such_module", "lazyconfig_train_net.py"
    ),
    "a LazyConfig without a model": Case(
        lazy_file("max_iter = 5\n"), "own.py", "lazyconfig_train_net.py"
    ),
    "a LazyConfig with an error": Case(
        lazy_file("model = 1 / 0\n"), "own.py", "lazyconfig_train_net.py"
    ),
    "text for a LazyConfig's number": Case(
        lambda folder: lazily(folder, "train.max_iter=many"),
        "train.max_iter",
        "lazyconfig_train_net.py",
    ),
    "KEY VALUE for a LazyConfig": Case(
        lambda folder: lazily(folder, "train.max_iter", "5"),
        "KEY=VALUE",
        "lazyconfig_train_net.py",
    ),
}


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder of a user: data in both formats, and an output folder with a file of theirs."""
    folder = tmp_path / "user"
    folder.mkdir()
    write_coco(folder, 3)
    write_voc(folder / "voc", "train", {"a": [("dog", (5, 6, 20, 30), 0)]})
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("name", list(CASES))
def test_a_mistake(name, user, tmp_path, capsys, catalogs):
    case = CASES[name]
    args = case.make(user)
    before = snapshot(user)
    if name == "an image that is text":  # one as a user starts it, importing included
        with started(case.tool, args, tmp_path / "cache") as process:
            status = process.wait(timeout=600)
        err = printed(tmp_path / "cache")[1]
    elif WHOLE:
        status, _, err = run(case.tool, args, tmp_path / "cache")
    else:
        main = train.main if case.tool == "train_net.py" else lazy.main
        try:
            status = main(args)
        except SystemExit as error:  # argparse's
            status = error.code
        err = without_torchs_own(capsys.readouterr().err)
    assert_one_line(status, err, case.message)
    after = snapshot(user)
    assert {name: after.get(name, "gone") for name in before} == before
    # Nor does it look like a run that must not be overwritten.
    assert not after.get("out/last_checkpoint") and not after.get("out/metrics.json")


@pytest.mark.parametrize("make", [good, lazily])
def test_an_output_that_cannot_be_written(make, user, capsys, catalogs, monkeypatch):
    # As a user other than root has it: to root all files can be written, whatever their mode.
    out, access = user / "out", os.access
    out.chmod(0o555)
    monkeypatch.setattr(
        os, "access", lambda path, mode, **how: Path(path) != out and access(path, mode, **how)
    )
    before = snapshot(user)
    assert (train.main if make is good else lazy.main)(make(user)) == 2
    assert capsys.readouterr().err == (
        f"error: OUTPUT_DIR {out} cannot be written: change its rights or name another\n"
    )
    assert snapshot(user) == before


def test_what_may_not_be_read_or_written_on_the_way_is_named(user, capsys, catalogs, monkeypatch):
    file = str(user / "out" / "data.json")

    def refuse(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)

    monkeypatch.setattr("rambo_det.engine.terminal.default_setup", refuse)
    assert train.main(good(user)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: [Errno 13] Permission denied: {file!r}: change the rights of the file or its "
        "folder; --resume goes on from the last checkpoint"
    )


@pytest.mark.skipif(not WHOLE, reason="only in the whole form")
def test_without_a_mistake_it_trains(user, tmp_path):
    """What the cases above differ from; also with blanks and letters of any kind in the names."""
    folder = user.rename(user.with_name("größe 寸法"))
    status, _, err = run("train_net.py", good(folder), tmp_path / "cache")
    assert status == 0, err[-3000:]
    assert (folder / "out" / "notes.txt").read_text() == "mine"
    assert (folder / "out" / "model_final.pth").is_file()
