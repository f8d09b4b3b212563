"""docs/scalars.md explains exactly the scalars that the package writes."""

import re

import pytest
import torch
from detectron2.utils.events import EventStorage

from rambo_det import RamboCriterion

from .architectures import build, training_losses
from .doc_pages import DOCS, text_of
from .forked import in_processes

PAGE = text_of(DOCS / "scalars.md")
CLASSES = ("circle", "square", "triangle", "star", "object")


def general(names, prefix):
    """Returns the names that begin with a prefix, in the notation of the page."""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    classes = "|".join(CLASSES)
    return {"rambo/" + re.sub(rf"^AP-({classes}|\d)$", "AP-<class>", name) for name in inside}


def documented():
    return set(re.findall(r"^\| `(rambo/.+?)` \|", PAGE, re.M))


@pytest.mark.parametrize(
    "architecture, prefixes, loss",
    [
        ("faster_rcnn", ["rambo/"], "loss_cls"),
        ("retinanet", ["rambo/"], "loss_cls"),
        ("cascade", [f"stage{i}/rambo/" for i in range(3)], "loss_cls_stage0"),
        ("rpn", ["rambo/rpn/"], "loss_rpn_cls"),
    ],
)
def test_one_process(architecture, prefixes, loss):
    losses, latest = training_losses(build(architecture))
    names = set(latest)
    assert loss in losses and f"`{loss}`" in PAGE
    for prefix in prefixes:
        assert general(names, prefix) >= documented() - {"rambo/bytes_sent"}
        assert f"`{prefix}`" in PAGE or prefix == "rambo/"
    if architecture != "rpn":  # the ROI heads of this config also log scalars
        assert {g for p in prefixes for g in general(names, p)} <= documented()
    if architecture == "faster_rcnn":
        assert latest["rambo/zero_gradient"][0] == 0
        in_heads = {name for name in names if name.startswith("fast_rcnn/")}
        assert set(re.findall(r"`(fast_rcnn/\w+)`", PAGE)) == in_heads != set()
        assert "roi_head/num_fg_samples" in names  # docs/tuning.md


def test_memory_fill_and_absent_scalars():
    loss = RamboCriterion(2, memory_length=4)
    scores, gt = torch.randn(20, 2, requires_grad=True), torch.arange(20) % 3
    with EventStorage() as storage:
        for _ in range(5):
            loss(scores, gt)
        assert storage.latest()["rambo/memory_fill"] in (1.0, (1.0, 0))
    with EventStorage() as storage:
        loss(scores, torch.full((20,), 2))  # no positive in the batch, and the memory is full
        assert set(storage.latest()) == {"rambo/memory_fill", "rambo/score_range"}
    with EventStorage() as storage:
        RamboCriterion(2)(scores, gt)
        assert "rambo/memory_fill" not in storage.latest()
    with EventStorage() as storage, torch.no_grad():
        RamboCriterion(2)(scores, gt)  # a validation loss
        assert not storage.latest()


def _check(rank, world, folder):
    with EventStorage() as storage:
        loss = RamboCriterion(2, memory_length=1)
        loss(torch.randn(20, 2, requires_grad=True), torch.arange(20) % 3)
    (folder / f"{rank}.txt").write_text("\n".join(storage.latest()))


def test_several_processes(tmp_path):
    in_processes(2, tmp_path, _check, tmp_path)
    names = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(2)]
    assert names[0] == names[1]
    assert general(names[0], "rambo/") == documented()


def test_scalars_are_logged_under_their_names():
    loss = RamboCriterion(1, lambda_=1e-9, beta=0.0)
    with EventStorage() as storage:
        loss(torch.tensor([[5.0], [0.0], [-100.0], [2.0]]), torch.tensor([0, 0, 1, 1]))
        latest = storage.latest()
    assert latest["rambo/zero_gradient"][0] == 1 and latest["rambo/starved"][0] == 0.5
    assert latest["rambo/score_range"][0] == 105


def test_ap_is_the_mean_over_the_classes_with_positives_whatever_their_names():
    scores = torch.tensor([[5.0, 0.0, 0.0], [0.0, -1.0, 0.0], [4.0, 4.0, 0.0]])
    for names in ("abc", "aac"):
        with EventStorage() as storage:
            RamboCriterion(3, class_names=names)(scores, torch.tensor([0, 1, 3]))
            latest = storage.latest()
        assert {name for name in latest if "AP-" in name} == {f"rambo/AP-{n}" for n in names[:2]}
        assert latest["rambo/AP"][0] == pytest.approx((1 + 1 / 3) / 2)
