"""``rambo-predict`` (tools/predict.py): detects in images, videos or a camera's frames."""

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.arguments import add_model_arguments, classes_from_args, raise_input_error
from ..errors import InputError
from .failures import exit_status


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; raises InputError for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="rambo-predict",
        description="Detects objects in images, folders of images, videos or a camera's frames. "
        "Writes annotated pictures and videos, and all detections in COCO's result format.",
    )
    parser.error = raise_input_error
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="images, videos, folders")
    add_model_arguments(parser)
    add("--classes", metavar="A,B,C", help="class names, if they are not stored with the training")
    text = "number of a webcam (0 is the first) or URL of a stream; runs until Ctrl-C or --frames"
    add("--camera", action="append", default=[], metavar="NUMBER", help=text)
    add("--frames", type=int, metavar="N", help="read only the first N frames of each video")
    add("--output", default="predictions", metavar="FOLDER", help="[%(default)s]")
    add("--overwrite", action="store_true", help="replace existing files in the output")
    text = "draw detections with at least this score; default: per-class thresholds of a "
    text += "calibration, else the score with the best F1 in the run's last evaluation, else 0.5"
    add("--threshold", type=float, metavar="SCORE", help=text)
    args, unknown = parser.parse_known_intermixed_args(argv)
    for word in unknown:
        hint = f": write ./{word}" if Path(word).exists() else ""
        raise InputError(f"unrecognized argument {word}{hint}")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold must be in [0, 1], got {args.threshold}")
    if args.frames is not None and args.frames < 1:
        raise InputError(f"--frames must be >= 1, got {args.frames}")
    return args


def default_threshold(saved: Any) -> tuple[float, str]:
    """Returns the lowest score to draw, and its origin, for a ``SavedModel``."""
    from ..engine.saved_model import load_ground_truth
    from ..evaluation.matches import find_matches
    from ..evaluation.ranking import best_f1

    score = name = None
    # The evaluations of several datasets overwrite each other's results.
    if saved.results is not None and len(saved.data.annotations) == 1:
        ((name, file),) = saved.data.annotations.items()
        if not Path(file).is_file():
            return 0.5, f"the default, because {file} of the run's last evaluation does not exist"
        # The results may be those of another dataset, or incomplete.
        with contextlib.suppress(OSError, ValueError, KeyError, AssertionError):
            results = json.loads(saved.results.read_text())
            matches = find_matches(load_ground_truth(file), results, [0.5])
            score = best_f1(*matches.counted, int(matches.positives.sum()))
    return (0.5, "the default") if score is None else (score, f"the best F1 on {name}")


def silence_libraries() -> None:
    """Silences library messages on standard error that a user can do nothing about."""
    import cv2

    # OpenCV's messages about files that it cannot open: the tool reports these files itself.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # A small dataset may lack a class of the detector.
    register = logging.getLogger("rambo_det.data.register")
    register.addFilter(lambda record: "has no box in" not in record.msg)
    # Warnings about Detectron2's use of torch.
    warnings.filterwarnings("ignore", "torch.meshgrid")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def run(args: argparse.Namespace) -> int:
    """Detects in all inputs; returns 1 if files could not be read completely, else 0."""
    from ..engine.calibrated import read_thresholds
    from ..engine.detector import Detector
    from ..engine.saved_model import find_model
    from .annotate import Annotator
    from .sources import find_sources

    silence_libraries()
    saved = find_model(args.run, args.config, args.weights, args.imports)
    output = Path(args.output)
    sources, broken = find_sources(args.inputs, args.camera, output)
    files = len(broken) + len(sources)
    annotator = Annotator(output, sources, args.overwrite)
    detector = Detector(saved, args.opts, classes_from_args(args))
    score, why = args.threshold, "--threshold"
    if score is None:
        names = list(detector.metadata.get("thing_classes") or ())
        score, why = read_thresholds(saved.weights, names), "thresholds.json, one for each class"
    if score is None:
        score, why = default_threshold(saved)
    annotator.annotate(detector, score, args.frames)
    broken += annotator.broken
    for reason in broken:
        print(f"failed: {reason}", file=sys.stderr)
    print(annotator.summary(why))
    if broken:
        print(f"error: {len(broken)} of {files} files failed, see above", file=sys.stderr)
    return 1 if broken else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after a user's mistake."""
    return exit_status(lambda: run(parse_args(argv)))
