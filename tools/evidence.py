#!/usr/bin/env python
"""Write docs/evidence.md and its figures from the stored comparisons in results/evidence.

    python tools/evidence.py --add main=output/compare/results.json
    python tools/evidence.py

The first keeps what a comparison found, without its folders; the second writes the page. Which
comparison goes where follows from the name: main, seeds, focal, longer, weight, tuning_NAME,
best_NAME, lambda_NAME, ablation_NAME, margin, margin_1, margin_tested, retinanet_tuning, retinanet,
retinanet_margin_1, retinanet_quickstart, retinanet_quickstart_margins, r50_retinanet,
retinanet_tried_NAME, retinanet_each, retinanet_quickstart_each,
retinanet_quickstart_seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jinja2  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402

from rambo_det.cli.failures import status_of  # noqa: E402
from rambo_det.compare.losses import TITLES  # noqa: E402
from rambo_det.compare.words import interval_text, number, spread_text  # noqa: E402
from rambo_det.engine.files import whole_file  # noqa: E402
from rambo_det.errors import InputError  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
STORED, PAGE, FIGURES = ROOT / "results/evidence", ROOT / "docs/evidence.md", ROOT / "docs/evidence"
TEMPLATE = Path(__file__).with_name("evidence.md.jinja")
#: What is kept of a run: not where it was made.
KEPT = ("data", "variant", "seed", "status", "source", "metrics")
#: Comparisons of RetinaNets on test images.
RETINANETS = (
    "retinanet", "retinanet_quickstart", "r50_retinanet", "retinanet_margin_1",
    "retinanet_quickstart_margins",
)  # fmt: skip
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f")
RULES = {
    "lift": "our rule: λ = (α + δ) / median slope",
    "each": "a λ for each positive",
    "fixed": "the paper's constant λ",
}
Results = dict[str, Any]


def keep(name: str, file: Path, folder: Path = STORED, overwrite: bool = False) -> Path:
    """Stores what a comparison found.

    Args:
        name: of the comparison.
        file: its ``results.json``.
        folder: where to.
        overwrite: whether to replace a comparison of that name.

    Raises:
        InputError: the file is none, or there is a comparison of that name.
    """
    stored = folder / f"{name}.json"
    if stored.exists() and not overwrite:
        raise InputError(f"--add {name}: {stored} is there already: --overwrite replaces it")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        results["runs"] = [{key: run[key] for key in KEPT} for run in results["runs"]]
        # Where the runs lay on the machine that made them is of no use to others.
        results["versions"].pop("platform", None)
        results["command"] = re.sub(r"--out \S+", f"--out output/{name}", results["command"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no results.json of a comparison: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(str(stored), "w") as out:
        json.dump(results, out, indent=1)
        out.write("\n")
    return stored


def read(folder: Path = STORED) -> dict[str, Results]:
    """The stored comparisons by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def difference(results: Results, data: str, variant: str, metric: str = "AP") -> Any:
    """Mean and interval of a loss less the first one; None where there is none."""
    return results["data"][data]["differences"].get(variant, {}).get("metrics", {}).get(metric)


def spread(results: Results, data: str, variant: str, metric: str = "AP") -> Any:
    """Mean and deviation of a loss over its seeds; None where it has not been trained."""
    return results["data"][data]["losses"].get(variant, {}).get("metrics", {}).get(metric)


def draw_differences(results: Results, file: Path) -> None:
    """Each loss less the first, data set by data set, with its interval."""
    rows = [
        (data, variant, difference(results, data, variant))
        for data in results["data"]
        for variant in results["variants"]
        if difference(results, data, variant)
    ]
    figure, axis = plt.subplots(figsize=(7.5, 0.9 + 0.45 * len(rows)), layout="constrained")
    variants = list(dict.fromkeys(variant for _, variant, _ in rows))
    for place, (_, variant, found) in enumerate(reversed(rows)):
        colour = COLOURS[variants.index(variant) % len(COLOURS)]
        axis.plot([found["low"], found["high"]], [place, place], color=colour, lw=2.5)
        axis.plot(found["mean"], place, "o", color=colour, ms=7)
    title = results["variants"]
    axis.set_yticks(range(len(rows)), [f"{d}: {title[v]['title']}" for d, v, _ in reversed(rows)])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.axvline(0, color="#444", lw=1)
    reference = title[results["reference"]]["title"]
    axis.set_xlabel(f"AP less that of {reference}, mean over the seeds and 95 % interval")
    _finish(figure, axis, file)


def draw_lambda(results: Results, file: Path) -> None:
    """AP over the factor by which the one parameter of each rule is multiplied; a panel a set."""
    sets = list(results["data"])
    width = 6.5 if len(sets) == 1 else 3.6 * len(sets)
    figure, axes = plt.subplots(
        1, len(sets), figsize=(width, 3.8), squeeze=False, layout="constrained"
    )
    for axis, data in zip(axes[0], sets, strict=True):
        for colour, (rule, label) in zip(COLOURS, RULES.items(), strict=False):
            points = [
                (float(factor), run["metrics"]["AP"])
                for run in results["runs"]
                for kind, factor in [rule_of(run["variant"])]
                if kind == rule and run["data"] == data and run["metrics"]
            ]
            if not points:
                continue
            factors = sorted({factor for factor, _ in points})
            means = [sum(v) / len(v) for f in factors for v in [[ap for g, ap in points if g == f]]]
            axis.plot(factors, means, color=colour, lw=2, label=label)
            axis.plot(*zip(*points, strict=True), "o", color=colour, ms=5)
        axis.set(xscale="log", ylabel=f"AP on {data}")
        # At least 10 AP high, so that what is noise does not look like a mountain.
        low, high = axis.get_ylim()
        room = max(10 - (high - low), 0) / 2
        axis.set_ylim(low - room, high + room)
        _bare(axis)
    figure.supxlabel("δ, or λ, as a multiple of its default", fontsize="medium")
    if len(axes[0][0].lines) > 2:
        axes[0][0].legend(frameon=False)
    _save(figure, file)


def draw_ablation(stored: dict[str, Results], file: Path) -> None:
    """A panel for each thing that is changed: AP less that of the default, a small dot a seed."""
    ablations = of_kind(stored, "ablation")
    known = variants_of(ablations)
    groups: dict[str, list[str]] = {}
    for variant in known:
        groups.setdefault(variant.partition("_")[0], []).append(variant)
    sets, columns = sets_of(ablations), 3
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 2.5 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (group, variants) in zip(axes.flat, groups.items(), strict=False):
        for place, variant in enumerate(variants):
            for index, data in enumerate(sets):
                found = seed_by_seed(stored, known[variant], data, variant)
                at, colour = [place + (index - len(sets) / 2) * 0.2], COLOURS[index]
                axis.plot(at * len(found), found, "o", color=colour, ms=4, alpha=0.5)
                if found:
                    axis.plot(at, statistics.mean(found), "o", color=colour, label=data, ms=7)
            if mean := mean_of_sets(stored, "ablation", variant):
                at = [place + len(sets) * 0.1]
                axis.plot(at * 2, [mean["low"], mean["high"]], color="#222", lw=2)
                axis.plot(at, mean["mean"], "s", color="#222", label="mean of the sets", ms=6)
        axis.axhline(0, color="#444", lw=1)
        axis.set_title(group)
        axis.set_xticks(range(len(variants)), [v.partition("_")[2] for v in variants])
        axis.set_xlim(-0.6, len(variants) - 0.4)
        _bare(axis)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for line in axes[:, 0]:
        line.set_ylabel("AP less the default's")
    handles = [axis.get_legend_handles_labels() for axis in axes.flat]
    found = {label: line for lines in handles for line, label in zip(*lines, strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4, frameon=False)
    _save(figure, file)


def _bare(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _finish(figure: Any, axis: Any, file: Path) -> None:
    _bare(axis)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's version in it the file is the same for the same numbers.
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def page(stored: dict[str, Results]) -> str:
    """The text of docs/evidence.md."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(spread=spread_text, interval=bounded_text, num=number)
    environment.globals.update(
        spread_of=spread, of_kind=of_kind, losses_of=losses_of, settings_of=settings_of,
        tuned=tuned, earlier=earlier, factors_of=factors_of, at_factor=at_factor,
        range_of=range_of, chance_of=chance_of, changes=changes, seeds_of=seeds_of, sets_of=sets_of,
        variants_of=variants_of, on_set=on_set, mean_of_sets=mean_of_sets,
        steps_of_each=steps_of_each, lost_classes=lost_classes, title_of=title_of, keys_of=keys_of,
        less=less, over_seeds=over_seeds, less_margin_1=less_margin_1,
        retinanets=RETINANETS, lowest_class=lowest_class,
        names={results["command"]: name for name, results in stored.items()},
    )  # fmt: skip
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    # A macro's line breaks and a block's add up.
    text = re.sub(r" +\n", "\n", template.render(stored=stored))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def bounded_text(value: Any) -> str:
    """An interval in words; no end beyond ±100, as ``compare.py`` has them since most of these were
    stored."""
    if value is None:
        return interval_text(value)
    ends = {key: min(max(value[key], -100.0), 100.0) for key in ("low", "high")}
    return interval_text({**value, **ends})


def seeds_of(results: Results) -> list[str]:
    """AP of RaMBO by default on the blood cells with seeds 0, 1 and 2."""
    found = {
        run["seed"]: number(run["metrics"]["AP"])
        for run in results["runs"]
        if (run["data"], run["variant"]) == ("bccd", "rambo")
    }
    return [found[seed] for seed in range(3)]


def losses_of(results: Results) -> list[str]:
    """The losses of a grid, whose variants are called LOSS_SETTING."""
    return list(dict.fromkeys(name.partition("_")[0] for name in results["variants"]))


def settings_of(results: Results) -> list[str]:
    """The settings of a grid, as ``lr0.08_w2``."""
    return list(dict.fromkeys(name.partition("_")[2] for name in results["variants"]))


def tuned(results: Results, data: str, loss: str, setting: str) -> str:
    """The mean AP of a loss at a setting, in bold if it is the loss's best; "–": not trained."""
    found = {s: spread(results, data, f"{loss}_{s}") for s in settings_of(results)}
    means = {s: value["mean"] for s, value in found.items() if value}
    if setting not in means:
        return "–"
    text = number(means[setting])
    return f"**{text}**" if means[setting] == max(means.values()) else text


def rule_of(variant: str) -> tuple[str, str]:
    """The rule for λ and the factor of its parameter that a variant RULE_xFACTOR stands for."""
    rule, _, factor = ("lift_x1" if variant == "rambo" else variant).partition("_x")
    return rule, factor


def factors_of(results: Results) -> list[str]:
    """The factors of a comparison of λ."""
    return sorted({rule_of(name)[1] for name in results["variants"]}, key=float)


def at_factor(results: Results, data: str, rule: str, factor: str) -> Any:
    """:func:`spread` of AP of the variant that stands for them; None where there is none."""
    names = (name for name in results["variants"] if rule_of(name) == (rule, factor))
    return next((spread(results, data, name) for name in names), None)


def range_of(results: Results, data: str, rule: str) -> float | None:
    """The highest less the lowest mean AP of a rule over its factors; None: of one at most."""
    found = [at_factor(results, data, rule, factor) for factor in factors_of(results)]
    means = [value["mean"] for value in found if value]
    return max(means) - min(means) if len(means) > 1 else None


def chance_of(results: Results, data: str, rule: str) -> float | None:
    """The :func:`range_of` to expect of a rule whose parameter has no effect at all, from the
    deviation over the seeds, were all runs independent; None for one seed or one factor."""
    found = [at_factor(results, data, rule, factor) for factor in factors_of(results)]
    found = [value for value in found if value]
    seeds = results["data"][data]["losses"]
    number = max(len(loss["seeds"]) for loss in seeds.values())
    if number < 2 or len(found) < 2:
        return None
    deviation = math.sqrt(statistics.mean(value["std"] ** 2 for value in found))
    # The mean range of k numbers drawn from a normal distribution of deviation 1.
    x = np.linspace(-8, 8, 2001)
    below = np.array([0.5 + math.erf(value / math.sqrt(2)) / 2 for value in x])
    k = len(found)
    mean_range = float(np.sum(1 - below**k - (1 - below) ** k) * (x[1] - x[0]))
    return deviation / math.sqrt(number) * mean_range


def changes(results: Results, variant: str, always: bool = False) -> str:
    """The keys of a variant, without MODEL, and its loss, if it is another or always."""
    opts, loss = (results["variants"][variant][key] for key in ("opts", "loss"))
    pairs = zip(opts[::2], opts[1::2], strict=True)
    parts = [f"`{key.removeprefix('MODEL.')} {value}`" for key, value in pairs]
    other = always or results["variants"][results["reference"]]["loss"] != loss
    return ", ".join([TITLES[loss]] * other + parts)


@cache
def frame_of(command: str) -> tuple[str, str, dict[str, str]]:
    """What all trainings of a command have in common: the config, the images held out, and the keys
    at its end, without MODEL."""
    words = shlex.split(command)
    last = max(place for place, word in enumerate(words) if word.startswith("--"))
    given = words[last + 2 :]
    keys = [key.removeprefix("MODEL.") for key in given[::2]]
    options = dict(zip(words, words[1:], strict=False))
    return (
        options["--config"],
        options.get("--hold-out", "none"),
        dict(zip(keys, given[1::2], strict=True)),
    )


def keys_of(results: Results) -> dict[str, str]:
    """The keys at the end of the command, which all trainings had, without MODEL."""
    return frame_of(results["command"])[2]


def title_of(results: Results, variant: str) -> str:
    """The title of a loss, with the margin that it had if that is not the default of today."""
    found = results["variants"][variant]
    margin = keys_of(results).get("RAMBO.MARGIN")
    if margin and found["loss"] == "rambo" and "MODEL.RAMBO.MARGIN" not in found["opts"]:
        return f"{found['title']}, margin {float(margin):g}"
    title: str = found["title"]
    return title


def less(
    stored: dict[str, Results], one: tuple[str, str], other: tuple[str, str], data: str
) -> Any:
    """:func:`pooled` of AP with one loss less that with another, seed by seed, each given as the
    name of a comparison and of a variant."""
    aps, others = (aps_of(stored, stored[name], data, variant) for name, variant in (one, other))
    return pooled([[ap - others[seed] for seed, ap in aps.items() if seed in others]])


def over_seeds(stored: dict[str, Results], one: tuple[str, str], data: str) -> dict[str, float]:
    """Mean and deviation of AP over the seeds of :func:`aps_of`, and their number."""
    name, variant = one
    aps = list(aps_of(stored, stored[name], data, variant).values())
    return {"mean": statistics.mean(aps), "std": statistics.stdev(aps), "seeds": len(aps)}


def steps_of_each(stored: dict[str, Results]) -> dict[str, dict[str, Any]]:
    """Of ``lambda_each_seeds`` on each set, and in the mean of the sets: AP with both steps, AP by
    default, and one less the other, seed by seed, with intervals as of :func:`pooled`."""
    results, default = stored["lambda_each_seeds"], stored["main"]
    found: dict[str, dict[str, list[float]]] = {}
    for data in results["data"]:
        short, far = (aps_of(stored, results, data, f"each_x{factor}") for factor in (1, 10))
        rambo = aps_of(stored, default, data, "rambo")
        seeds = sorted(set(short) & set(far) & set(rambo))
        found[data] = {
            "rambo": [rambo[seed] for seed in seeds],
            "short": [short[seed] for seed in seeds],
            "far": [far[seed] for seed in seeds],
            "far less short": [far[seed] - short[seed] for seed in seeds],
            "far less rambo": [far[seed] - rambo[seed] for seed in seeds],
            "short less rambo": [short[seed] - rambo[seed] for seed in seeds],
        }
    rows = {
        data: {
            name: pooled([values], [of[name] for other, of in found.items() if other != data])
            if "less" in name
            else {"mean": statistics.mean(values), "std": statistics.stdev(values)}
            for name, values in samples.items()
        }
        for data, samples in found.items()
    }
    less = [name for name in next(iter(found.values())) if "less" in name]
    rows["mean of the sets"] = {name: pooled([of[name] for of in found.values()]) for name in less}
    return rows


def less_margin_1(stored: dict[str, Results]) -> Any:
    """:func:`pooled` of the first comparison's AP less that with a margin of 1, seed by seed."""
    found = []
    for data in stored["main"]["data"]:
        now, before = ({
            run["seed"]: run["metrics"]["AP"]
            for run in stored[name]["runs"]
            if (run["data"], run["variant"]) == (data, "rambo")
        } for name in ("main", "margin_1"))  # fmt: skip
        found.append([now[seed] - before[seed] for seed in now])
    return pooled(found)


def earlier(data: str) -> dict[str, tuple[int, list[str]]]:
    """Of results/DATA.json, which summarize.py wrote: loss -> seeds, and AP, AP50 and AP75."""
    runs_of = json.loads((ROOT / "results" / f"{data}.json").read_text())
    found = {}
    for loss, runs in runs_of.items():
        values = [[run[f"bbox/{metric}"] for run in runs] for metric in ("AP", "AP50", "AP75")]
        spreads = [{"mean": statistics.mean(v), "std": statistics.stdev(v)} for v in values]
        found[loss] = (len(runs), [spread_text(value) for value in spreads])
    return found


def lost_classes(results: Results, data: str, variant: str) -> int:
    """How many classes a variant does not detect at all: their AP is 0 in every run."""
    found = results["data"][data]["losses"][variant]["metrics"]
    return sum(value["mean"] == 0 for name, value in found.items() if name.startswith("AP-"))


def lowest_class(results: Results, data: str, variant: str) -> dict[str, Any]:
    """The class and the seed with a variant's lowest AP, and what the reference has there."""
    at = {
        (run["variant"], run["seed"]): run["metrics"]
        for run in results["runs"]
        if run["data"] == data and run["metrics"]
    }
    aps = (
        (ap, name.removeprefix("AP-"), seed)
        for (kind, seed), metrics in at.items()
        for name, ap in metrics.items()
        if kind == variant and name.startswith("AP-") and ap is not None
    )
    ap, name, seed = min(aps)
    reference = at[results["reference"], seed][f"AP-{name}"]
    return {"ap": ap, "class": name, "seed": seed, "reference": reference}


def sets_of(stored: dict[str, Results]) -> list[str]:
    """The data of several comparisons."""
    return list(dict.fromkeys(data for results in stored.values() for data in results["data"]))


def variants_of(stored: dict[str, Results]) -> dict[str, Results]:
    """The variants of several comparisons but the references, and one that has each."""
    found: dict[str, Results] = {}
    for results in stored.values():
        for variant in results["variants"]:
            if variant != results["reference"]:
                found.setdefault(variant, results)
    return found


def loss_of(results: Results, variant: str) -> tuple[Any, ...]:
    """The loss of a variant and its keys."""
    found = results["variants"][variant]
    pairs = zip(found["opts"][::2], found["opts"][1::2], strict=True)
    return found["loss"], sorted(pairs)


def aps_of(
    stored: dict[str, Results], results: Results, data: str, variant: str
) -> dict[int, float]:
    """AP of a variant of a comparison by seed, of all comparisons that have this training.

    They give the same numbers, as long as they were made on one machine: ``tests/test_evidence.py``
    holds the stored ones to that.
    """
    found: dict[int, float] = {}
    for other in [results, *stored.values()]:
        if frame_of(other["command"]) != frame_of(results["command"]):
            continue
        for run in other["runs"]:
            same = run["variant"] in other["variants"] and (
                loss_of(other, run["variant"]) == loss_of(results, variant)
            )
            if same and run["data"] == data and run["metrics"]:
                found.setdefault(run["seed"], run["metrics"]["AP"])
    return found


def seed_by_seed(
    stored: dict[str, Results], results: Results, data: str, variant: str
) -> list[float]:
    """:func:`aps_of` a variant less that of the comparison's reference, seed by seed."""
    less = aps_of(stored, results, data, results["reference"])
    found = aps_of(stored, results, data, variant)
    return [value - less[seed] for seed, value in found.items() if seed in less]


def on_set(stored: dict[str, Results], results: Results, data: str, variant: str) -> str:
    """Mean of :func:`seed_by_seed` and the number of its seeds, in words."""
    found = seed_by_seed(stored, results, data, variant)
    if not found:
        return "–"
    mean = statistics.mean(found)
    return f"{'+' if mean > 0 else ''}{number(mean)}; {len(found)}"


def pooled(found: Sequence[list[float]], alike: Sequence[list[float]] = ()) -> Any:
    """The mean over the data sets of the mean over the seeds, with its interval.

    The sets are given; the seeds are a sample, which is taken to deviate alike on all sets and with
    all changes. So the interval is Student's t with the deviation within a sample, of all of them
    together. None where a set has no seed, or nothing has two.

    Args:
        found: of each set a number a seed.
        alike: other samples, from which the deviation is taken as well.
    """
    samples = [sample for sample in [*found, *alike] if sample]
    freedom = sum(len(sample) - 1 for sample in samples)
    if not all(found) or freedom < 1:
        return None
    squares = sum(np.var(sample) * len(sample) for sample in samples) / freedom
    error = (squares * sum(1 / len(sample) for sample in found)) ** 0.5 / len(found)
    mean = float(np.mean([np.mean(sample) for sample in found]))
    # Drawn: no package that is needed anyway has the quantile.
    t = np.quantile(np.abs(np.random.default_rng(0).standard_t(freedom, 100_000)), 0.95)
    return {"mean": mean, "low": mean - float(t * error), "high": mean + float(t * error)}


def mean_of_sets(stored: dict[str, Results], kind: str, variant: str) -> Any:
    """:func:`pooled` of :func:`seed_by_seed` on the sets of a kind of comparisons, the deviation
    from all its variants."""
    some = of_kind(stored, kind)
    variants, sets = variants_of(some), sets_of(some)
    samples = {
        name: [seed_by_seed(stored, results, data, name) for data in sets]
        for name, results in variants.items()
    }
    found = samples.pop(variant)
    return pooled(found, [sample for others in samples.values() for sample in others])


def of_kind(stored: dict[str, Results], kind: str) -> dict[str, Results]:
    """The comparisons of a kind: ``kind`` itself and ``kind_…``."""
    return {n: r for n, r in stored.items() if n == kind or n.startswith(f"{kind}_")}


def draw(stored: dict[str, Results]) -> None:
    """All figures of the page."""
    for name in ("main", "longer", *of_kind(stored, "best"), *RETINANETS):
        if name in stored:
            draw_differences(stored[name], FIGURES / f"{name}.png")
    for name, results in of_kind(stored, "lambda").items():
        draw_lambda(results, FIGURES / f"{name}.png")
    if of_kind(stored, "ablation"):
        draw_ablation(stored, FIGURES / "ablation.png")


def run(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--add", action="append", default=[], metavar="NAME=RESULTS.json",
        help="keep a comparison first; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="with --add: replace a comparison of that name"
    )
    args = parser.parse_args(argv)
    added = []
    for item in args.add:
        name, equals, file = item.partition("=")
        if not equals or not re.fullmatch(r"\w+", name):
            raise InputError(f"--add {item}: NAME=RESULTS.json, the name of letters and _")
        print(keep(name, Path(file), overwrite=args.overwrite))
        added.append(name)
    stored = read()
    draw(stored)
    text = page(stored)
    with whole_file(str(PAGE), "w") as out:
        out.write(text)
    print(PAGE)
    for name in added:
        if f"evidence/{name}.json" not in text:
            print(f"no part of the page shows {name}: its names are listed in --help")


if __name__ == "__main__":
    sys.exit(status_of(run))
