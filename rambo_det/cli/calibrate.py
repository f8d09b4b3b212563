"""``rambo-calibrate`` (tools/calibrate.py): turns a detector's scores into probabilities."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.arguments import add_data_arguments, add_model_arguments, raise_input_error
from ..engine.calibrated import MAX_IMAGES
from ..errors import InputError
from .failures import exit_status
from .predict import silence_libraries


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; raises InputError for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="rambo-calibrate",
        description="Fit a scale of the scores to labelled images and write it into the weights: "
        "a checkpoint of the same architecture, whose scores are probabilities, with the "
        "threshold of the best F1 for each class.",
    )
    parser.error = raise_input_error  # type: ignore[method-assign]
    add_model_arguments(parser)
    add_data_arguments(parser)
    add, text = parser.add_argument, "labelled images to fit to [the config's training set]"
    add("--dataset", metavar="NAME", help=text)
    add("--images", type=int, default=MAX_IMAGES, metavar="N", help="of them at most [%(default)s]")
    text = "a data set to measure on, before and after [the config's test set; none: '']"
    add("--test", metavar="NAME", help=text)
    text = "[model_calibrated.pth beside the weights]"
    add("--output", type=Path, metavar="FILE", help=text)
    add("--overwrite", action="store_true", help="replace an earlier output")
    args = parser.parse_args(argv)
    if args.images < 1:
        raise InputError(f"--images must be >= 1, got {args.images}")
    return args


def run(args: argparse.Namespace) -> None:
    """Calibrates a detector; prints its metrics before and after.

    Raises InputError if the model, the data or the output is wrong.
    """
    from tabulate import tabulate

    from ..engine.calibrated import labelled_images, write_calibrated
    from ..engine.checkpointer import CALIBRATION_FILES
    from ..engine.detector import Detector
    from ..engine.evaluation_data import EvaluationData
    from ..engine.saved_model import find_model
    from ..evaluation.calibration import calibrate

    silence_libraries()
    saved = find_model(args.run, args.config, args.weights, args.imports)
    output = args.output or Path(saved.weights).with_name("model_calibrated.pth")
    if output.resolve() == Path(saved.weights).resolve():
        raise InputError(f"--output {output} holds the weights themselves: name another file")
    thresholds, picture = (output.with_name(name) for name in CALIBRATION_FILES)
    for file in (output, thresholds, picture):
        if file.exists() and not args.overwrite:
            raise InputError(f"{file} exists already: --overwrite, or --output FILE elsewhere")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    detector = Detector(saved, args.opts)
    if args.dataset is None and not detector.train_sets:
        raise InputError("DATASETS.TRAIN is empty: name labelled images with --dataset")
    data = EvaluationData(args.dataset or detector.train_sets[0], detector, saved.data, args)
    args.register = []  # the datasets are registered now
    test = detector.datasets[0] if args.test is None and detector.datasets else args.test
    measured = EvaluationData(test, detector, saved.data, args) if test else None
    found = calibrate(detector.model, *labelled_images(data.name, detector.mapper, args.images))
    before = _measure(detector, measured) if measured else {}
    write_calibrated(detector.model, found, output, data.classes, data.name)
    if measured:
        after = _measure(detector, measured)
        rows = [(name, before[name], after[name]) for name in before]
        print(tabulate(rows, ("in %", "before", "after"), "github", floatfmt=".2f"))
        if measured.name == data.name:
            print("Measured on the images it was fitted to: name others with --test.")
    old, new = found.errors
    print(
        f"\nfitted to {data.name}: calibration error there {old:.1f} %, now {new:.1f} %\n"
        f"checkpoint: {output} (loads where the raw one does)\n"
        f"thresholds: {thresholds}, one for each class; one for all: "
        f"SCORE_THRESH_TEST {found.threshold:.3g}\n"
        f"picture: {picture}"
    )


def _measure(detector: Any, data: Any) -> dict[str, float]:
    """Returns calibration error, AP and the AP of each class on a dataset, in percent.

    AP is measured twice: on the detections that the model keeps per image, and on 300 per image.
    """
    import numpy as np

    from ..evaluation.calibration import PER_IMAGE, calibration_error, without_score_threshold
    from ..evaluation.matches import find_matches, metrics

    matches = find_matches(data.truth, data.detect(detector))
    with without_score_threshold(detector.model):
        more = find_matches(data.truth, data.detect(detector), most=PER_IMAGE)
    error = calibration_error(*matches.counted)
    once = np.ones((1, matches.positives.shape[1]), int)
    ap, ap_of_more = (
        {name: float(value[0]) for name, value in metrics(x, once).items()} for x in (matches, more)
    )
    of_more = {f"AP of {PER_IMAGE} detections an image": ap_of_more["AP"]}
    return {"calibration error": error, "AP": ap.pop("AP"), **of_more, **ap}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after a user's mistake."""
    return exit_status(lambda: run(parse_args(argv)))
