"""``rambo-calibrate``: make a detector's scores probabilities; the main of tools/calibrate.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.arguments import add_data_arguments, add_model_arguments, refuse
from ..engine.calibrated import IMAGES
from ..errors import InputError
from .failures import status_of
from .predict import quiet


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="rambo-calibrate",
        description="Fit a scale of the scores to labelled images and write it into the weights: "
        "a checkpoint of the same architecture, whose scores are probabilities, with the "
        "threshold of the best F1 for each class.",
    )
    parser.error = refuse  # type: ignore[method-assign]
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument(
        "--dataset", metavar="NAME", help="labelled images to fit to [the config's training set]"
    )
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help="of them at most [%(default)s]"
    )
    parser.add_argument(
        "--test", metavar="NAME",
        help="a data set to measure on, before and after [the config's test set; none: '']",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="[model_calibrated.pth beside the weights]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    args = parser.parse_args(argv)
    if args.images < 1:
        raise InputError(f"--images must be >= 1, got {args.images}")
    return args


def run(args: argparse.Namespace) -> None:
    """Calibrates a detector and measures what has changed.

    Raises:
        InputError: whatever is wrong with model, data or output.
    """
    from ..engine.calibrated import BESIDE, labelled_images, write_calibrated
    from ..engine.detector import Detector
    from ..engine.ranked_data import RankedData
    from ..engine.saved import find_model
    from ..engine.user_code import import_user_code
    from ..evaluation.calibration import calibrate

    quiet()
    import_user_code(args.imports)
    saved = find_model(args.run, args.config, args.weights)
    output = args.output or Path(saved.weights).with_name("model_calibrated.pth")
    if output.resolve() == Path(saved.weights).resolve():
        raise InputError(f"--output {output} holds the weights themselves: name another file")
    for file in (output, *(output.with_name(name) for name in BESIDE)):
        if file.exists() and not args.overwrite:
            raise InputError(
                f"{file} exists already: --overwrite replaces it, or --output FILE elsewhere"
            )
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    detector = Detector(saved, args.opts)
    if args.dataset is None and not detector.train_sets:
        raise InputError("DATASETS.TRAIN is empty: name labelled images with --dataset")
    data = RankedData(args.dataset or detector.train_sets[0], detector, saved.data, args)
    args.register = []  # they are now
    test = detector.datasets[0] if args.test is None and detector.datasets else args.test
    measured = RankedData(test, detector, saved.data, args) if test else None
    found = calibrate(detector.model, *labelled_images(data.name, detector.mapper, args.images))
    before = _measure(detector, measured) if measured else {}
    write_calibrated(detector.model, found, output, data.classes, data.name)
    if measured:
        print(_table(before, _measure(detector, measured), measured.name == data.name))
    print(_summary(found, data, output))


def _measure(detector: Any, data: Any) -> dict[str, float]:
    """Calibration error, AP and the AP of each class on a data set, in percent.

    AP twice: of the detections that the model keeps of an image, and of 300.
    """
    import numpy as np

    from ..evaluation.calibration import PER_IMAGE, all_detections, calibration_error
    from ..evaluation.matches import find_matches, metrics

    matches = find_matches(data.truth, data.detect(detector))
    with all_detections(detector.model):
        more = find_matches(data.truth, data.detect(detector), most=PER_IMAGE)
    counted = ~matches.ignored[0]
    error = calibration_error(matches.scores[counted], matches.right[0][counted])
    once = np.ones((1, matches.positives.shape[1]), int)
    ap, ap_of_more = (
        {name: float(value[0]) for name, value in metrics(x, once).items()} for x in (matches, more)
    )
    of_more = {f"AP of {PER_IMAGE} detections an image": ap_of_more["AP"]}
    return {"calibration error": error, "AP": ap.pop("AP"), **of_more, **ap}


def _table(before: dict[str, float], after: dict[str, float], is_fitted: bool) -> str:
    from tabulate import tabulate

    rows = [(name, before[name], after[name]) for name in before]
    note = (
        "\nMeasured on the images it was fitted to: name others with --test." if is_fitted else ""
    )
    return tabulate(rows, ("in %", "before", "after"), "github", floatfmt=".2f") + note


def _summary(found: Any, data: Any, output: Path) -> str:
    before, after = found.errors
    lines = [
        "",
        f"fitted to {data.name}: calibration error there {before:.1f} %, now {after:.1f} %",
        f"checkpoint: {output} (loads where the raw one does)",
        f"thresholds: {output.with_name('thresholds.json')}, one for each class; one for all: "
        f"SCORE_THRESH_TEST {found.threshold:.3g}",
        f"picture: {output.with_name('reliability.png')}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status: 2 after a user's mistake."""
    return status_of(lambda: run(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
