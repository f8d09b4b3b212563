#!/usr/bin/env python
"""Tests an installed rambo_det, from an empty folder: the loss, a training, its checkpoint.

    python /path/to/tools/smoke_test.py

Run this file with the Python that rambo_det is installed in, outside of the clone: the test fails
if it imports the clone's package. Without Detectron2 it tries the loss alone and says so.
"""

import argparse
import importlib.util
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
CONFIG = "configs/quickstart/faster_rcnn_rambo.yaml"
SHORT = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0"]
SHORT += ["SEED", "1", "OUTPUT_DIR", "run"]
SHORT += ["DATASETS.TRAIN", "('smoke',)", "DATASETS.TEST", "('smoke',)"]


def check(holds: object, what: str) -> None:
    """Ends the program with the error line ``what`` unless ``holds`` is true."""
    if not holds:
        sys.exit(f"error: smoke test: {what}")


def try_loss() -> None:
    """Checks that the loss's gradient sorts random scores, of which three are positive."""
    import torch

    from rambo_det import RamboLoss

    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(30, 1, generator=generator) / 10).requires_grad_()
    gt_classes = (torch.arange(30) >= 3).long()
    loss = RamboLoss(num_classes=1)
    optimizer = torch.optim.SGD([scores], lr=0.5)
    first = loss(scores, gt_classes)
    for _ in range(300):
        optimizer.zero_grad()
        loss(scores, gt_classes).backward()
        optimizer.step()
    last = loss(scores, gt_classes)
    check(first > 0.5 and last == 0, f"the loss went from {first} to {last}, not to 0")


def train(folder: Path) -> None:
    """Trains two iterations, resumes and evaluates with ``rambo-train`` and a shipped config."""
    from rambo_det.data.shapes import write_split

    write_split(folder, "train", 3)
    data = ["--register-coco", "smoke", "train.json", "train"]
    data += ["--classes", "circle,square,triangle,star"]
    command = Path(sysconfig.get_path("scripts"), "rambo-train")
    check(command.is_file(), f"there is no {command}")
    for arguments in ([], ["--resume"], ["--eval-only"]):
        full = [sys.executable, str(command), "--config", CONFIG, *arguments]
        full += [*data, *SHORT]
        done = subprocess.run(full, cwd=folder, capture_output=True, text=True)
        check(done.returncode == 0, f"{' '.join(full)}\n{done.stdout}{done.stderr}")
        check("AP50" in done.stdout, f"no table of results: {done.stdout}")
    check((folder / "run" / "model_final.pth").is_file(), "no checkpoint")


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    import torch

    import rambo_det

    place = Path(rambo_det.__file__).resolve()
    check(place.parent != CLONE / "rambo_det", f"this imports the clone: {place}")
    try_loss()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if importlib.util.find_spec("detectron2") is None:
        print(f"smoke test passed with {versions}: the loss alone, Detectron2 is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
    versions = f"{versions}, rambo_det {rambo_det.__version__}"
    print(f"smoke test passed with {versions}: loss and training")


if __name__ == "__main__":
    main()
