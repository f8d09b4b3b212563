"""Every architecture trains and is evaluated on drawn and real data through the command line.

By default a test trains for two iterations on a few images, and only two architectures use real
images. With RAMBO_DET_MATRIX=50 (``make matrix``) a test trains for 50 iterations on the whole
dataset, and prints its result as a table row.
"""

import hashlib
import itertools
import json
import os
import re
import time
from typing import NamedTuple

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from rambo_det.cli import train
from rambo_det.data import drawing, shapes
from rambo_det.engine.keys import LAZY, YAML

from .architectures import ARCHITECTURES, add_outlines

ITERATIONS = int(os.environ.get("RAMBO_DET_MATRIX", 0))
WHOLE = ITERATIONS > 0
ITERATIONS = ITERATIONS or 2
# For yaml configs only: the LazyConfig of FCOS keeps the default length.
MEMORY = ("MODEL.RAMBO.MEMORY_LENGTH", "4")
# Real images need a larger size than the 96 px of the drawn images.
LARGER = ["INPUT.MIN_SIZE_TRAIN", "(144,)", "INPUT.MAX_SIZE_TRAIN", "216"]
LARGER += ["INPUT.MIN_SIZE_TEST", "144", "INPUT.MAX_SIZE_TEST", "216"]


class CommandLine(NamedTuple):
    """The command lines of one architecture on one dataset."""

    name: str  # of the architecture
    sets: tuple  # names of the training and the test dataset
    data: list  # the options that register the datasets
    detections: list  # every evaluation appends its detections
    capsys: pytest.CaptureFixture

    def __call__(self, *flags, stock=False, **settings):
        """Runs the tool; returns its output, the rows of its last table, and its detections."""
        for name in set(self.sets) & set(DatasetCatalog.list()):
            DatasetCatalog.remove(name)  # as in a new process
            if name.startswith("rambo_shapes_"):
                MetadataCatalog.remove(name)
        shapes.register_shapes()
        settings |= {"device": "cpu", "batch_size": 2 if WHOLE else 1}
        self.detections.clear()
        assert self.main([*flags, *self.data], stock, settings) == 0
        printed = self.capsys.readouterr().out
        heads = re.finditer(r"^\| +AP \| +AP50 \| +AP75 \|.*$", printed, re.M)
        table = re.findall(r"^\|.*\|$", printed[max(head.start() for head in heads) :], re.M)
        return printed, table, list(self.detections)

    def main(self, args, stock, settings):
        if self.name == "fcos":
            config = f"configs/lazy/quickstart/fcos_{'focal' if stock else 'rambo'}.py"
            settings |= {"train_sets": self.sets[0], "test_sets": self.sets[1]}
            keys = [f"{getattr(LAZY, key)}={value}" for key, value in settings.items()]
            return train.main(["--config", config, *args, *keys], lazy=True)
        architecture = ARCHITECTURES[self.name]
        settings |= {"train_sets": (self.sets[0],), "test_sets": (self.sets[1],)}
        keys = [x for key, value in settings.items() for x in (getattr(YAML, key), value)]
        keys += [
            *architecture.opts,
            *MEMORY,
            *(LARGER if WHOLE and "chess_train" in self.sets else ()),
        ]
        config = architecture.stock if stock else architecture.rambo
        return train.main(["--config", f"configs/{config}", *args, *map(str, keys)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def detections(monkeypatch):
    """Returns a list that evaluators fill: per image, detection count and hashes of the tensors."""
    seen, real = [], COCOEvaluator.process

    def process(self, inputs, outputs):
        for output in outputs:
            fields = output["instances"].to("cpu").get_fields().items()
            values = {k: v.tensor if hasattr(v, "tensor") else v for k, v in fields}
            hashes = {k: hashlib.sha1(v.numpy().tobytes()).digest() for k, v in values.items()}
            seen.append((len(values["scores"]), hashes))
        return real(self, inputs, outputs)

    monkeypatch.setattr(COCOEvaluator, "process", process)
    return seen


@pytest.fixture
def command_line(
    request, name, data_set, tmp_path, catalogs, cache, detections, capsys, monkeypatch
):
    monkeypatch.setenv("RAMBO_DET_CACHE", str(cache))
    if not WHOLE:
        monkeypatch.setitem(drawing.SPEC, "images", {"train": 6, "val": 2})
    outlines = name in ("mask", "keypoint")
    if data_set == "chess":
        folder, sets = request.getfixturevalue("real_data") / "chess", ("train", "valid")
    else:
        folder, sets = shapes.prepare_shapes(), ("train", "val")
        if not outlines:
            names = ("rambo_shapes_train", "rambo_shapes_val")
            return CommandLine(name, names, [], detections, capsys)
    data = []
    for split in sets:
        file = folder / f"{split}.json"
        if outlines or not WHOLE:
            few = 2 if data_set == "chess" and not WHOLE else None
            file = add_outlines(file, tmp_path / file.name, few)
        data += ["--register-coco", f"{data_set}_{split}", str(file), str(folder / split)]
    return CommandLine(name, (data[1], data[5]), data, detections, capsys)


def memories_in(checkpoint):
    """Returns the score memories of a checkpoint."""
    entries = torch.load(checkpoint, weights_only=False)["model"]._metadata
    return [v["memory"] for k, v in entries.items() if k.endswith("rambo_loss.memory")]


CELLS = list(itertools.product([*ARCHITECTURES, "fcos"], ["quickstart", "chess"]))
SHORT = [(name, data) for name, data in CELLS if data != "chess" or name in ("mask", "fcos")]


@pytest.mark.parametrize("name, data_set", CELLS if WHOLE else SHORT)
def test_cell(name, data_set, command_line, tmp_path, capsys):
    folder, start = tmp_path / "out", time.monotonic()
    checkpoint = folder / "model_final.pth"
    _, table, detections = command_line(folder=folder, max_iter=ITERATIONS)
    seconds = time.monotonic() - start
    assert len(table) >= 7 and all(number > 0 for number, _ in detections)
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    for task, title, at in (("segm", "mask AP", "mask"), ("keypoints", "keypoint AP", "keypoint")):
        assert (f"{task}/AP" in metrics[-1]) == (title in table[0]) == (name == at)

    assert command_line("--eval-only", folder=folder)[1:] == (table, detections)

    stock = command_line("--eval-only", stock=True, folder=tmp_path / "stock", weights=checkpoint)
    assert stock[1:] == (table, detections)
    # fvcore's checkpointer logs these messages.
    assert "not found in the checkpoint" not in stock[0] and "not used by the model" not in stock[0]

    before = memories_in(checkpoint)
    printed, *_ = command_line("--resume", folder=folder, max_iter=ITERATIONS + 1)
    assert f"Starting training from iteration {ITERATIONS}" in printed
    after = memories_in(checkpoint)
    assert len(before) == len(after) == (ARCHITECTURES[name].memories if name != "fcos" else 1)
    for old, new in zip(before, after, strict=True) if name != "fcos" else ():
        assert int(old["written"]) == ITERATIONS and int(new["written"]) == ITERATIONS + 1
        # The last batch has replaced the oldest; the other batches are those of the first run.
        ring, later = old["positives"], new["positives"]
        changed = [i for i in range(len(ring)) if not torch.equal(ring[i], later[i])]
        assert changed == [ITERATIONS % len(ring)]

    if WHOLE:
        with capsys.disabled():
            print(f"\n| {name} | {data_set} {table[2]} trained and evaluated in {seconds:.0f} s |")
