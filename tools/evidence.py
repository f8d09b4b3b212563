#!/usr/bin/env python
"""Fill the tables of docs/evidence.md from the rows in results/evidence.json and draw its figures.

    python tools/evidence.py --run chess_tuned
    python tools/evidence.py --add main=output/compare/results.json
    python tools/evidence.py

--run makes a comparison of PROTOCOL, or repeats a stored one, in output/NAME. Finished trainings
stay, so that the command can be interrupted and repeated. --add stores any other results.json of
rambo-compare. Both store a row for each loss and each difference on each dataset. The command
then rewrites the tables of the page below <!-- table: KIND COMPARISON ... -->, where KIND is one
of TABLES, and draws docs/evidence/NAME.png for each comparison NAME of FIGURES.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rambo_det.cli.failures import exit_status  # noqa: E402
from rambo_det.compare.figures import learning_curves  # noqa: E402
from rambo_det.compare.text import format_value  # noqa: E402
from rambo_det.errors import InputError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ROWS, PAGE = ROOT / "results/evidence.json", ROOT / "docs/evidence.md"
PICTURES = ROOT / "docs/evidence"
FIGURES = ("voc07_long_seeds", "chess_long")
# Comparisons that are not stored yet, written before their first training: name -> the question,
# the arguments of rambo-compare. AP decides. Each loss is tuned over the same number of settings.
PROTOCOL: dict[str, tuple[str, str]] = {}
# Differences between comparisons with the same data, seeds and schedule: name -> the loss that is
# subtracted, then the loss from which it is subtracted, each as (title, {comparison: variant}).
_EACH = dict.fromkeys(("lambda_each", "lambda_each_seeds"), "each_x10")
_EACH_RETINANET = {"retinanet_calibrated": "rambo", "retinanet_quickstart_seeds": "each_x10"}
_PLACE = dict.fromkeys(("place_chess", "place_chess_seeds", "place_bccd"), "rambo")
_PLACE_RETINANET = dict.fromkeys(("place_retinanet", "place_retinanet_seeds"), "gap0")
_BOTH = ("voc07_seeds_today", "pretrained_fifth")
_LONG = ("voc07_long", "voc07_long_seed", "voc07_long_third")
_VOC07_SOFTMAX = ("voc07_retinanet_softmax", "voc07_retinanet_softmax_seeds")
_CHESS_SOFTMAX = ("retinanet_softmax", "retinanet_softmax_seeds")
_REPEAT = ("cross entropy with repeat-factor sampling", {"repeat_factor": "ce_repeat"})
DERIVED: dict[str, tuple[tuple[str, dict[str, str]], tuple[str, dict[str, str]]]] = {
    "default": (("cross entropy", {"main": "ce"}), ("RaMBO", _EACH)),
    "pretrained_default": (
        ("cross entropy", dict.fromkeys(("voc07", "pretrained", *_BOTH), "ce")),
        ("RaMBO", dict.fromkeys(("voc07_today", "pretrained_today", *_BOTH), "rambo")),
    ),
    "voc07_long_seeds": (
        ("cross entropy", dict.fromkeys(_LONG, "ce")),
        ("RaMBO", dict.fromkeys(_LONG, "rambo")),
    ),
    "voc07_long_tuned": (
        ("cross entropy", dict.fromkeys(_LONG[:2], "ce")),
        ("RaMBO, all proposals, rate 0.04", {"voc07_long_best": "rambo_all_lr0.04"}),
    ),
    "repeat_sampling": (("cross entropy", {"pretrained": "ce"}), _REPEAT),
    "repeat_rambo": (_REPEAT, ("RaMBO", {"pretrained_today": "rambo"})),
    "pretrained_retinanet": (
        (
            "focal loss",
            {
                "retinanet_pretrained": "focal_lr0.02",
                "voc07_retinanet": "focal",
                "voc07_retinanet_seeds_today": "focal",
            },
        ),
        (
            "RaMBO",
            {
                "retinanet_pretrained_today": "rambo_lr0.04",
                "voc07_retinanet_today": "rambo",
                "voc07_retinanet_seeds_today": "rambo",
            },
        ),
    ),
    "retinanet_today": (
        ("focal loss", {"retinanet_gn": "focal_lr0.02"}),
        ("RaMBO", {"retinanet_softmax": "rambo"}),
    ),
    "voc07_retinanet_softmax_all": (
        ("focal_softmax", dict.fromkeys(_VOC07_SOFTMAX, "focal_softmax")),
        ("RaMBO", dict.fromkeys(_VOC07_SOFTMAX, "rambo")),
    ),
    "retinanet_softmax_all": (
        ("focal_softmax", dict.fromkeys(_CHESS_SOFTMAX, "focal_softmax")),
        ("RaMBO", dict.fromkeys(_CHESS_SOFTMAX, "rambo")),
    ),
    "retinanet_softmax_best": (
        ("focal_softmax, γ 1", {"retinanet_softmax_gamma": "focal_gamma1"}),
        ("RaMBO", dict.fromkeys(_CHESS_SOFTMAX, "rambo")),
    ),
    "default_retinanet": (
        ("focal loss", dict.fromkeys(_EACH_RETINANET, "focal")),
        ("RaMBO", _EACH_RETINANET),
    ),
    "place": (
        ("lift", {**_PLACE, "tuning_iou": "rambo_w1"}),
        ("Faster R-CNN, lift by place", dict.fromkeys([*_PLACE, "place_quickstart"], "gap0")),
    ),
    "place_lift": (
        ("lift", {"retinanet": "rambo"}),
        ("RetinaNet, lift by place", _PLACE_RETINANET),
    ),
    "place_focal": (
        ("focal loss", {"retinanet": "focal"}),
        ("RetinaNet, lift by place", _PLACE_RETINANET),
    ),
    "place_each": (
        ("each", {"retinanet_calibrated": "rambo"}),
        ("RetinaNet, each by place", {"place_retinanet_quickstart": "each_gap0"}),
    ),
    "place_pretrained_each": (
        ("each", {"retinanet_pretrained": "rambo_lr0.04"}),
        ("pretrained RetinaNet, each by place", {"place_pretrained": "gap0"}),
    ),
}
CALIBRATION = ("AP", "AP calibrated", "ECE", "ECE calibrated")
METRICS = ("AP", "AP50", "AP75", *CALIBRATION[1:], "APs", "APm", "APl")
Rows = dict[str, list[dict[str, Any]]]
Lines = list[list[str]]


def summary(name: str, results: dict[str, Any], question: str = "") -> Rows:
    """Returns the rows for a results.json of compare.py; KeyError if it is another json."""
    about = {key: results["versions"][key] for key in ("torch", "detectron2", "device")}
    about |= {"question": question} if question else {}
    about["command"] = re.sub(r"--out \S+", f"--out output/{name}", results["command"])
    runs = {(r["data"], r["variant"], r["seed"]): r["metrics"] for r in results["runs"]}
    curves: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in (r for r in results["runs"] if r["status"] == "finished"):
        for found in r["evaluations"]:
            curve = curves.setdefault((r["data"], r["variant"]), {})
            curve.setdefault(str(found["iteration"]), []).append(found["AP"])
    rows: Rows = {"comparisons": [{"name": name, "runs": len(runs), **about}]}
    rows |= {"losses": [], "differences": []}
    variants = results["variants"]
    for data, part in results["data"].items():
        for kind in ("losses", "differences"):
            for variant, found in part[kind].items():
                row = {"of": name, "data": data, "variant": variant, **variants[variant]}
                if kind == "differences":
                    row = {"of": name, "data": data, "loss": variants[variant]["title"]}
                    row["less"] = variants[results["reference"]]["title"]
                row["seeds"] = found["seeds"]
                values = {m: found["metrics"][m].values() for m in METRICS if m in found["metrics"]}
                if kind == "losses":
                    of_seeds = [runs[data, variant, seed] for seed in found["seeds"]]
                    for metric in (metric for metric in METRICS[:3] if metric in values):
                        values[f"{metric} of seeds"] = [metrics[metric] for metrics in of_seeds]
                row |= {m: [v and round(v, 4) for v in value] for m, value in values.items()}
                if kind == "losses" and "boxes" in part:
                    row["classes"] = {
                        name: [boxes, *(round(metrics[f"AP-{name}"], 1) for metrics in of_seeds)]
                        for name, boxes in zip(part["classes"], part["boxes"], strict=True)
                        if boxes
                    }
                curve = curves.get((data, variant), {}) if kind == "losses" else {}
                if len(curve) > 1:
                    row["AP at"] = {i: [round(ap, 4) for ap in aps] for i, aps in curve.items()}
                rows[kind] += [row] if found["seeds"] else []
    return rows


def derive(rows: Rows, name: str) -> Rows:
    """Returns the rows for one of DERIVED; intervals cover only the seeds.

    A difference is taken seed by seed (Student's t) if its losses were trained in the same
    comparisons, whose rows have the values of each seed, else between the means (Welch's t).
    """
    sides: list[Rows] = []
    for _, variants in DERIVED[name]:
        sides.append({})
        for row in rows["losses"]:
            if variants.get(row["of"]) == row["variant"]:
                sides[-1].setdefault(row["data"], []).append(row)
    new: Rows = {"losses": [], "differences": []}
    titles = [title for title, _ in DERIVED[name]]
    for data in [data for data in sides[0] if data in sides[1]]:
        parts = [side[data] for side in sides]
        seeds = sorted(set.intersection(*({s for r in part for s in r["seeds"]} for part in parts)))
        made = [
            {"of": name, "data": data, "variant": title, "title": title, **_of_seeds(part, seeds)}
            for title, part in zip(titles, parts, strict=True)
        ]
        unknown = [metric for metric in METRICS if any(metric not in row for row in made)]
        unknown += [f"{metric} of seeds" for metric in unknown]
        made = [{k: v for k, v in row.items() if k not in unknown} for row in made]
        difference = {"of": name, "data": data, "loss": titles[1], "less": titles[0]}
        difference["seeds"] = seeds
        together = {row["of"] for row in parts[0]} == {row["of"] for row in parts[1]}
        of_seeds = {metric: f"{metric} of seeds" for metric in METRICS[:3]}
        if together and set(of_seeds.values()) <= made[0].keys():
            for metric, key in of_seeds.items():
                difference[metric] = around_seeds(np.subtract(made[1][key], made[0][key]))
        else:
            for metric in (metric for metric in METRICS[:4] if metric in made[0]):
                difference[metric] = unpaired(*(row[metric] for row in made), len(seeds))
        new["losses"] += made
        new["differences"].append(difference)
    return new


def _of_seeds(part: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """The metrics of a loss over some seeds, from rows whose seeds have no seed in common.

    Older rows have a metric's mean and deviation alone: these count only if all their seeds do.
    """
    made: dict[str, Any] = {"seeds": seeds}
    numbers = np.array([len(row["seeds"]) for row in part])
    for metric in METRICS:
        key = f"{metric} of seeds"
        if all(key in row for row in part):
            found = {s: v for row in part for s, v in zip(row["seeds"], row[key], strict=True)}
            values = np.array([found[seed] for seed in seeds])
            made[key] = values.tolist()
            mean, squares = values.mean(), ((values - values.mean()) ** 2).sum()
        elif all(metric in row for row in part) and numbers.sum() == len(seeds):
            means, deviations = np.array([row[metric] for row in part], float).T
            mean = np.average(means, weights=numbers)
            squares = np.nansum((numbers - 1) * deviations**2) + numbers @ (means - mean) ** 2
        else:
            continue
        deviation = round(float(squares / (len(seeds) - 1)) ** 0.5, 4) if len(seeds) > 1 else None
        made[metric] = [round(float(mean), 4), deviation]
    if all("AP at" in row for row in part):
        made["AP at"] = {
            i: [ap for row in part for ap in row["AP at"][i]] for i in part[0]["AP at"]
        }
    if all("classes" in row for row in part):
        made["classes"] = {}
        for kind, (boxes, *_) in part[0]["classes"].items():
            pairs = [
                pair for r in part for pair in zip(r["seeds"], r["classes"][kind][1:], strict=True)
            ]
            made["classes"][kind] = [boxes, *(dict(pairs)[seed] for seed in seeds)]
    return made


def around_seeds(found: np.ndarray) -> list[float | None]:
    """Returns the mean over the seeds of a difference, with its 95 % interval (Student's t)."""
    around: Sequence[float | None] = [None, None]
    if len(found) > 1:
        around = stats.t.interval(0.95, len(found) - 1, found.mean(), stats.sem(found))
    return [v if v is None else round(float(v), 4) for v in (found.mean(), *around)]


def unpaired(less: list[Any], more: list[Any], seeds: int) -> list[float | None]:
    """Returns the difference of two [mean, deviation] and its 95 % interval (Welch's t)."""
    difference = more[0] - less[0]
    if None in (less[1], more[1]):
        return [round(difference, 4), None, None]
    variances = np.square([less[1], more[1]]) / seeds
    freedom = (seeds - 1) * variances.sum() ** 2 / np.square(variances).sum()
    half = stats.t.ppf(0.975, freedom) * variances.sum() ** 0.5
    return [round(float(v), 4) for v in (difference, difference - half, difference + half)]


def _format(row: dict[str, Any], metric: str = "AP") -> str:
    """Formats ``mean ± deviation`` of a loss, or ``mean (low … high)`` of a difference."""
    names = ("mean", "low", "high") if "less" in row else ("mean", "std")
    return format_value(dict(zip(names, row[metric], strict=True)) if metric in row else None)


def _rows_by_data(rows: Rows, kind: str, names: Iterable[str]) -> Rows:
    """Returns dataset -> the rows of the comparisons ``names`` on it."""
    found: Rows = {}
    for row in (row for name in names for row in rows[kind] if row["of"] == name):
        found.setdefault(row["data"], []).append(row)
    return found


def results_table(rows: Rows, names: list[str], metrics: Sequence[str] = METRICS[:3]) -> Lines:
    """Tabulates, for each dataset, the losses and then their differences from the first."""
    told = [row for kind in ("losses", "differences") for row in rows[kind] if row["of"] in names]
    metrics = [metric for metric in metrics if any(metric in row for row in told)]
    lines = [["data", "loss", "seeds", *metrics]]
    for name in names:
        differences = _rows_by_data(rows, "differences", [name])
        for data, losses in _rows_by_data(rows, "losses", [name]).items():
            for row in [*losses, *differences.get(data, [])]:
                title = f"{row['loss']} less {row['less']}" if "less" in row else row["title"]
                head = [data if row is losses[0] else "", title, str(len(row["seeds"]))]
                if any(metric in row for metric in metrics):
                    lines.append([*head, *(_format(row, metric) for metric in metrics)])
    return lines


def classes_table(rows: Rows, names: list[str]) -> Lines:
    """Tabulates each loss's difference from the first in thirds of the classes, over the seeds.

    The thirds are made by the number of boxes, then by the mean AP over all losses, so that chance
    in one loss does not put a class among those where this loss gains.
    """
    thirds = [f"{third} {of}" for of in ("boxes", "AP") for third in ("least", "middle", "most")]
    lines = [["data", "difference in AP", "classes", *thirds]]
    for data, losses in _rows_by_data(rows, "losses", names).items():
        # (losses, K, 1 + S): for each class the number of its boxes, then its AP with each seed.
        table = np.array([list(row["classes"].values()) for row in losses])
        assert all(row["seeds"] == losses[0]["seeds"] for row in losses), names
        boxes, aps = table[0, :, 0], table[:, :, 1:]
        for row, differences in zip(losses[1:], aps[1:] - aps[0], strict=True):
            line = [data, f"{row['title']} less {losses[0]['title']}", str(len(boxes))]
            for order in (np.argsort(boxes), np.argsort(aps.mean(axis=(0, 2)))):
                for third in np.array_split(order, 3):
                    ap = around_seeds(differences[third].mean(axis=0))
                    line.append(_format({"less": "", "AP": ap}))
            lines.append(line)
    return lines


def differences_table(rows: Rows, names: list[str]) -> Lines:
    """Tabulates a row per difference, a column per dataset; a semicolon precedes the seed count."""
    cells: dict[str, dict[str, str]] = {}
    for data, found in _rows_by_data(rows, "differences", names).items():
        for row in found:
            seeds = f"; {len(row['seeds'])}" if row["seeds"] else ""
            title = f"{row['loss']} less {row['less']}"
            cells.setdefault(title, {})[data] = _format(row) + seeds
    columns = list(dict.fromkeys(column for line in cells.values() for column in line))
    lines = [[title, *(line.get(c, "–") for c in columns)] for title, line in cells.items()]
    return [["difference in AP", *columns], *lines]


TABLES = {
    "results": results_table,
    "differences": differences_table,
    "classes": classes_table,
    "calibrated": lambda rows, names: results_table(rows, names, CALIBRATION),
}


def page(rows: Rows, text: str) -> str:
    """Returns the text of the page with updated tables."""

    def table(match: re.Match[str]) -> str:
        kind, *names = match[2].split()
        head, *lines = TABLES[kind](rows, names)
        cells = [head, ["---"] * len(head), *lines]
        return match[1] + "".join(f"| {' | '.join(line)} |\n" for line in cells)

    return re.sub(r"(<!-- table: (.*?) -->\n)(?:\|.*\n)*", table, text)


def draw(rows: Rows, name: str, file: Path) -> None:
    """Draws AP over the iterations of a comparison on one dataset."""
    losses = [row for row in rows["losses"] if row["of"] == name]
    curves = {r["title"]: {int(i): aps for i, aps in r["AP at"].items()} for r in losses}
    file.write_bytes(learning_curves(curves, "png"))


def as_json(rows: Rows) -> str:
    """Returns the rows as json, one row per line."""
    lines = {k: [json.dumps(row, ensure_ascii=False) for row in part] for k, part in rows.items()}
    parts = [f'"{kind}": [\n' + ",\n".join(part) + "\n]" for kind, part in lines.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def known(rows: Rows) -> dict[str, tuple[str, str]]:
    """Returns question and arguments of each comparison, stored or of PROTOCOL."""
    stored = {
        row["name"]: (row.get("question", ""), row["command"].partition(" ")[2])
        for row in rows["comparisons"]
    }
    return stored | PROTOCOL


def make(name: str, rows: Rows) -> str:
    """Makes a comparison in output/NAME; returns the path of its results.json."""
    comparisons = known(rows)
    if name not in comparisons:
        raise InputError(f"--run {name}: no such comparison, but {', '.join(comparisons)}")
    commits = {row["name"]: row["commit"] for row in rows["comparisons"] if "commit" in row}
    if name in commits:
        raise InputError(
            f"--run {name}: it needs older keys or defaults: check out {commits[name]}"
        )
    question, words = comparisons[name]
    print(question or name)
    out = f"output/{name}"
    command = [sys.executable, str(ROOT / "tools/compare.py"), "--out", out, *shlex.split(words)]
    if subprocess.run(command).returncode:
        raise InputError(f"--run {name}: not all of its trainings have ended, see above")
    return f"{out}/results.json"


def run(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", nargs="*", action="extend", default=[], metavar="NAME")
    parser.add_argument(
        "--add", nargs="*", action="extend", default=[], metavar="NAME=RESULTS.json"
    )
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    args, comparisons = parser.parse_args(argv), known(rows)
    for name in args.run:
        args.add.append(f"{name}={make(name, rows)}")
        for kind, key in (("comparisons", "name"), ("losses", "of"), ("differences", "of")):
            rows[kind] = [row for row in rows[kind] if row[key] != name]
    for item in args.add:
        name, _, file = item.partition("=")
        if any(row["name"] == name for row in rows["comparisons"]):
            raise InputError(f"--add {name}: there is a comparison of that name: choose another")
        try:
            results = json.loads(Path(file).read_text(encoding="utf-8"))
            found = summary(name, results, comparisons.get(name, ("",))[0])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"--add {item}: no results.json of a comparison ({error!r})") from None
        rows |= {kind: rows[kind] + part for kind, part in found.items()}
    for kind in ("losses", "differences"):
        rows[kind] = [row for row in rows[kind] if row["of"] not in DERIVED]
    for name in DERIVED:
        rows |= {kind: rows[kind] + part for kind, part in derive(rows, name).items()}
    ROWS.write_text(as_json(rows), encoding="utf-8")
    PAGE.write_text(page(rows, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name in FIGURES:
        draw(rows, name, PICTURES / f"{name}.png")


if __name__ == "__main__":
    sys.exit(exit_status(run))
