#!/usr/bin/env python3
"""Times a whole training step with the stock classification loss and with RaMBO.

    python tools/benchmark_step.py [--quick] [--device cuda] [--images 16 --size 800 1333]

Times Faster R-CNN and RetinaNet, each with a ResNet-50 FPN. Both models of a pair run in one
process and step alternately, from the same initial weights, on the same random images and boxes,
with the same random numbers. The ratio is taken pair by pair. On the outputs of each step, the tool
also times (forward and backward) all losses of the head, and the classification loss alone. Only
these differ between the two models: a difference that their time does not explain is noise.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_loss import backend_of, check_device, one_hot, peak_on_gpu, timed
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, cat
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rambo_det  # noqa: E402
from rambo_det.cli.failures import exit_status  # noqa: E402
from rambo_det.data.files import make_folder  # noqa: E402
from rambo_det.errors import InputError  # noqa: E402
from rambo_det.modeling.one_stage import flatten_levels  # noqa: E402
from rambo_det.modeling.scores import add_background, score_function  # noqa: E402
from rambo_det.paths import find_config  # noqa: E402

# Model -> its config with the stock loss and its config with RaMBO.
MODELS = {
    "Faster R-CNN": ("configs/faster_rcnn_ce.yaml", "configs/faster_rcnn_rambo.yaml"),
    "RetinaNet": ("configs/retinanet_focal.yaml", "configs/retinanet_rambo.yaml"),
}
PARTS = ("step", "losses of the head", "classification loss")


class TimedModel:
    """A model with its optimizer; ``inputs`` are the last arguments of the head's ``losses``."""

    def __init__(self, config: str, device: str, proposals: int, amp: bool = False) -> None:
        cfg = get_cfg()
        rambo_det.add_rambo_config(cfg)
        cfg.merge_from_file(find_config(config))
        cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.WEIGHTS", ""])
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = proposals
        torch.manual_seed(0)
        self.model = build_model(cfg).train()
        _damp_residual_branches(self.model)
        self._optimizer = build_optimizer(cfg, self.model)
        # The same autocast and scaler as in Detectron2's AMPTrainer.
        self._autocast = lambda: torch.autocast(device.partition(":")[0], enabled=amp)
        self._scaler = torch.amp.GradScaler(enabled=amp)
        self._initial = [p.detach().clone() for p in self.model.parameters()]
        self._is_dense = not hasattr(self.model, "roi_heads")
        self.head = self.model if self._is_dense else self.model.roi_heads.box_predictor
        self.inputs: tuple[Any, ...] = ()
        self._losses = self.head.losses
        self.head.losses = self._remember

    def _remember(self, *inputs: Any) -> dict[str, Tensor]:
        self.inputs = inputs
        return self._losses(*inputs)

    @torch.no_grad()
    def reset(self) -> None:
        """Restores the initial weights, drops gradients; keeps score memory and optimizer state."""
        self.inputs = ()  # else the timed step would free them
        self._optimizer.zero_grad()
        for parameter, value in zip(self.model.parameters(), self._initial, strict=True):
            parameter.copy_(value)

    def step(self, batch: list[dict[str, Any]]) -> None:
        with self._autocast():
            loss = sum(self.model(batch).values())
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def losses(self) -> None:
        with self._autocast():
            loss = sum(self._losses(*self.inputs).values())
        loss.backward()

    def logits_and_classes(self) -> tuple[Tensor, Tensor]:
        """Returns from ``inputs`` the logits of all boxes or anchors, a row each, and classes."""
        if self._is_dense:
            return flatten_levels(*self.inputs[1:3])
        (logits, _), proposals = self.inputs
        return logits, cat([p.gt_classes for p in proposals])

    def classify(self) -> None:
        """Runs forward and backward of the classification loss alone, on ``inputs``."""
        with self._autocast():
            loss = self._classification_loss(*self.logits_and_classes())
        loss.backward()

    def _classification_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if hasattr(self.head, "rambo_loss"):
            logits = add_background(logits) if self._is_dense else logits.float()
            return self.head.rambo_loss(score_function(self.head.rambo_score)(logits), gt_classes)
        if not self._is_dense:
            return F.cross_entropy(logits, gt_classes)
        valid = gt_classes >= 0
        logits, target = logits[valid], one_hot(gt_classes[valid], logits)
        weights = self.head.focal_loss_alpha, self.head.focal_loss_gamma
        return sigmoid_focal_loss_jit(logits, target, *weights, "sum")


def _damp_residual_branches(model: nn.Module) -> None:
    """Keeps a random ResNet's activations small, as pretrained weights do, at the same cost.

    The frozen batch norms of a random ResNet hold no statistics. Without this change each block
    doubles the variance, and the detector's first scores are far from those of any real start.
    """
    for module in model.modules():
        if isinstance(module, BottleneckBlock) and isinstance(module.conv3.norm, FrozenBatchNorm2d):
            module.conv3.norm.weight.fill_(0.1)


def _leaves(value: Any) -> Any:
    """Replaces tensors that have a graph, also in tuples and lists, by leaves without a graph."""
    if isinstance(value, Tensor) and value.requires_grad:
        return value.detach().requires_grad_()
    return type(value)(_leaves(x) for x in value) if type(value) in (tuple, list) else value


def make_batch(num: int, size: tuple[int, int], boxes: int) -> list[dict[str, Any]]:
    """Returns ``num`` noise images of ``size`` (height, width) with ``boxes`` random boxes each."""
    g = torch.Generator().manual_seed(0)
    height, width = size
    batch = []
    for _ in range(num):
        corner = torch.rand(boxes, 2, generator=g) * 0.7
        extent = 0.05 + torch.rand(boxes, 2, generator=g) * 0.25
        xyxy = torch.cat([corner, corner + extent], dim=1) * torch.tensor([width, height] * 2)
        classes = torch.randint(80, (boxes,), generator=g)
        image = torch.randint(256, (3, height, width), generator=g, dtype=torch.uint8)
        instances = Instances(size, gt_boxes=Boxes(xyxy), gt_classes=classes)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times a model with both losses: for each part the medians and quartiles of the ratio."""
    pair = [TimedModel(c, args.device, args.proposals, args.amp) for c in MODELS[name]]
    for a, b in zip(*(model.model.parameters() for model in pair), strict=True):
        assert torch.equal(a, b), "the two models differ at the start"
    batch = make_batch(args.images, tuple(args.size), args.boxes)
    times: dict[str, list[list[float]]] = {part: [[], []] for part in PARTS}
    warm_up = 2  # each round computes the loss three times, which fills the score memory
    with EventStorage(0):
        for number in range(warm_up + args.pairs):
            for which in (0, 1) if number % 2 else (1, 0):  # the first of a pair alternates
                model = pair[which]
                model.reset()
                torch.manual_seed(number)
                durations = [timed(model.step, batch)]
                for part in (model.losses, model.classify):
                    model.inputs = _leaves(model.inputs)
                    durations.append(timed(part))
                if number >= warm_up:
                    for part, ms in zip(PARTS, durations, strict=True):
                        times[part][which].append(ms)
        result = {"model": name, **_size_of_head(pair[0]), "parts": summarize(times)}
        if args.device.startswith("cuda"):
            result["peak_mib"] = {}
            for loss, model in zip(("stock", "RaMBO"), pair, strict=True):
                model.reset()
                result["peak_mib"][loss] = peak_on_gpu(model.step, batch) / 2**20
    return result


def _size_of_head(model: TimedModel) -> dict[str, int]:
    """Returns the numbers of boxes or anchors, scores and positives in the classification loss."""
    logits, classes = model.logits_and_classes()
    scores = logits[:, : model.head.num_classes]  # without the background's
    positive = (classes >= 0) & (classes < model.head.num_classes)
    return {"rows": len(scores), "scores": scores.numel(), "positives": int(positive.sum())}


def summarize(times: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    """Returns medians and quartiles of the paired ratio from each part's times [stock, RaMBO]."""
    result = {}
    for part, (stock, rambo) in times.items():
        ratios = [b / a for a, b in zip(stock, rambo, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        result[part] = {
            "stock_ms": statistics.median(stock), "rambo_ms": statistics.median(rambo),
            "ratio": median, "ratio_q1": low, "ratio_q3": high,
        }  # fmt: skip
    return result


def print_result(result: dict[str, Any]) -> None:
    peak = "".join(f", {loss} {mib:.0f} MiB" for loss, mib in result.get("peak_mib", {}).items())
    print(f"\n{result['model']}: {result['scores']} scores, {result['positives']} positives{peak}")
    print(f"  {'':20s} {'stock':>11s}  {'RaMBO':>11s}  ratio of a pair [quartiles]")
    for part, m in result["parts"].items():
        print(
            f"  {part:20s} {m['stock_ms']:8.2f} ms  {m['rambo_ms']:8.2f} ms  {m['ratio']:.3f} "
            f"[{m['ratio_q1']:.3f}, {m['ratio_q3']:.3f}]"
        )
    step, loss = (result["parts"][part] for part in ("step", "losses of the head"))
    change = (loss["rambo_ms"] - loss["stock_ms"]) / step["stock_ms"]
    print(f"  the losses of the head account for {change:+.2%} of the stock step", flush=True)


def run(argv: list[str] | None = None) -> None:
    """Times all models; InputError if the device or the output cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="about a minute: one small image, 4 pairs of steps")
    add("--device", help="cuda or cpu (default: cuda if this machine has a GPU)")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--amp", action="store_true", help="mixed precision, on a GPU")
    add("--images", type=int, help="images per batch (default: 16 on cuda, 2 on a CPU)")
    text = "image size (default: 800 1333 on cuda, 320 320 on a CPU)"
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=text)
    add("--boxes", type=int, default=8, help="ground truth boxes per image")
    add("--proposals", type=int, default=512, help="sampled proposals per image (Faster R-CNN)")
    add("--pairs", type=int, help="timed steps of each model (default: 20)")
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add("--out", type=Path, metavar="JSON", help="file for the results")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.amp and not args.device.startswith("cuda"):
        parser.error("--amp needs a GPU")
    check_device(args.device)
    if args.out:
        make_folder(args.out.parent, "--out")
        if args.out.is_dir():
            raise InputError(f"--out {args.out} is a folder: name a file")
    images, size = (16, [800, 1333]) if args.device.startswith("cuda") else (2, [320, 320])
    if args.quick:
        images, size = 1, [160, 160]
    args.images, args.size = args.images or images, args.size or size
    args.pairs = args.pairs or (4 if args.quick else 20)
    if args.pairs < 2:
        parser.error("--pairs must be at least 2, so that quartiles can be computed")
    if args.threads:
        torch.set_num_threads(args.threads)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    keys = ("device", "amp", "images", "size", "proposals", "boxes", "pairs")
    about |= {key: vars(args)[key] for key in keys} | {"backend": backend_of(args.device)}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = []
    for name in args.models:
        results.append(measure(name, args))
        print_result(results[-1])
    if args.out:
        args.out.write_text(json.dumps({"about": about, "results": results}, indent=1))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after a user's mistake."""
    return exit_status(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
