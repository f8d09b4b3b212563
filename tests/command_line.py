"""Helpers that call the ``main`` of a command line tool in this process, as often as needed."""

import resource
from contextlib import contextmanager
from itertools import pairwise, product

from detectron2.data import DatasetCatalog, MetadataCatalog

from .models import write_coco


def call(main, *words):
    """Returns the exit status of ``main``; first removes the datasets that it will register."""
    words = [str(word) for word in words]
    for flag, name in pairwise(words):
        names = [name] if flag.startswith("--register-") else []
        if flag == "--data":
            names = [f"{name.partition('=')[0]}_{split}" for split in ("train", "val")]
        for catalog, each in product((DatasetCatalog, MetadataCatalog), names):
            catalog.pop(each, None)
    return main(words)


def refused(capsys, main, *words):
    """Checks that ``main`` refuses these arguments with a one-line error, and returns the line."""
    capsys.readouterr()
    assert call(main, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def registered(folder):
    """Returns the flags that register the data of the fixture ``finished_run``."""
    return [
        word
        for split in ("train", "val")
        for word in ("--register-coco", f"own_{split}", folder / f"{split}.json", folder / split)
    ]


def own_data(folder, name, num=4, num_val=4):
    """Draws the datasets ``NAME_train`` and ``NAME_val``; returns their flags and config keys.

    Args:
        folder: folder for the files.
        name: prefix of the dataset names.
        num, num_val: number of training images and of validation images.
    """
    train, val = f"{name}_train", f"{name}_val"
    flags = ["--register-coco", train, *write_coco(folder, num, "train")]
    flags += ["--register-coco", val, *write_coco(folder, num_val, "val")]
    return flags, ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)"]


@contextmanager
def disk_full():
    """Limits every file that this process writes to 200 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
