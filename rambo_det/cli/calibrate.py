"""``rambo-calibrate`` (tools/calibrate.py): turns a detector's scores into probabilities."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.arguments import (
    add_data_arguments,
    add_model_arguments,
    check_data_arguments,
    raise_input_error,
)
from ..engine.calibrated import MAX_IMAGES
from ..errors import InputError
from .failures import exit_status
from .predict import silence_libraries


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; raises InputError for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="rambo-calibrate",
        description="Fits a rescaling of the scores to labelled images, so that scores are "
        "probabilities. Writes a checkpoint of the same architecture and, for each class, the "
        "threshold with the best F1.",
    )
    parser.error = raise_input_error
    add_model_arguments(parser)
    add_data_arguments(parser)
    add, text = parser.add_argument, "use at most N images for the fit [%(default)s]"
    add("--dataset", metavar="NAME", help="dataset for the fit [the config's first training set]")
    add("--images", type=int, default=MAX_IMAGES, metavar="N", help=text)
    text = "dataset to evaluate on before and after [the config's first test set; '' for none]"
    add("--test", metavar="NAME", help=text)
    text = "output checkpoint [model_calibrated.pth next to the weights]"
    add("--output", type=Path, metavar="FILE", help=text)
    add("--overwrite", action="store_true", help="replace an earlier output")
    args = parser.parse_args(argv)
    check_data_arguments(args)
    if args.images < 1:
        raise InputError(f"--images must be >= 1, got {args.images}")
    return args


def run(args: argparse.Namespace) -> None:
    """Calibrates a detector; prints its metrics before and after.

    Raises InputError if the model, the data or the output is wrong.
    """
    from tabulate import tabulate

    from ..engine.arguments import classes_from_args
    from ..engine.calibrated import labelled_images, write_calibrated
    from ..engine.checkpointer import CALIBRATION_FILES
    from ..engine.detector import Detector
    from ..engine.evaluation_data import EvaluationData, register_for
    from ..engine.saved_model import find_model
    from ..evaluation.calibration import calibrate

    silence_libraries()
    saved = find_model(args.run, args.config, args.weights, args.imports)
    output = args.output or Path(saved.weights).with_name("model_calibrated.pth")
    if output.resolve() == Path(saved.weights).resolve():
        raise InputError(f"--output {output} would overwrite the input weights: name another file")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file")
    thresholds, picture = (output.with_name(name) for name in CALIBRATION_FILES)
    if output in (thresholds, picture):
        raise InputError(f"--output {output} is the name of another result: name a .pth file")
    for file in (output, thresholds, picture):
        if file.exists() and not args.overwrite:
            raise InputError(f"{file} already exists: use --overwrite, or --output FILE elsewhere")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: the folder {output.parent} does not exist")
    detector = Detector(saved, args.opts, None if saved.data.classes else classes_from_args(args))
    if args.dataset is None and not detector.train_sets:
        raise InputError("DATASETS.TRAIN is empty: name labelled images with --dataset")
    fitted = args.dataset or detector.train_sets[0]
    test = detector.datasets[0] if args.test is None and detector.datasets else args.test
    register_for(detector, [fitted, test], args, saved.data)
    data = EvaluationData(fitted, detector)
    test_data = EvaluationData(test, detector, "--test") if test else None
    fit = calibrate(detector.model, *labelled_images(data.name, detector.mapper, args.images))
    before = _measure(detector, test_data) if test_data else {}
    write_calibrated(detector.model, fit, output, data.classes, data.name)
    if test_data:
        after = _measure(detector, test_data)
        rows = [(name, before[name], after[name]) for name in before]
        print(tabulate(rows, ("in %", "before", "after"), "github", floatfmt=".2f"))
        if test_data.name == data.name:
            print("Measured on the images used for the fit: use --test for other images.")
    old, new = fit.errors
    print(
        f"\ncalibration error on {data.name} (used for the fit): {old:.1f} % before, {new:.1f} % "
        "after\n"
        f"checkpoint: {output} (loads where the raw one does)\n"
        f"thresholds: {thresholds}, one for each class; one for all: "
        f"SCORE_THRESH_TEST {fit.threshold:.3g}\n"
        f"picture: {picture}"
    )


def _measure(detector: Any, data: Any) -> dict[str, float]:
    """Returns calibration error, AP and the AP of each class on a dataset, in percent.

    AP is measured twice: on the detections that the model keeps per image, and on 300 per image.
    """
    from ..evaluation.calibration import PER_IMAGE, calibration_error, without_score_threshold
    from ..evaluation.matches import find_matches, metrics

    matches = find_matches(data.truth, data.detect(detector))
    with without_score_threshold(detector.model):
        more = find_matches(data.truth, data.detect(detector), max_per_image=PER_IMAGE)
    aps, aps_of_more = ({name: float(ap[0]) for name, ap in metrics(found).items()}
                        for found in (matches, more))  # fmt: skip
    ap_of_more = {f"AP of {PER_IMAGE} detections an image": aps_of_more["AP"]}
    error = calibration_error(*matches.counted)
    return {"calibration error": error, "AP": aps.pop("AP"), **ap_of_more, **aps}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after a user's mistake."""
    return exit_status(lambda: run(parse_args(argv)))
