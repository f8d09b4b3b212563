#!/usr/bin/env python
"""Draws the figure of docs/how-it-works.md: scores, ranks, the second ranking, the gradient.

    python tools/draw_how_it_works.py --out docs/how-it-works.png

All numbers in the figure come from the package: the ranks and moved ranks from blackbox_rank, the
gradient from ap_loss. The tool stops if the two do not agree.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rambo_det.losses import ap_loss, blackbox_rank  # noqa: E402

SCORES = torch.tensor([2.3, 1.0, -0.4, 2.9, 2.1, 1.3, 0.15, -0.25, -1.3, -1.9])
POSITIVE = torch.arange(len(SCORES)) < 3
MARGIN, STEP = 0.4, 1.2
COLOURS = {True: "#d1495b", False: "#30638e"}


def ranked() -> dict[str, Any]:
    """Returns everything that the figure shows, by its name in docs/how-it-works.md."""
    scores = (SCORES - MARGIN * POSITIVE).requires_grad_()
    ranks = blackbox_rank(scores, 1.0).detach()
    among = blackbox_rank(scores[POSITIVE], 1.0).detach()
    slope = torch.zeros_like(ranks)
    slope[POSITIVE] = among / (len(among) * ranks[POSITIVE] ** 2)
    lambda_ = (STEP / slope[POSITIVE].median()).item()
    leaf = SCORES.clone().requires_grad_()
    loss = ap_loss(leaf, POSITIVE, lambda_=lambda_, margin=MARGIN)
    loss.backward()
    moved = scores.detach() + lambda_ * slope
    again = blackbox_rank(moved, 1.0)
    by_the_rule = (again - ranks) / lambda_
    if not torch.allclose(leaf.grad, by_the_rule):
        raise RuntimeError(f"ap_loss gives {leaf.grad}, but the rule gives {by_the_rule}")
    return {
        "scores": scores.detach(), "ranks": ranks, "moved": moved, "again": again,
        "gradient": leaf.grad, "loss": loss.item(),
    }  # fmt: skip


def draw_line(axis: Any, scores: Tensor, ranks: Tensor, title: str) -> None:
    """Draws scores on a line, with their ranks above."""
    axis.axhline(0, color="0.7", lw=1, zorder=0)
    for x, rank, positive in zip(scores.tolist(), ranks.tolist(), POSITIVE.tolist(), strict=True):
        axis.plot(x, 0, "o" if positive else "s", ms=11, color=COLOURS[positive])
        axis.text(x, 0.035, f"{rank:.0f}", ha="center", fontsize=10, color=COLOURS[positive])
    axis.set_title(title, loc="left", fontsize=11)
    axis.set(yticks=[], ylim=(-0.06, 0.09))


def draw(found: dict[str, Any]) -> Any:
    """Draws the figure and returns it."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.3))
    text = f"1. Rank all scores: the loss, 1 - AP, is {found['loss']:.2f}"
    draw_line(axes[0], found["scores"], found["ranks"], text)
    axes[0].plot([], [], "o", ms=9, color=COLOURS[True], label=f"positive, minus α = {MARGIN}")
    axes[0].plot([], [], "s", ms=9, color=COLOURS[False], label="negative")
    axes[0].legend(loc="upper left", bbox_to_anchor=(0.62, 1.3), ncols=2, frameon=False)
    text = "2. Move each positive up by λ times its slope, and rank again"
    draw_line(axes[1], found["moved"], found["again"], text)
    for before, after in zip(found["scores"][POSITIVE], found["moved"][POSITIVE], strict=True):
        style = {"arrowstyle": "->", "color": COLOURS[True], "lw": 1.5, "shrinkB": 7}
        ends = {"xy": (after.item(), -0.0), "xytext": (before.item(), -0.0)}
        axes[1].annotate("", **ends, arrowprops={**style, "connectionstyle": "arc3,rad=0.35"})
        axes[1].plot(before, 0, "o", ms=11, mfc="white", mec=COLOURS[True])
    colours = [COLOURS[positive] for positive in POSITIVE.tolist()]
    axes[2].bar(found["scores"], found["gradient"], width=0.1, color=colours)
    axes[2].axhline(0, color="0.7", lw=1)
    text = "3. The gradient is the change of rank, divided by λ"
    axes[2].set_title(text, loc="left", fontsize=11)
    axes[2].set(xlabel="score", ylabel="gradient")
    low, high = axes[2].get_ylim()
    axes[2].text(-2.1, low * 0.85, "below 0: the step of an optimiser raises the score", fontsize=9)
    axes[2].text(-2.1, high * 0.7, "above 0: lowers it", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(ranked()).savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
