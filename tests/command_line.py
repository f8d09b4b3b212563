"""Helpers that call the ``main`` of a command line tool in this process, as often as needed."""

import resource
from contextlib import contextmanager
from itertools import pairwise, product

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rambo_det.errors import InputError

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


def registered(folder, name="own"):
    """Returns the flags and config keys for the data of a folder, such as ``finished_run``'s."""
    train, val = f"{name}_train", f"{name}_val"
    flags = ["--register-coco", train, f"{folder}/train.json", f"{folder}/train"]
    flags += ["--register-coco", val, f"{folder}/val.json", f"{folder}/val"]
    return flags, ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)"]


def own_data(folder, name, num=4, num_val=4):
    """Draws the datasets ``NAME_train`` and ``NAME_val``; returns their flags and config keys.

    Args:
        folder: folder for the files.
        name: prefix of the dataset names.
        num, num_val: number of training images and of validation images.
    """
    write_coco(folder, num, "train")
    write_coco(folder, num_val, "val")
    return registered(folder, name)


@contextmanager
def refusal(message):
    """Checks that the block raises an InputError of one line, and registers no dataset "own"."""
    with pytest.raises(InputError, match=message) as error:
        yield
    assert "\n" not in str(error.value)
    assert "own" not in DatasetCatalog.list()


@contextmanager
def disk_full():
    """Limits every file that this process writes to 200 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
