"""Formats the results of a comparison as sentences and text tables."""

from typing import Any

from tabulate import tabulate

from .results import METRICS
from .specs import LOSS_TITLES

_FEW_IMAGES = 10  # resampling fewer test images says too little about other images


def format_number(value: float | None, digits: int = 1) -> str:
    """Formats a number with a typographic minus; None gives "–".

    A negative number near 0 gives "−0.0", so that an interval shows whether it contains 0.
    """
    return "–" if value is None else f"{value or 0:.{digits}f}".replace("-", "−")


def format_value(value: dict[str, float | None] | None) -> str:
    """Formats ``mean ± deviation`` if the value has a ``std``, else ``difference (low … high)``."""
    if value is None:
        return "–"
    mean = format_number(value["mean"])
    if "std" in value:
        return mean if value["std"] is None else f"{mean} ± {format_number(value['std'])}"
    signed = f"+{mean}" if (value["mean"] or 0) > 0 else mean
    if value["low"] is None:
        return signed
    return f"{signed} ({format_number(value['low'])} … {format_number(value['high'])})"


def verdict(results: dict[str, Any], data: str, variant: str) -> dict[str, str]:
    """Compares a variant's AP with the reference's. Returns ``text``, a sentence, and ``kind``:
    "higher", "lower", "none" (no difference can be shown) or "missing" (no results)."""
    part, names = results["data"][data], (variant, results["reference"])
    title, other = (results["variants"][name]["title"] for name in names)
    begin = title[0].upper() + title[1:] if title in LOSS_TITLES.values() else title
    value, seeds = (part["differences"][variant][key] for key in ("metrics", "seeds"))
    value, one_image = value.get("AP"), part.get("images") == 1
    if value is None or (value["low"] is None and not one_image):
        return {"kind": "missing", "text": f"No seed is finished for both {title} and {other}."}
    if all(format_number(part["losses"][name]["metrics"]["AP"]["mean"]) == "0.0" for name in names):
        text = f"{begin} and {other}: AP 0.0, nothing is detected yet. Train for longer."
        return {"kind": "none", "text": text}
    low, high = value["low"], value["high"]
    way = "higher" if value["mean"] >= 0 else "lower"
    text = f"{begin}’s AP is {format_number(abs(value['mean']))} {way} than that of {other}"
    if one_image:
        text += ": one test image cannot show whether this holds for other images."
        return {"kind": "none", "text": text}
    text += f" (95 % interval of the difference {format_number(low)} … {format_number(high)}): "
    sample = f"these {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    if low <= 0 <= high:
        return {"kind": "none", "text": f"{text}no difference can be shown with {sample}."}
    if len(seeds) == 1:
        text += "more than the choice of images explains, but one seed does not show how much "
        return {"kind": "none", "text": f"{text}trainings differ by chance."}
    return {"kind": way, "text": f"{text}more than chance explains, with {sample}."}


def dataset_warnings(results: dict[str, Any], data: str) -> list[str]:
    """Returns sentences that warn of what makes the numbers of a dataset less reliable."""
    images = results["data"][data].get("images")
    warnings = overlap_warning(results["data"][data].get("trained_on", 0))
    if images == 1:
        warnings.append("There is only one test image: no interval can be estimated.")
    elif images is not None and images < _FEW_IMAGES:
        warnings.append(
            f"There are only {images} test images: results depend strongly on their choice, and "
            "the intervals are too narrow."
        )
    return warnings


def overlap_warning(images: int) -> list[str]:
    """Returns a list with a warning that ``images`` test images are trained on too; [] for 0."""
    if not images:
        return []
    return [
        f"{images} image{'s are' if images > 1 else ' is'} in both the training set and the test "
        "set: the numbers partly measure memorization."
    ]


def tables(results: dict[str, Any], data: str, table_format: str = "github") -> dict[str, str]:
    """Returns heading -> table in a format of tabulate: metrics, AP of each class, differences."""
    part, variants = results["data"][data], results["variants"]
    losses, differences = (
        {variants[name]["title"]: found for name, found in part[kind].items()}
        for kind in ("losses", "differences")
    )
    shown = [m for m in METRICS if any(m in loss["metrics"] for loss in losses.values())]
    counted = zip(part["classes"], part["boxes"], strict=True)
    classes = [(f"{name} ({boxes})", f"AP-{name}") for name, boxes in counted]
    rows: dict[str, list[dict[str, str]]] = {
        "Mean ± standard deviation over the seeds, percent": [
            {"loss": title, "seeds": str(len(loss["seeds"]))}
            | {metric: format_value(loss["metrics"].get(metric)) for metric in shown}
            for title, loss in losses.items()
        ],
        "AP of each class": _by_metric("class (number of test boxes)", classes, losses),
    }
    if differences:
        heading = f"Difference from {variants[results['reference']]['title']}, seed by seed"
        heading += "" if part.get("images") == 1 else ", with 95 % intervals"
        names = [(name, name) for name in METRICS[:3]]
        if any("AP calibrated" in found["metrics"] for found in differences.values()):
            names.append(("AP calibrated", "AP calibrated"))
        names += [(f"AP of {name}", f"AP-{name}") for name in part["classes"]]
        rows[heading] = _by_metric("metric", names, differences)
    return {
        title: tabulate(
            table, "keys", tablefmt=table_format, disable_numparse=True,
            colalign=["left", *["right"] * (len(table[0]) - 1)],
        )
        for title, table in rows.items()
    }  # fmt: skip


def _by_metric(head: str, names: list[tuple[str, str]], columns: dict[str, Any]) -> list[dict]:
    return [
        {head: label}
        | {title: format_value(found["metrics"].get(name)) for title, found in columns.items()}
        for label, name in names
    ]


def as_text(results: dict[str, Any]) -> str:
    """Returns the text that the terminal shows about the results."""
    parts = []
    for data, part in results["data"].items():
        parts.append(f"== {data}")
        parts += [f"{title}\n\n{table}" for title, table in tables(results, data).items()]
        parts += [f"caution: {text}" for text in dataset_warnings(results, data)]
        parts += [verdict(results, data, variant)["text"] for variant in part["differences"]]
        if part["best"]:
            best = ", ".join(f"{loss}: {variant}" for loss, variant in part["best"].items())
            parts.append(f"Highest mean AP of each loss, chosen on these same images: {best}")
    if len(results["sources"]) > 1:
        versions = ", ".join(results["sources"])
        parts.append(f"The runs were made by different versions of the code: {versions}")
    return "\n\n".join(parts)
