#!/usr/bin/env python
"""Mean and standard deviation over the seeds of finished runs, as a table and as json.

    python tools/summarize.py --out results/quickstart.json rambo=output/rambo_* ce=output/ce_*

Each argument is LABEL=FOLDER, or LABEL=PATTERN; the folders are those that train_net.py left.
"""

from __future__ import annotations

import argparse
import glob
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate


def read_run(folder: Path) -> dict[str, Any]:
    """Seed and final evaluation (percent) of one run; ValueError if it has none."""
    with open(folder / "config.yaml") as f:
        config = yaml.safe_load(f)
    metrics: dict[str, float] = {}
    with open(folder / "metrics.json") as f:
        for line in f:
            scalars = json.loads(line).items()
            # A metric that does not apply is NaN, which json has no word for.
            found = {k: v for k, v in scalars if k.startswith(("bbox/", "voc/")) and v == v}
            metrics = found or metrics
    if not metrics:
        raise ValueError(f"{folder}: no evaluation in metrics.json")
    return {"folder": folder.name, "seed": config["SEED"], **metrics}


def spread(values: list[float]) -> str:
    """``mean ± standard deviation``; the value itself if there is one."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def paired_difference(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for the first label less the second, seed by seed; none without a common seed."""
    first, second = ({run["seed"]: run for run in runs} for runs in results.values())
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return []
    row: dict[str, Any] = {"loss": " - ".join(results), "runs": len(seeds)}
    for key in ("AP", "AP50", "AP75"):
        name = f"bbox/{key}"
        row[key] = spread([first[seed][name] - second[seed][name] for seed in seeds])
    return [row]


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDER")
    parser.add_argument("--out", type=Path, metavar="JSON", help="where to keep the numbers")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        for argument in args.runs:
            label, _, pattern = argument.partition("=")
            folders = sorted(glob.glob(pattern)) if pattern else []
            if not folders:
                raise ValueError(f"{argument}: no such folder, or not LABEL=FOLDER")
            results.setdefault(label, []).extend(read_run(Path(f)) for f in folders)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    for label, runs in results.items():
        row: dict[str, Any] = {"loss": label, "runs": len(runs)}
        for key in ("AP", "AP50", "AP75"):
            row[key] = spread([run[f"bbox/{key}"] for run in runs])
        aps = [run["bbox/AP"] for run in runs]
        row["AP, lowest to highest"] = f"{min(aps):.1f} to {max(aps):.1f}"
        rows.append(row)
    if len(results) == 2:
        rows += paired_difference(results)
    print("Mean ± standard deviation over the runs, percent")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
