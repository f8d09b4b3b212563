#!/usr/bin/env python
"""Draw detections and precision-recall curves of one or more runs into one picture.

    python tools/make_figure.py --run output/quickstart --out docs/quickstart.png

A run is the folder that train_net.py left: its config.yaml, model_final.pth and, in inference/, the
results of its evaluation. Several --run draw several curves, labelled by the folders' names. Your
own data are found by the first run's data.json; --register-… names them where they have moved.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.engine import DefaultPredictor  # noqa: E402
from detectron2.utils.visualizer import ColorMode, Visualizer  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

import rambo_det  # noqa: E402
from rambo_det.cli.failures import status_of  # noqa: E402
from rambo_det.cli.predict import quiet  # noqa: E402
from rambo_det.cli.train import add_data_arguments  # noqa: E402
from rambo_det.data import register_datasets, register_shapes  # noqa: E402
from rambo_det.engine.saved import read_data  # noqa: E402
from rambo_det.engine.setup import check_dataset, register_own  # noqa: E402
from rambo_det.errors import InputError  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

DETECTIONS = Path("inference", "coco_instances_results.json")
STYLES = ("-", "--", ":", "-.")  # of the runs; colours are of the classes


def load_config(run: Path) -> CfgNode:
    """The config that the run was trained with, with its final weights."""
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    cfg.merge_from_file(str(run / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def precision_curves(json_file: str, run: Path) -> tuple[np.ndarray, list[str]]:
    """Precision (101 recalls, K classes) at IoU 0.5, and the classes' names."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO(json_file)
        detections = json.loads((run / DETECTIONS).read_text())
        found = truth.loadRes(detections) if detections else COCO()  # loadRes takes no empty list
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    names = [c["name"] for c in truth.loadCats(evaluation.params.catIds)]
    return evaluation.eval["precision"][0, :, :, 0, -1], names


def draw_detections(cfg: CfgNode, name: str, index: int, threshold: float) -> np.ndarray:
    """Image ``index`` of the data set with the detections that score above ``threshold``; RGB."""
    record: dict[str, Any] = DatasetCatalog.get(name)[index]
    image = cv2.imread(record["file_name"])
    found = DefaultPredictor(cfg)(image)["instances"].to("cpu")
    scale = max(1.0, 384 / max(image.shape[:2]))
    shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    kept = found[found.scores > threshold]
    kept.pred_boxes.scale(scale, scale)
    metadata = MetadataCatalog.get(name)
    drawer = Visualizer(shown[:, :, ::-1], metadata, instance_mode=ColorMode.IMAGE)
    picture: np.ndarray = drawer.draw_instance_predictions(kept).get_image()
    return picture


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, action="append", required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.add_argument("--images", type=int, nargs="+", metavar="INDEX", help="[3 11 25]")
    parser.add_argument("--threshold", type=float, default=0.5)
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    for run in args.run:
        if not ((run / "model_final.pth").is_file() and (run / DETECTIONS).is_file()):
            raise InputError(f"--run {run}: no finished run there")
    if len(args.run) > len(STYLES):
        raise InputError(f"--run: {len(STYLES)} can be told apart, not {len(args.run)}")
    return args


def register(args: argparse.Namespace, name: str, training: Sequence[str]) -> None:
    """Registers the data set of the first run: as the command line says, else as the run does."""
    register_shapes()
    if register_own(args, training) is None:
        saved = read_data(args.run[0])
        coco = [source for source in saved.register_coco if source[0] == name]
        voc = [source for source in saved.register_voc if source[0] == name]
        if (coco or voc) and name not in DatasetCatalog.list():
            register_datasets(coco, voc, saved.classes or None)


def draw(args: argparse.Namespace) -> None:
    """Draws the figure.

    Raises:
        InputError: whatever is wrong with runs, data or images.
    """
    quiet()
    cfg = load_config(args.run[0])
    if not cfg.DATASETS.TEST:
        raise InputError(f"--run {args.run[0]}: DATASETS.TEST of its config.yaml is empty")
    name = cfg.DATASETS.TEST[0]
    register(args, name, cfg.DATASETS.TRAIN)
    check_dataset(f"--run {args.run[0]}", name)
    number = len(DatasetCatalog.get(name))
    images = args.images or [i for i in (3, 11, 25) if i < number] or [0]
    for index in images:
        if not 0 <= index < number:
            raise InputError(f"--images {index}: those of {name} are 0 to {number - 1}")
    figure, axes = plt.subplots(1, len(images) + 1, figsize=(4 * len(images) + 4.5, 4))
    for axis, index in zip(axes[:-1], images, strict=True):
        axis.imshow(draw_detections(cfg, name, index, args.threshold))
        axis.set_axis_off()
    for run, style in zip(args.run, STYLES, strict=False):
        curves, classes = precision_curves(MetadataCatalog.get(name).json_file, run)
        for k, label in enumerate(classes):
            text = label if len(args.run) == 1 else f"{label}, {run.name}"
            axes[-1].plot(np.linspace(0, 1, 101), curves[:, k], style, color=f"C{k}", label=text)
    axes[-1].set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axes[-1].legend(fontsize=8, loc="lower left")
    axes[-1].grid(alpha=0.3)
    figure.tight_layout()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=80)


def main(argv: list[str] | None = None) -> int:
    """Command line entry; returns the exit status: 2 after a user's mistake."""
    return status_of(lambda: draw(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
