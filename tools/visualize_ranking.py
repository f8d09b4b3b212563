#!/usr/bin/env python
"""Shows where a detector ranks false detections above true ones, and how much AP this costs.

    python tools/visualize_ranking.py --run output/quickstart

Writes a picture for each of the --shown classes that lose most AP to ranking (precision over
recall, all ranks, the false detections that cost most AP with the true ones below them), all these
pictures as ranking.png, the numbers as ranking.json, and all in one file, index.html.
"""

import argparse
import base64
import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rambo_det.cli.failures import exit_status  # noqa: E402
from rambo_det.engine import arguments  # noqa: E402
from rambo_det.errors import InputError  # noqa: E402

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Ranking of {{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1.5em 0 } td, th { padding: .25em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f2f2f2 }
th { border-bottom: 2px solid #444 } img { width: 100%; margin: .5em 0 1.5em }
code { background: #f2f2f2; padding: .1em .3em } p { max-width: 60em }
</style>
<h1>How {{ title }} ranks {{ data }}</h1>
<p>Average precision (AP) is highest if every true detection has a higher score than every false one.
A detection is true if its IoU with an object of its class is at least {{ iou }} and no detection
with a higher score has this object. The AP that is missing to 100 has two parts: the AP <b>lost to
ranking</b>, which other scores of the same detections would regain, and the AP <b>lost to missed
objects</b>. A ranking loss works on the first part.</p>
<table><tr><th>class<th>objects<th>found<th>outranked by a false one<th>AP{{ "%.0f" % (iou * 100) }}
<th>AP lost to ranking<th>AP lost to missed objects</tr>
{% for row in rows %}<tr><td>{{ row.name }}<td>{{ row.objects }}<td>{{ row.found }}
<td>{{ row.outranked }}<td>{{ "%.1f" % row.ap }}<td>{{ "%.1f" % row.lost_to_order }}
<td>{{ "%.1f" % row.lost_to_not_found }}</tr>
{% endfor %}</table>
<p>The pictures show the false detections that cost most AP, each with the next true detection that it
outranks. Above a picture are rank and score; below it are the kind of error and the IoU with the nearest
object of the class. Objects are dashed white. The classes that lose most AP to ranking come
first{% if left_out %}; {{ left_out }} more are only in the table{% endif %}.</p>
{% for picture in pictures %}<img alt="{{ picture.name }}" src="data:image/png;base64,{{ picture.data }}">
{% endfor %}<p><code>{{ command }}</code></p></html>
"""  # noqa: E501


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; raises InputError for a wrong argument."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_model_arguments(parser)
    arguments.add_data_arguments(parser)
    add = parser.add_argument
    add("--dataset", metavar="NAME", help="dataset [the config's first test set]")
    add("--iou", type=float, default=0.5, help="lowest IoU at which a detection is true [0.5]")
    add("--shown", type=int, default=8, metavar="N", help="number of classes to draw [8]")
    add("--output", type=Path, metavar="FOLDER", help="[OUTPUT_DIR/ranking]")
    add("--overwrite", action="store_true", help="replace an earlier output")
    args = parser.parse_args(argv)
    arguments.check_data_arguments(args)
    if not 0 < args.iou <= 1:
        raise InputError(f"--iou must be above 0 and at most 1, got {args.iou}")
    if args.shown < 1:
        raise InputError(f"--shown must be >= 1, got {args.shown}")
    return args


def run(args: argparse.Namespace) -> None:
    """Detects, ranks and draws; InputError if the model, the data or the output is wrong."""
    from rambo_det.cli.predict import silence_libraries
    from rambo_det.data.files import make_folder
    from rambo_det.engine.detector import Detector
    from rambo_det.engine.evaluation_data import EvaluationData, register_for
    from rambo_det.engine.saved_model import find_model
    from rambo_det.evaluation.ranking import rank_detections

    silence_libraries()
    saved = find_model(args.run, args.config, args.weights, args.imports)
    output = args.output or Path(args.run or ".") / "ranking"
    if output.is_dir() and any(output.iterdir()) and not args.overwrite:
        raise InputError(f"{output} is not empty: use --overwrite, or another --output FOLDER")
    classes = None if saved.data.classes else arguments.classes_from_args(args)
    detector = Detector(saved, args.opts, classes)
    names = [args.dataset, *detector.datasets[: args.dataset is None]]
    register_for(detector, names, args, saved.data)
    data = EvaluationData(args.dataset, detector)
    make_folder(output, "--output")
    ranked = rank_detections(data.truth, data.detect(detector), args.iou)
    write(ranked, data, args, output, args.run or saved.weights)


def write(ranked: list[Any], data: Any, args: argparse.Namespace, output: Path, title: str) -> None:
    """Writes the pictures, the numbers and the html page; prints the numbers."""
    import jinja2
    import numpy as np
    from PIL import Image
    from tabulate import tabulate

    from rambo_det.engine.files import unique_path
    from rambo_det.evaluation.pictures import draw_class

    ranked = sorted((k for k in ranked if k.num_objects), key=lambda k: k.ap - k.ap_ideal)
    if not ranked:
        raise InputError(f"{data.name} has no objects, so there is nothing to rank")
    rows = [
        {
            "name": k.name, "objects": k.num_objects, "found": int(k.true.sum()),
            "outranked": k.outranked, "ap": 100 * k.ap,
            "lost_to_order": 100 * (k.ap_ideal - k.ap), "lost_to_not_found": 100 * (1 - k.ap_ideal),
        }
        for k in ranked
    ]  # fmt: skip
    total = {key: sum(row[key] for row in rows) for key in ("objects", "found", "outranked")}
    shares = ("ap", "lost_to_order", "lost_to_not_found")
    mean = {key: float(np.mean([row[key] for row in rows])) for key in shares}
    rows.append({"name": "mean or sum", **total, **mean})
    pictures, encoded, taken = [], [], {Path("ranking.png")}
    for k in ranked[: args.shown]:
        pictures.append(draw_class(k, args.iou, partial(data.look, k.name)))
        file = output / unique_path(Path(re.sub(r"[^-.\w]", "_", k.name) + ".png"), taken)
        Image.fromarray(pictures[-1]).save(file)
        encoded.append({"name": k.name, "data": base64.b64encode(file.read_bytes()).decode()})
    poster = Image.fromarray(np.concatenate(pictures))
    poster.quantize(256).save(output / "ranking.png", optimize=True)  # a third of the size
    page = jinja2.Environment(autoescape=True).from_string(PAGE).render(
        title=title, data=data.name, iou=args.iou, rows=rows, pictures=encoded,
        left_out=max(0, len(ranked) - args.shown),
        command=shlex.join(["python", "tools/visualize_ranking.py", *sys.argv[1:]]),
    )  # fmt: skip
    (output / "index.html").write_text(page, encoding="utf-8")
    numbers = {"dataset": data.name, "iou": args.iou, "classes": rows}
    (output / "ranking.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"{data.name}, at an IoU of {args.iou:g}; AP and lost AP in percent\n")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".1f"))
    print(f"\n{output / 'index.html'}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after a user's mistake."""
    return exit_status(lambda: run(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
