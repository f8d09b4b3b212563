"""The results as a person reads them: sentences and tables of text."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from .collect import METRICS
from .losses import TITLES

_FEW_IMAGES = 10  # below, resampling them says too little of others


def number(value: float | None, digits: int = 1) -> str:
    """With a minus that is one; "–" for what there is not."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def spread_text(value: dict[str, float | None] | None) -> str:
    """``mean ± deviation``."""
    if value is None:
        return "–"
    deviation = value["std"]
    return number(value["mean"]) + ("" if deviation is None else f" ± {number(deviation)}")


def interval_text(value: dict[str, float | None] | None) -> str:
    """``difference (low … high)``."""
    if value is None:
        return "–"
    sign = "+" if (value["mean"] or 0) > 0 else ""
    if value["low"] is None:
        return f"{sign}{number(value['mean'])}"
    return f"{sign}{number(value['mean'])} ({number(value['low'])} … {number(value['high'])})"


def verdict(results: dict[str, Any], data: str, variant: str, metric: str = "AP") -> dict[str, str]:
    """What the comparison says of one loss against the first.

    Returns:
        ``kind``: "higher", "lower", "none" (cannot be told) or "missing"; ``text``: a sentence.
    """
    title, other = (_title(results, name) for name in (variant, results["reference"]))
    found = results["data"][data]["differences"][variant]
    value, seeds = found["metrics"].get(metric), len(found["seeds"])
    begin = title[0].upper() + title[1:] if title in TITLES.values() else title
    one_image = results["data"][data].get("images") == 1
    if value is None or (value["low"] is None and not one_image):
        return {"kind": "missing", "text": f"{begin}: no finished seed to compare with {other}."}
    losses = results["data"][data]["losses"]
    means = [losses[name]["metrics"][metric]["mean"] for name in (variant, results["reference"])]
    if all(number(mean) == "0.0" for mean in means):
        text = f"{begin} and {other}: {metric} 0.0, nothing is detected yet. Train for longer."
        return {"kind": "none", "text": text}
    low, high = value["low"], value["high"]
    way = "higher" if value["mean"] >= 0 else "lower"
    text = f"{begin}’s {metric} is {number(abs(value['mean']))} {way} than that of {other}"
    if one_image:
        text += ": one test image cannot tell whether that holds for others."
        return {"kind": "none", "text": text}
    text += f" (95 % interval of the difference {number(low)} … {number(high)})"
    sample = f"these {seeds} seeds" if seeds > 1 else "one seed"
    if low <= 0 <= high:
        return {"kind": "none", "text": f"{text}: no difference can be told from {sample}."}
    if seeds == 1:
        return {"kind": "none", "text": f"{text}: more than the choice of images explains, but one "
                "seed does not show what chance does in training."}  # fmt: skip
    return {"kind": way, "text": f"{text}: more than chance explains, going by {sample}."}


def cautions(results: dict[str, Any], data: str) -> list[str]:
    """Sentences on what makes the numbers of a data set say less than they seem to."""
    images = results["data"][data].get("images")
    found = trained_on(results["data"][data].get("trained_on", 0))
    if images == 1:
        found.append("There is one test image: no interval and no difference can be told.")
    elif images is not None and images < _FEW_IMAGES:
        found.append(
            f"There are only {images} test images: the choice of them matters more than so few can "
            "show, and the intervals are too short."
        )
    return found


def trained_on(images: int) -> list[str]:
    """The sentence about so many test images that are trained on too; none if there are none."""
    if not images:
        return []
    return [
        f"{images} image{'s are' if images > 1 else ' is'} both trained on and tested on: the "
        "numbers say in part how well the detectors remember, not how they do on new images."
    ]


def loss_rows(results: dict[str, Any], data: str) -> list[dict[str, str]]:
    """A row for each loss: mean and deviation of the metrics."""
    part = results["data"][data]
    return [
        {
            "loss": _title(results, variant),
            "seeds": str(len(loss["seeds"])),
            **{n: spread_text(loss["metrics"].get(n)) for n in shown_metrics(results, data)},
        }
        for variant, loss in part["losses"].items()
    ]


def class_rows(results: dict[str, Any], data: str) -> list[dict[str, str]]:
    """A row for each class: mean and deviation of its AP with each loss."""
    part = results["data"][data]
    return [
        {
            "class": name,
            **{
                _title(results, variant): spread_text(loss["metrics"].get(f"AP-{name}"))
                for variant, loss in part["losses"].items()
            },
        }
        for name in part["classes"]
    ]


def difference_rows(results: dict[str, Any], data: str) -> list[dict[str, str]]:
    """A row for each metric: the difference of each loss from the first, with its interval."""
    part = results["data"][data]
    if not part["differences"]:
        return []
    names = ["AP", "AP50", "AP75", *(f"AP-{name}" for name in part["classes"])]
    return [
        {
            "metric": name.replace("AP-", "AP of ", 1),
            **{
                _title(results, variant): interval_text(found["metrics"].get(name))
                for variant, found in part["differences"].items()
            },
        }
        for name in names
    ]


def _title(results: dict[str, Any], variant: str) -> str:
    return str(results["variants"][variant]["title"])


def shown_metrics(results: dict[str, Any], data: str) -> list[str]:
    """The metrics that at least one loss has on this data."""
    losses = results["data"][data]["losses"].values()
    return [name for name in METRICS if any(name in loss["metrics"] for loss in losses)]


def as_text(results: dict[str, Any]) -> str:
    """Everything that is said of the results on a terminal."""
    parts = []
    reference = results["variants"][results["reference"]]["title"]
    for data, part in results["data"].items():
        parts.append(f"== {data}: mean ± standard deviation over the seeds, percent")
        parts.append(_grid(loss_rows(results, data)))
        parts += [f"caution: {text}" for text in cautions(results, data)]
        parts.append("AP of each class")
        parts.append(_grid(class_rows(results, data)))
        if part["differences"]:
            parts.append(f"Less {reference}, seed by seed" + with_intervals(part))
            parts.append(_grid(difference_rows(results, data)))
            parts.append("\n".join(verdict(results, data, v)["text"] for v in part["differences"]))
        if part["best"]:
            best = ", ".join(f"{loss}: {variant}" for loss, variant in part["best"].items())
            parts.append(f"Highest mean AP of each loss, chosen on these same images: {best}")
    if len(results["sources"]) > 1:
        versions = ", ".join(results["sources"])
        parts.append(f"The runs were made by different versions of the code: {versions}")
    return "\n\n".join(parts)


def with_intervals(part: dict[str, Any]) -> str:
    """How a title goes on that differences stand below."""
    return "" if part.get("images") == 1 else ", with 95 % intervals"


def _grid(rows: list[dict[str, str]]) -> str:
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    return tabulate(rows, "keys", tablefmt="github", disable_numparse=True, colalign=align)
